"""The cascade: the large engine answers again, from the start, where the small one's answer wavers."""

from __future__ import annotations

import pytest

from tests.policies.scripted import play, writers
from waver.policies.switch.cascade import Cascade

SURE, UNSURE = [0.0] * 9 + [0.9], [0.0] * 9 + [1.1]
LARGE = [0.0] * 10


@pytest.mark.parametrize(
    ("policy", "small", "expected"),
    [
        (Cascade(threshold=0.1), SURE, "S"),  # a mean of 0.09
        (Cascade(threshold=0.1), UNSURE, "L"),  # a mean of 0.11
        (Cascade(threshold=0.1), [0.1] * 10, "L"),  # as high as the threshold
        (Cascade(threshold=1.0, quantile=1.0), SURE, "S"),
        (Cascade(threshold=1.0, quantile=1.0), UNSURE, "L"),
        (Cascade(threshold=0.05, quantile=0.5), UNSURE, "S"),
    ],
)
async def test_who_answers(policy: Cascade, small: list[float], expected: str) -> None:
    steps, report = await play(policy, small, LARGE)
    assert writers(steps) == expected * 10
    assert [step.token for step in steps] == list(range(10)), "the second answer begins at the beginning"
    assert report.discarded == (10 if expected == "L" else 0)
    (decision,) = steps[0].decisions
    assert (decision.then, decision.of) == ("switch" if expected == "L" else "stay", "small")
    assert not any(step.decisions for step in steps[1:])
