"""Run `waver compress`: make a smaller model out of one, by a search for what each layer bears."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import importing, in_sentences
from waver.cli.fill import filled
from waver.training.compression.options import CompressRun


@filled(run=CompressRun)
def compress(
    model: Annotated[str, typer.Argument(help="A causal language model: a folder, or a name.")],
    data: Annotated[Path, typer.Option(help="Texts to calibrate by: JSONL, as `waver tune` takes them.")],
    out: Annotated[Path, typer.Option(help="Folder for the run; a stopped run there goes on.")],
    run: CompressRun,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Compress a model: remove sub-blocks, set weights to 0 or round them, more where a layer bears it.

    An evolutionary search moves compression from layer to layer under an exact budget, and keeps what stays closest to
    the dense model's predictions (EvoPress, arXiv 2410.14649). OUT/model is an ordinary checkpoint. Blocks that lose
    both halves are deleted, and cost nothing any more; single halves, zeros and rounded weights take the place of the
    others, and make the model neither smaller nor faster by themselves. Needs the extra `train`.

        waver compress models/large --data texts.jsonl --out draft --target 0.25 --whole-blocks
    """
    with importing("train"):
        import torch

        from waver.training.compression.run import compress as work
    torch.set_num_threads(threads)
    with in_sentences(ValueError, OSError):
        work(model, data, run, out)
