"""Tests of promises about losses: they hold as often as they say, and are made where they can be."""

from __future__ import annotations

import numpy as np
import pytest

from waver.risk import needed, p_value, promised


@pytest.mark.parametrize(
    ("lost", "won", "n"), [(0.02, 0.0, 300), (0.05, 0.03, 300), (0.25, 0.23, 500), (0.02, 0.0, 40)]
)
def test_a_setting_that_loses_too_much_is_rarely_promised(lost: float, won: float, n: int) -> None:
    """At the edge: the mean loss is exactly what is not allowed any more."""
    draws = np.random.default_rng(1).choice([1, 0, -1], p=[lost, 1 - lost - won, won], size=(2000, n))
    wrong = np.mean([p_value(row.tolist(), lost - won) <= 0.05 for row in draws])
    assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_a_setting_that_loses_little_is_mostly_promised() -> None:
    draws = np.random.default_rng(2).choice([1, 0, -1], p=[0.01, 0.98, 0.01], size=(200, 400))
    assert np.mean([p_value(row.tolist(), 0.03) <= 0.05 for row in draws]) > 0.8


def test_no_loss_takes_little_more_than_the_fewest_questions() -> None:
    assert needed(0.01) == 299
    assert needed(0.05) == 59
    assert p_value([0.0] * 298, 0.01) > 0.05
    assert p_value([0.0] * 400, 0.01) <= 0.05
    assert p_value([], 0.01) == 1.0


def test_of_many_settings_none_beyond_the_first_failure_is_read() -> None:
    read = []

    def settings() -> object:
        for place, loss in enumerate([0.0, 0.0, 1.0, 0.0]):
            read.append(place)
            yield [loss] * 200

    assert promised(settings(), 0.05) == 2  # type: ignore[arg-type]
    assert read == [0, 1, 2]


def test_a_sequence_of_settings_is_promised_as_often_as_one() -> None:
    """Twenty settings, each with a little more loss: the chosen one breaks the bound in at most 5 % of draws."""
    rng = np.random.default_rng(3)
    risks = np.linspace(0, 0.08, 20)
    broken = 0
    for _ in range(500):
        threshold = rng.random(300)  # a question is lost by all settings from some place on
        count = promised(((threshold < risk).astype(float).tolist() for risk in risks), 0.03)
        broken += count > 0 and risks[count - 1] > 0.03
    assert broken / 500 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 500)
