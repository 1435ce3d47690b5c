"""Count the tokens of a text that grows, for penalties."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from waver.devices import Array


class TokenCounts:
    """Counts the tokens of one text. Only new tokens are counted, unless the text got shorter."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._counted = 0
        self._index: dict[int, int] = {}
        self._tokens, self._counts = array("q"), array("q")

    def count(self, ids: Sequence[int]) -> tuple[Array, Array]:
        """Return the distinct tokens of a text and their counts; `[n]` int64 both."""
        if len(ids) < self._counted:
            self._reset()
        for token in ids[self._counted :]:
            index = self._index.setdefault(token, len(self._tokens))
            if index == len(self._tokens):
                self._tokens.append(token)
                self._counts.append(0)
            self._counts[index] += 1
        self._counted = len(ids)
        return np.array(self._tokens), np.array(self._counts)


CountsPair = tuple[TokenCounts, TokenCounts]
"""Counts of the prompt with the answer, and of the answer alone."""
