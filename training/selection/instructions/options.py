"""Declare the runs of `waver data select` and `waver data quantiles`: what can be set, and a line of help for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from waver.options import Option
from waver.resources import MODELS

REPRESENTATIONS = ("less", "rds", "embed")


@dataclass(frozen=True)
class RepresentRun:
    """Vectors of a pool; a stopped run goes on only with the same ones."""

    representation: Annotated[
        str, Option("`less` (gradients), `rds` (hidden states) or `embed` (a sentence embedder).")
    ] = "less"
    model: Annotated[
        str, Option("The causal language model to fine-tune: a folder, or a name.", shown="the bundled small")
    ] = str(MODELS / "small")
    length: Annotated[int, Option("The most tokens of an example.", least=2)] = 2048
    dimensions: Annotated[int, Option("Of `less`: numbers a gradient is projected to.", least=8)] = 8192
    warmup_examples: Annotated[int, Option("Of `less`: examples of the warm-up.", least=1)] = 10_000
    warmup_epochs: Annotated[int, Option("Of `less`: passes over them, each a checkpoint.", least=1)] = 4
    warmup_rate: Annotated[float, Option("Of `less`: learning rate, falling to 0.", least=0.0)] = 2e-5
    warmup_batch: Annotated[int, Option("Of `less`: examples a step.", least=1)] = 128
    rank: Annotated[int, Option("Of `less`: rank of the LoRA adapters.", least=1)] = 128
    alpha: Annotated[int, Option("Of `less`: their scale, times the rank.", least=1)] = 512
    dropout: Annotated[float, Option("Of `less`: dropout in the warm-up.", least=0.0, most=0.9)] = 0.1
    embedder: Annotated[str, Option("Of `embed`: a sentence-transformers model.")] = "all-MiniLM-L6-v2"
    seed: Annotated[int, Option("Seed of the warm-up and of --selector random.")] = 0


@dataclass(frozen=True)
class QuantileRun:
    """Fine-tuning on slices of the ordered pool."""

    slices: Annotated[int, Option("Equal slices of the ordered pool.", least=3)] = 10
    examples: Annotated[int, Option("Examples of each to train on, the first ones.", least=1)] = 500
    epochs: Annotated[int, Option("Passes over them.", least=1)] = 2
    rate: Annotated[float, Option("Learning rate, falling to 0.", least=0.0)] = 2e-5
    batch: Annotated[int, Option("Examples a step.", least=1)] = 128
