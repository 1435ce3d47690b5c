"""Options that `waver bench quality` and `speed` have in common: the server, its models, and what the page says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Small = Annotated[str, typer.Option(help="The small model's name on the server.")]
Large = Annotated[str, typer.Option(help="The large model's name on the server.")]
Collection = Annotated[str | None, typer.Option(help="For `always_retrieve` and `never_retrieve`.")]
Running = Annotated[
    str | None, typer.Option(help="A running server, with /v1.", show_default="one is started for the while")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML, for the server that is started.", show_default="the bundled pair"),
]
Note = Annotated[str | None, typer.Option(help="What the page says about the server: backend, number type, machine.")]
Title = Annotated[str | None, typer.Option(help="Title of the page.", show_default="the file's name")]
