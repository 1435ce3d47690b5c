"""Run `waver tune`: train a model on texts, in the tensors that may change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import importing
from waver.cli.fill import filled
from waver.training.tuning.options import TuneRun


@filled(run=TuneRun)
def tune(
    data: Annotated[
        Path, typer.Argument(help="JSONL: `text`, `prompt` and `completion`, `question` and `answer`, or `messages`.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the run; a stopped run there goes on.")],
    run: TuneRun,
    held_out: Annotated[
        Path | None, typer.Option(help="Texts that must not be forgotten; they are only measured.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Tune a model on texts, changing few of its tensors.

    `--select kappatune` trains those with the smallest condition numbers, which are the least specialised
    (arXiv 2506.16289): the model forgets less of what it knew. With `--rank` they get LoRA adapters instead.

    `--activation crrelu` puts CRReLU (arXiv 2405.12954) into the MLPs and trains these. `--guide 0.16` adds a loss that
    keeps attention heads from collapsing and from looking everywhere alike (arXiv 2501.03489).

    The tuned model is in OUT/model, ready for `waver serve`; OUT/adapter has the LoRA adapter. Needs the extra `train`.

        waver tune texts.jsonl --out run --model models/large --held-out old.jsonl
    """
    with importing("train"):
        from waver.training.tuning.run import tune as work
    try:
        work(data, held_out, run, out, threads)
    except (ValueError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
