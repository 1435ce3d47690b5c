"""Measures of disagreement on examples that can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from waver.entropy.agreement import clusters, degree, disagreement, luq, predictive_entropy, semantic_entropy

ALIKE = np.array([[1, 0.95, 0.3, 0.2], [0.95, 1, 0.4, 0.1], [0.3, 0.4, 1, 0.2], [0.2, 0.1, 0.2, 1]])


def test_answers_of_one_meaning() -> None:
    groups = clusters(ALIKE, 0.9)
    assert groups == [[0, 1], [2], [3]]
    assert semantic_entropy(groups) == pytest.approx(1.5 * math.log(2))
    assert disagreement(groups) == 0.5
    assert semantic_entropy([[0, 1, 2]]) == 0.0


def test_degrees_and_support() -> None:
    assert degree(ALIKE) == pytest.approx(1 - ALIKE.sum() / 16)
    assert degree(np.ones((3, 3))) == 0
    assert luq(np.array([[9, 0.5], [0.25, 9]])) == pytest.approx(1 - 0.375), "no answer supports itself"
    assert luq(np.array([[1.0]])) == 0


def test_predictive_entropy_is_by_token() -> None:
    assert predictive_entropy([-2.0, -3.0], [4, 2]) == pytest.approx((0.5 + 1.5) / 2)
