"""Isotonic regression: the same as scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.isotonic import IsotonicRegression

from waver.isotonic import Isotonic, fit


def test_it_is_what_scikit_learn_fits() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 40, 200) / 10
    outcomes = (rng.random(200) < scores / 5).astype(float)
    made = fit(scores.tolist(), outcomes.tolist())
    wanted = IsotonicRegression(out_of_bounds="clip").fit(scores, outcomes)
    at = np.linspace(-1, 6, 141)
    np.testing.assert_allclose([made(x) for x in at], wanted.predict(at), atol=1e-12)
    assert len(made.x) < len(set(scores.tolist()))


def test_what_is_no_function_is_refused() -> None:
    for x, y in (((), ()), ((1.0, 1.0), (0.0, 1.0)), ((1.0, 2.0), (1.0, 0.0)), ((1.0,), (0.0, 1.0))):
        with pytest.raises(ValidationError):
            Isotonic(x=x, y=y)
    with pytest.raises(ValueError, match="finite"):
        fit([float("nan")], [1.0])
