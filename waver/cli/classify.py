"""Run `waver classify`: give images one of given labels by a zero-shot classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import importing, in_sentences
from waver.cli.fill import filled
from waver.training.adaptation.options import ClassifyRun


@filled(run=ClassifyRun)
def classify(
    images: Annotated[Path, typer.Argument(help="A folder of images; folders in it are read too.")],
    labels: Annotated[Path, typer.Option(help="A text file with one label in each line.")],
    out: Annotated[Path, typer.Option(help="Folder for the run; a stopped run there goes on.")],
    run: ClassifyRun,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Give every image of a folder one of the labels, by a zero-shot classifier such as CLIP.

    Each image is cut into many views, of which the most confident are averaged. Confidence is an entropy that follows
    how often the model predicts each label, so that labels which it prefers do not win by default (ADTE, arXiv
    2602.11743). Nothing is trained, and no label of an image is needed.

    OUT/predictions.jsonl has a line for each image, OUT/report.json the counts, and accuracies by every measure where
    the images lie in folders that are named like labels. Needs the extra `train`.

        waver classify pictures --labels labels.txt --model openai/clip-vit-base-patch16 --out run
    """
    with importing("train"):
        import torch

        from waver.training.adaptation.classify import classify as work
    torch.set_num_threads(threads)
    with in_sentences(ValueError, OSError):
        work(images, labels, run, out)
