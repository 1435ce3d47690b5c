"""Declare the runs that adapt classifiers: what can be set, the defaults, and a line of help for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from waver.options import Option

MEASURES = ("adte", "tsallis", "shannon", "all", "first")


@dataclass(frozen=True)
class ClassifyRun:
    """Classification of images by one model; a stopped run goes on only as the same one.

    Defaults are those of ADTE (arXiv 2602.11743) and of its released code.
    """

    model: Annotated[str, Option("A zero-shot image classifier such as CLIP: a folder, or a name.")]
    template: Annotated[
        tuple[str, ...],
        Option("A sentence with {} for the label; several are averaged; repeatable.", shown="a photo of a {}."),
    ] = ()
    measure: Annotated[
        str,
        Option("How views are ranked: `adte`, `tsallis`, `shannon`; `all` averages all, `first` takes the first only."),
    ] = "adte"
    views: Annotated[int, Option("Views of an image: one centre crop, the others random crops.", least=1)] = 64
    keep: Annotated[float, Option("Share of the views that are averaged.", least=0.0, most=1.0)] = 0.1
    q: Annotated[float, Option("The order of `tsallis`.", least=0.0, most=0.99)] = 0.1
    low: Annotated[float, Option("Order of the rarest label.", least=0.0, most=0.99)] = 0.01
    high: Annotated[float, Option("Order of the most frequent label.", least=0.0, most=0.99)] = 0.9
    slots: Annotated[int, Option("Sure predictions that are kept for each label.", least=1)] = 10
    margin: Annotated[float, Option("Logits from the first label to the second of a sure one.", least=0.0)] = 1.0
    warmup: Annotated[int, Option("Sure predictions before labels get orders of their own.", least=1)] = 100
    every: Annotated[int, Option("Images between estimates of the prior, and between checkpoints.", least=1)] = 50
    two_passes: Annotated[
        bool, Option("Estimate the prior in a first pass over all images, as the released code does.")
    ] = False
    adjust: Annotated[bool, Option("Subtract ln prior from the logits as well.")] = False
    smallest: Annotated[float, Option("Least share of the area in a random crop.", least=0.01, most=1.0)] = 0.08
    mirror: Annotated[float, Option("Probability that a random crop is mirrored.", least=0.0, most=1.0)] = 0.5
    batch: Annotated[int, Option("Views in one forward pass.", least=1)] = 64
    seed: Annotated[int, Option("Seed of the crops.")] = 1
