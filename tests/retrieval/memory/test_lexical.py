"""BM25 over one owner's texts: numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from waver.retrieval.memory.lexical import BM25


def test_by_hand() -> None:
    texts = ["alice meets bob starbucks", "bob likes tea", "alice likes coffee starbucks coffee"]
    scores = BM25([text.split() for text in texts]).scores(["starbucks", "coffee"])
    assert scores == pytest.approx([0.470004, 0.0, 1.719439], abs=1e-6)


def test_nothing_to_score() -> None:
    assert len(BM25([]).scores(["a"])) == 0
    assert np.all(BM25([["a"], []]).scores(["b"]) == 0)
