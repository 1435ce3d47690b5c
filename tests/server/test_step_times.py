"""The seconds of a step, of which `cost.seconds_alone` is made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from waver.server.step_times import StepTimes


def answer(tokens: int, seconds: float) -> Any:
    """Return the meter of an answer of which one engine decoded so many tokens."""
    return SimpleNamespace(usage={"large": SimpleNamespace(decoded=tokens, seconds=seconds)})


def test_answers_count_by_their_tokens() -> None:
    """A hand-over of one token that waits for reading does not stand for the step of whole answers."""
    times = StepTimes()
    times.observe(answer(0, 1.0))
    assert times.step == {}, "nothing was decoded"
    times.observe(answer(1, 0.5))
    assert times.step["large"] == pytest.approx(0.5), "all that is known"
    times.observe(answer(99, 0.99))
    assert times.step["large"] == pytest.approx(0.0144, abs=1e-4)
    for _ in range(60):
        times.observe(answer(100, 2.0))
    assert times.step["large"] == pytest.approx(0.02, rel=0.02), "what is old is forgotten"
