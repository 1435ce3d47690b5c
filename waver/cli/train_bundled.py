"""Run `waver train bundled`: train the bundled pair from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.fill import filled
from waver.training.options import PairRun


@filled(run=PairRun)
def train_bundled(
    out: Annotated[Path, typer.Option(help="Folder for the models; a stopped run there goes on.")], run: PairRun
) -> None:
    """Train the bundled small and large model from scratch."""
    from waver.training.pair.bundled import train

    try:
        train(out, run)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
