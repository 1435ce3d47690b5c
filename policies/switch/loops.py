"""Notice that a model goes round in circles: it writes the same run of tokens again and again."""

from __future__ import annotations

from collections import deque

LONGEST = 32
"""Longest run, in tokens, whose repetition is noticed."""
LEAST = 16
"""Fewest tokens that repetitions of a run must have together, so that a row of dots or zeros is none."""


class Loops:
    """Counts, token by token, how often the last tokens repeat a run of up to `LONGEST`.

    Args:
        repeats: times that a run has to stand there on end, at least 2; 0: nothing is noticed.
    """

    def __init__(self, repeats: int) -> None:
        self._repeats = repeats
        self._recent: deque[int] = deque(maxlen=LONGEST)
        self._equal = [0] * (LONGEST + 1)
        """By length of the run: how many of the last tokens equal the token that far before them."""

    def push(self, token: int) -> bool:
        """Take in a token, and return whether it completes `repeats` runs of at least `LEAST` tokens together."""
        if not self._repeats:
            return False
        found = False
        for length, before in enumerate(reversed(self._recent), 1):
            self._equal[length] = self._equal[length] + 1 if before == token else 0
            found = found or self._equal[length] + length >= max(self._repeats * length, LEAST)
        self._recent.append(token)
        return found
