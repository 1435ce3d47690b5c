"""Options of commands that ask a server, which they start themselves unless one is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from waver.cli.fill import config_option, pairs

BaseUrl = Annotated[
    str | None, typer.Option(help="A server's address, with /v1.", show_default="one is started for the while")
]
Config = Annotated[Path | None, config_option("A YAML file, for the server that is started.")]


@contextmanager
def server_at(base_url: str | None, config: Path | None) -> Iterator[tuple[str, str | None]]:
    """Yield a server's address and key: the one that is named, with the key in WAVER_API_KEY, or one that is started
    for the while."""
    import os

    if base_url is not None:
        yield base_url, os.environ.get("WAVER_API_KEY")
        return
    from waver.server.run import serving

    with serving(config) as found:
        yield found


def parameters_of(given: Sequence[str] | None) -> dict[str, Any]:
    """Read the values of `--set KEY=VALUE` as YAML.

    Raises:
        typer.BadParameter: one cannot be read.
    """
    import yaml

    named = pairs(given, "a parameter is given as KEY=VALUE.", "--set")
    try:
        return {key: yaml.safe_load(value) for key, value in named}
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"the value cannot be read: {error}", param_hint="--set") from None


def listed(given: Sequence[str] | None) -> dict[str, Any]:
    """Read the values of `--vary KEY=VALUE,VALUE,…`, each as YAML.

    Raises:
        typer.BadParameter: one cannot be read.
    """
    import yaml

    named = pairs(given, "values to try are given as KEY=VALUE,VALUE,…", "--vary")
    try:
        return {key: yaml.safe_load(f"[{values}]") for key, values in named}
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"the values cannot be read: {error}", param_hint="--vary") from None
