"""Run `waver data`: look into data to train on, and choose from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import in_sentences
from waver.cli.fill import filled
from waver.training.selection.epiplexity.options import EpiplexityRun

data = typer.Typer(no_args_is_help=True, help="Look into data to train on, and choose from it.")
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]


@data.command()
@filled(run=EpiplexityRun)
def epiplexity(
    files: Annotated[list[Path], typer.Argument(help="JSONL as for `waver tune`, or any other file as one text.")],
    out: Annotated[Path, typer.Option(help="Folder for the report; a stopped run there goes on.")],
    run: EpiplexityRun,
    threads: Threads = 1,
) -> None:
    """Rank corpora, and orders of their tokens, by the structure that a small model can learn from them.

    S counts the bits of structure, H those of noise (arXiv 2601.03220). Random bytes have much H and no S, a constant
    has neither, useful text has much S. Each corpus trains the same small model on as many tokens, once; S is what
    coding that training costs. Of a `prompt` with its `completion` only the second is coded.

        waver data epiplexity manual.txt chats.jsonl --out structure --seeds 3

        waver data epiplexity games.jsonl --out orders --order joint --order swapped --requential
    """
    with in_sentences(ValueError, OSError):
        from waver.training.selection.epiplexity.run import measure

        measure(files, run, out, threads)
