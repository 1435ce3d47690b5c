"""Echo a prompt in front of its answer: its text, and the log-probabilities of its tokens."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TypeVar

from waver.engines.base import Engine, Step
from waver.engines.tokens import TokenText
from waver.server.assembly import Piece, Token

T = TypeVar("T")

CHARACTERS = 4096
TOKENS = 16
"""Most characters and tokens of one piece: each becomes a line of a stream."""


async def score(ids: Sequence[int], engine: Engine, top_logprobs: int) -> list[Step]:
    """Score the prompt: a step for each token; the first has nothing before it, so its logprob is NaN."""
    if not ids:
        return []
    first = Step(ids[0], math.nan, math.nan, engine.name)
    rest = await engine.score(ids, top_logprobs) if len(ids) > 1 else []
    return [first, *rest]


def echo(text: str, steps: Sequence[Step], tokens: TokenText) -> Iterator[Piece]:
    """Cut the prompt into pieces that are small enough for a line each."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    placed, offset = [], 0
    for step in steps:
        data = tokens.token_bytes(step.token)
        placed.append(Token(step, data, offset))
        offset += len(decoder.decode(data))
    for shown, batch in zip_longest(batched(text, CHARACTERS), batched(placed, TOKENS), fillvalue=()):
        yield Piece(0, "".join(shown), tuple(batch))


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into slices of at most `size` items."""
    return (items[i : i + size] for i in range(0, len(items), size))
