"""Declare the runs on preferences of the command line; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from waver.options import Option
from waver.resources import MODELS

SMALL = str(MODELS / "small")


@dataclass(frozen=True)
class DpoRun:
    """DPO of one model; a stopped run goes on only as the same one."""

    model: Annotated[str, Option("The model to start from, which is the reference too.", shown="the bundled small")] = (
        SMALL
    )
    loss: Annotated[str, Option("`dpo`, or `dpo_pg`, which does not lower chosen answers for the sake of others.")] = (
        "dpo"
    )
    beta: Annotated[float, Option("Weight of the log-ratios: the exponent of the pairs' power law.", least=1e-6)] = 0.1
    rank: Annotated[int, Option("Rank of LoRA adapters on all linear layers; 0 trains all weights.", least=0)] = 0
    epochs: Annotated[float, Option("Passes over the pairs.", least=0.001)] = 1.0
    batch: Annotated[int, Option("Pairs a pass.", least=1)] = 8
    accumulate: Annotated[int, Option("Passes an optimizer step.", least=1)] = 1
    length: Annotated[int, Option("The most tokens of a prompt with an answer.", least=2)] = 1024
    learning_rate: Annotated[
        float | None, Option("Learning rate of AdamW.", least=0.0, shown="1e-4 for a bundled model, else 1e-6")
    ] = None
    schedule: Annotated[str, Option("Of the learning rate: `constant_with_warmup`, `linear` or `cosine`.")] = (
        "constant_with_warmup"
    )
    warmup: Annotated[float, Option("Share of the steps over which it rises.", least=0.0, most=1.0)] = 0.0
    every: Annotated[int, Option("Steps between checkpoints.", least=1)] = 50
    seed: Annotated[int, Option("Seed of the order of the pairs.")] = 1


@dataclass(frozen=True)
class Made:
    """Pairs whose sampling carries an update, for DPO to make it."""

    model: Annotated[str, Option("The reference, that answers.", shown="the bundled small")] = SMALL
    side: Annotated[str, Option("`rejected` or `chosen`: the answers that are resampled; the others are plain.")] = (
        "rejected"
    )
    beta: Annotated[float, Option("Exponent of the power law: the --beta of the DPO to come.", least=1e-6)] = 0.1
    candidates: Annotated[int, Option("Answers drawn to each question; half of them are resampled.", least=4)] = 32
    pairs: Annotated[int, Option("Pairs of each question.", least=1)] = 4
    max_tokens: Annotated[int, Option("The most tokens of an answer.", least=1)] = 256
    seed: Annotated[int, Option("Seed of the answers.")] = 1


@dataclass(frozen=True)
class Measured:
    """Measures of a set of pairs."""

    model: Annotated[str, Option("The reference.", shown="the bundled small")] = SMALL
    chosen_by: Annotated[str | None, Option("The model that chosen answers come from.", shown="the reference")] = None
    rejected_by: Annotated[
        str | None, Option("The model that rejected answers come from; without it the power law is not fitted.")
    ] = None
    samples: Annotated[int, Option("Answers drawn to each prompt, for the entropy of the DID.", least=2)] = 32
    prompts: Annotated[int, Option("Prompts that answers are drawn to; 0 for none.", least=0)] = 16
    max_tokens: Annotated[int, Option("The most tokens of such an answer.", least=1)] = 256
    length: Annotated[int, Option("The most tokens of a prompt with an answer.", least=2)] = 1024
    seed: Annotated[int, Option("Seed of the answers.")] = 1
