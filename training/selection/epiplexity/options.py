"""Declare the run of `waver data epiplexity`: what can be set, the defaults, and a line of help for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from waver.options import Option


@dataclass(frozen=True)
class EpiplexityRun:
    """Comparison of corpora and orders under one model family, tokenizer, number of tokens and compute."""

    orders: Annotated[
        tuple[str, ...],
        Option("`forward`, `backward`, `shuffled`, `joint` or `swapped`; repeatable.", flags=("--order",)),
    ] = ("forward",)
    sizes: Annotated[
        tuple[str, ...],
        Option("WIDTHxDEPTH of a fresh model; of several, S and H are read at one --budget.", flags=("--size",)),
    ] = ("64x2",)
    model: Annotated[
        str | None, Option("A causal language model in place of --size: a folder, or a name.", shown="none; bytes")
    ] = None
    pretrained: Annotated[bool, Option("Start at the model's own weights; else at random ones.")] = False
    requential: Annotated[bool, Option("Measure the requential length too, 2 to 10 times slower.")] = False
    max_kl: Annotated[
        float | None, Option("Nats per token above which the teacher waits for the student.", least=0.0)
    ] = None
    tokens: Annotated[
        int | None, Option("Tokens to learn of each.", least=2, shown="those of the smallest, at most 1,000,000")
    ] = None
    described: Annotated[
        int | None, Option("Tokens of the data set that S and H describe.", least=1, shown="as many as are learned")
    ] = None
    budget: Annotated[
        float | None, Option("FLOPs at which S and H are read, with several --size.", least=1.0, shown="most in common")
    ] = None
    length: Annotated[int, Option("Tokens of a text.", least=3)] = 128
    batch: Annotated[int, Option("Texts a step.", least=1)] = 8
    learning_rate: Annotated[
        float | None, Option("Learning rate of Adam, at width 64.", least=0.0, shown="3e-3; 5e-5 with --pretrained")
    ] = None
    warmup: Annotated[int, Option("Steps over which it rises.", least=0)] = 100
    ema: Annotated[float, Option("Steps that the average of the weights remembers.", least=1.0)] = 50.0
    held_out: Annotated[int, Option("Texts at most that are held out, of a tenth.", least=1)] = 128
    in_order: Annotated[bool, Option("Learn the texts in the order of the file, which is then a part of it.")] = False
    seeds: Annotated[int, Option("Runs of each, on seeds from --seed on.", least=1)] = 1
    seed: Annotated[int, Option("Seed of weights, order and samples.")] = 1
