"""Run `waver train vision`: train the bundled model that reads pictures from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.fill import filled
from waver.training.options import VisionRun


@filled(run=VisionRun)
def train_vision(
    out: Annotated[Path, typer.Option(help="Folder for the model; a stopped run there goes on.")], run: VisionRun
) -> None:
    """Train the bundled model that reads pictures from scratch."""
    from waver.training.vision.train import train

    try:
        train(out, run)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
