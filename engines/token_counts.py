"""How often each token stands in a text that grows, for penalties: kept up to date token by token."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from waver.devices import Array


class TokenCounts:
    """Counts of one text. What was counted already is looked at again only where the text got shorter."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._read = 0
        self._places: dict[int, int] = {}
        self._tokens, self._counts = array("q"), array("q")

    def read(self, ids: Sequence[int]) -> tuple[Array, Array]:
        """The tokens of a text, each once, and how often each stands there; `[n]` int64 both."""
        if len(ids) < self._read:
            self._begin()
        for token in ids[self._read :]:
            place = self._places.setdefault(token, len(self._tokens))
            if place == len(self._tokens):
                self._tokens.append(token)
                self._counts.append(0)
            self._counts[place] += 1
        self._read = len(ids)
        return np.array(self._tokens), np.array(self._counts)


CountsPair = tuple[TokenCounts, TokenCounts]
"""Of all that was read, and of the answer alone."""
