"""Declare the options of `waver train paraphrases`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from waver.options import Option


@dataclass(frozen=True)
class ParaphraseRun:
    """Wordings of questions, and their passages; a stopped run goes on only as the same one."""

    engine: Annotated[str, Option("The engine that writes the wordings.")] = "large"
    n: Annotated[int, Option("Wordings of a question, its own among them.", least=2)] = 6
    tries: Annotated[int, Option("Attempts at each further wording.", least=1)] = 4
    max_tokens: Annotated[int, Option("The most tokens of a wording.", least=1)] = 100
    collection: Annotated[
        str | None, Option("The collection in which passages are looked up.", shown="no passages")
    ] = None
    top_k: Annotated[int, Option("Passages for each wording.", least=1)] = 5
    seed: Annotated[int, Option("Seed of the wordings.")] = 1
