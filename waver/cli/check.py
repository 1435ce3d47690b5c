"""Run `waver check`: check a configuration without loading a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from waver.cli.fill import config_option

Shown = Annotated[
    bool,
    typer.Option(
        "--schema", help="Print the JSON Schema of a configuration, for editors; policies of its modules included."
    ),
]


def one_file(context: typer.Context, file: Path | None, config: Path | None) -> Path | None:
    """Return the configuration that was named as an argument or an option; either goes over the variable.

    Raises:
        typer.BadParameter: two different ones were named.
    """
    source = context.get_parameter_source("config")
    named = source is not None and source.name == "COMMANDLINE"
    if file is not None and named and config != file:
        raise typer.BadParameter(f"{file} and {config} are two files: name one.", param_hint="--config")
    return file or config


def check(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="A YAML file, as --config.", show_default=False)] = None,
    config: Annotated[Path | None, config_option("A YAML file.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    schema: Shown = False,
) -> None:
    """Check a configuration without loading a model: its fields, folders, port, secrets, policies and presets.

    Every problem is a line with its file and line, or the variable that it came from. Exits with 0 where a server would
    start as far as this can be told, with 1 where it would not, and with 2 where the command itself is wrong.
    """
    config = one_file(context, file, config)
    if schema:
        from waver.engines import plugins
        from waver.server.config import load_config
        from waver.server.config_schema import config_schema

        try:
            plugins.load(load_config(config).modules)
        except ValueError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
        typer.echo(json.dumps(config_schema(), indent=1, ensure_ascii=False))
        return
    from waver.server.checking import check_config

    problems = check_config(config)
    errors = sum(problem.level == "error" for problem in problems)
    valid = errors == 0 and not (strict and problems)
    if as_json:
        typer.echo(json.dumps({"valid": valid, "problems": [asdict(problem) for problem in problems]}, indent=1))
    else:
        for problem in problems:
            typer.echo(f"{'warning: ' if problem.level == 'warning' else ''}{problem}", err=True)
        if valid:
            typer.echo(f"{config or 'The bundled configuration'} can be served, as far as this can be told here.")
    raise typer.Exit(not valid)
