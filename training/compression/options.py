"""Declare the run of `waver compress`: what can be set, the defaults, and a line of help for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from waver.options import Option

KINDS = ("depth", "sparsity", "bits")


@dataclass(frozen=True)
class CompressRun:
    """Compression of one model; a stopped run goes on only as the same one. Generations, offspring and tokens are the
    paper's (arXiv 2410.14649) where nothing is given."""

    kind: Annotated[str, Option("`depth` removes sub-blocks, `sparsity` sets weights to 0, `bits` rounds them.")] = (
        "depth"
    )
    target: Annotated[
        float | None,
        Option("Share of blocks or weights to remove, or mean bits.", least=0.0, shown="0.25, 0.5; 4 bits"),
    ] = None
    whole_blocks: Annotated[bool, Option("Remove attention and MLP of a block together, which serves faster.")] = False
    generations: Annotated[int | None, Option("Generations.", least=1, shown="k(n - k) / 1.5 for depth, 400, 150")] = (
        None
    )
    offspring: Annotated[int | None, Option("Mutations in each.", least=1, shown="32, 64, 128")] = None
    fast: Annotated[bool, Option("Two short rounds of 16 offspring: the paper's super-fast variant.")] = False
    length: Annotated[int, Option("Tokens of a calibration sequence.", least=2)] = 512
    tokens: Annotated[int, Option("Most tokens of calibration.", least=2)] = 131072
    top: Annotated[int, Option("Tokens of which a dense distribution is kept.", least=2)] = 512
    step: Annotated[
        int | None,
        Option("Weights of a level of `sparsity`.", least=1, shown="1/32 of the smallest layer, at most 1e6"),
    ] = None
    levels: Annotated[int, Option("Levels of `sparsity` on either side.", least=1)] = 8
    seed: Annotated[int, Option("Seed of the search.")] = 1
