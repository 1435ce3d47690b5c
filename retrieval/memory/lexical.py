"""Score short texts by BM25 over the memories of one owner alone, so that no other's words change a score."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

K1, B = 1.5, 0.75


class BM25:
    """An inverted index of texts; `idf = ln(1 + (N - n + 0.5) / (n + 0.5))`, k1 = 1.5, b = 0.75."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        """Index texts, each a list of words."""
        self._count = len(texts)
        lengths = np.array([len(text) for text in texts], np.float64)
        self._norm = K1 * (1 - B + B * lengths / max(lengths.mean() if len(texts) else 0.0, 1e-9))
        places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for i, text in enumerate(texts):
            for word, times in Counter(text).items():
                places[word].append((i, times))
        self._places = {word: np.array(found, np.int64) for word, found in places.items()}

    def scores(self, query: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return the score of every text for the different words of a query, `[texts]`."""
        out = np.zeros(self._count)
        for word in dict.fromkeys(query):
            found = self._places.get(word)
            if found is None:
                continue
            at, times = found[:, 0], found[:, 1].astype(np.float64)
            idf = math.log(1 + (self._count - len(at) + 0.5) / (len(at) + 0.5))
            out[at] += idf * times * (K1 + 1) / (times + self._norm[at])
        return out
