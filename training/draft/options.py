"""Declare the run of `waver train draft`; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from waver.options import Option
from waver.resources import MODELS


@dataclass(frozen=True)
class DraftRun:
    """Training of one draft model; a stopped run goes on only as the same one."""

    model: Annotated[str, Option("The target, which stays as it is.", shown="the bundled large")] = str(
        MODELS / "large"
    )
    draft: Annotated[str, Option("The draft model to train.", shown="the bundled small")] = str(MODELS / "small")
    heads: Annotated[bool, Option("Train --gamma prediction heads on the target, in place of a draft model.")] = False
    loss: Annotated[str, Option("`e2e_tv`, `tv`, `kl`, `reverse_kl`, or `ce`.")] = "e2e_tv"
    gamma: Annotated[int, Option("Tokens drafted at a time.", least=1)] = 3
    ce_steps: Annotated[
        int, Option("First steps by cross-entropy, for heads and for drafts that know little yet.", least=0)
    ] = 0
    temperature: Annotated[float, Option("At which both will be sampled.", least=0.05)] = 1.0
    steps: Annotated[int | None, Option("Optimizer steps.", least=1, shown="one pass over the texts")] = None
    batch: Annotated[int, Option("Texts a step.", least=1)] = 8
    length: Annotated[int, Option("The most tokens of a text.", least=2)] = 1024
    learning_rate: Annotated[float, Option("Learning rate of AdamW, constant after the warm-up.", least=0.0)] = 3.5e-5
    warmup: Annotated[float, Option("Share of the steps over which it rises.", least=0.0, most=1.0)] = 0.03
    every: Annotated[int, Option("Steps between checkpoints.", least=1)] = 50
    seed: Annotated[int, Option("Seed of the order of the texts.")] = 1
