"""Run `waver train dpo`: direct preference optimisation on pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import importing, in_sentences
from waver.cli.fill import filled
from waver.training.preferences.options import DpoRun


@filled(run=DpoRun)
def train_dpo(
    pairs: Annotated[Path, typer.Argument(help="JSONL: `question`, `chosen` and `rejected`, or pairs of token ids.")],
    out: Annotated[Path, typer.Option(help="Folder for the run; a stopped run there goes on.")],
    run: DpoRun,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Train a model on pairs of a chosen and a rejected answer, by TRL's DPO.

    Chosen answers that come from the model itself lose likelihood on the way to the optimum (arXiv 2505.23761): that is
    no error as long as rejected ones lose more, and the report says so. `--loss dpo_pg` prevents it.

    The trained model is in OUT/model, ready for `waver serve`; OUT/adapter has the LoRA adapter. Needs the extra
    `train`.

        waver train dpo pairs.jsonl --out run --beta 0.1
    """
    with importing("train"):
        from waver.training.preferences.dpo import dpo
    with in_sentences(ValueError, OSError):
        dpo(pairs, run, out, threads)
