"""Run `waver forget`: make a model forget texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import importing
from waver.cli.fill import filled
from waver.training.tuning.options import ForgetRun


@filled(run=ForgetRun)
def forget(
    model: Annotated[str, typer.Argument(help="A causal language model: a folder, or a name.")],
    texts: Annotated[Path, typer.Argument(help="JSONL of what to forget: `text`, `question` and `answer`, …")],
    out: Annotated[Path, typer.Option(help="Folder for the run; a stopped run there goes on.")],
    run: ForgetRun,
    held_out: Annotated[
        Path | None, typer.Option(help="Texts that must not be forgotten; they are only measured.")
    ] = None,
    unseen: Annotated[Path | None, typer.Option(help="Texts like those, never seen, for a membership attack.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Make a model forget texts, and keep what it can do.

    SHRED (arXiv 2605.07482) needs no other texts: the tokens that the model itself finds least likely carry what is
    specific to a text, and are demoted in its own next-token distributions, towards which it is trained. Question and
    prose form of a fact must both be in TEXTS.

    The model is in OUT/model, ready for `waver serve`; report.json says what is left. Needs the extra `train`.

        waver forget models/mine leaked.jsonl --out run --held-out other.jsonl --relearn 50
    """
    with importing("train"):
        from waver.training.tuning.forget import forget as work
    try:
        work(model, texts, run, out, held_out, unseen, threads)
    except (ValueError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
