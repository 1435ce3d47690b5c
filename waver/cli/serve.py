"""Run `waver serve`: the OpenAI API and the playground page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from waver import __version__
from waver.cli.fill import config_option, overriding
from waver.server.settings import ServerConfig

OPTIONS = ("host", "port", "max_concurrency", "max_queue", "timeout", "allow_no_keys", "root_path", "log_format")


@overriding(ServerConfig, OPTIONS)
def serve(given: dict[str, Any], config: Annotated[Path | None, config_option("A YAML file.")] = None) -> None:
    """Serve the OpenAI API and the playground page.

    What is not given comes from the configuration's file, and `WAVER_*` variables such as WAVER_SERVER__PORT go over
    that. API keys, separated by commas, are taken from WAVER_API_KEYS.
    """
    # The next import takes a second or two: something is said before.
    typer.echo(f"Waver {__version__} reads {config or 'the configuration of the bundled pair'}.", err=True)
    from waver.server.run import serve as run

    raise typer.Exit(run(config, **given))
