"""Declare the run of `waver tune`: what can be set, the defaults, and a line of help for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from waver.options import Option
from waver.resources import MODELS

SELECTIONS = ("kappatune", "all", "random", "reverse")


@dataclass(frozen=True)
class TuneRun:
    """Tuning of one model on texts; a stopped run goes on only as the same one."""

    model: Annotated[str, Option("A causal language model: a folder, or a name.", shown="the bundled small")] = str(
        MODELS / "small"
    )
    select: Annotated[str, Option("`kappatune`, `all`, `random`, or `reverse`: the largest condition numbers.")] = (
        "kappatune"
    )
    share: Annotated[float, Option("Part of the tensors to train.", least=0.0, most=1.0)] = 0.2
    count: Annotated[int | None, Option("Number of tensors, in place of --share.", least=1)] = None
    parameters: Annotated[int | None, Option("Most parameters in them, in place of --share.", least=1)] = None
    threshold: Annotated[float | None, Option("Largest condition number, in place of --share.", least=1.0)] = None
    by_shape: Annotated[bool, Option("Rank among tensors of one shape.")] = False
    largest: Annotated[int, Option("Leave out tensors with a longer side.", least=1)] = 16384
    rank: Annotated[int, Option("Rank of LoRA adapters on the chosen layers; 0 trains the tensors.", least=0)] = 0
    match: Annotated[
        int | None, Option("Raise --rank to the parameters of a LoRA of this rank on all layers.", least=1)
    ] = None
    dropout: Annotated[float, Option("Dropout of LoRA.", least=0.0, most=0.9)] = 0.05
    steps: Annotated[int, Option("Optimizer steps.", least=1)] = 200
    batch: Annotated[int, Option("Texts a step.", least=1)] = 8
    length: Annotated[int, Option("The most tokens of a text.", least=2)] = 256
    learning_rate: Annotated[
        float | None, Option("Learning rate of AdamW, constant.", least=0.0, shown="5e-5; 2e-4 for LoRA")
    ] = None
    every: Annotated[int, Option("Steps between checkpoints.", least=1)] = 50
    seed: Annotated[int, Option("Seed of the order of the texts, and of --select random.")] = 1
