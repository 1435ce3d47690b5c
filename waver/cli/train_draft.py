"""Run `waver train draft`: train a draft model for speculative decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import importing, in_sentences
from waver.cli.fill import filled
from waver.training.draft.options import DraftRun


@filled(run=DraftRun)
def train_draft(
    data: Annotated[
        Path, typer.Argument(help="JSONL: `text`, `prompt` and `completion`, `question` and `answer`, or `messages`.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the run; a stopped run there goes on.")],
    run: DraftRun,
    held_out: Annotated[Path | None, typer.Option(help="Texts to measure acceptance on.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Train a small model to draft for a large one in vLLM's speculative decoding.

    The loss is what rejection sampling refuses, over runs of --gamma drafts (Bebop, arXiv 2606.12370): acceptance
    then does not fall with the large model's entropy, if vLLM samples the drafts. Answers that the large model has
    drawn itself are the best texts.

    With --heads the large model gets prediction heads instead, in OUT/heads; start them with --ce-steps.

    The draft model is in OUT/model, and OUT/engine.yaml is a configuration that `waver serve` runs. OUT/report.json has
    the acceptance before and after. Needs the extra `train`.

        waver train draft texts.jsonl --out run --model models/large --draft models/small
    """
    with importing("train"):
        from waver.training.draft.run import train
        from waver.training.draft.run_heads import train_heads
    with in_sentences(ValueError, OSError):
        (train_heads if run.heads else train)(data, held_out, run, out, threads)
