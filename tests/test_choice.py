"""Rules that choose among runs, and what answers are compared by."""

from __future__ import annotations

from statistics import fmean

import pytest

from waver.choice import Candidate, choose, early_stop, plurality
from waver.policies.select.final_answer import Form, final_answer

P, RIGHT = (0.4, 0.9, 0.7, 0.2), (False, True, True, False)
RUNS = [
    Candidate(key, entropy, p, right)
    for key, entropy, p, right in zip("wrrx", (0.3, 0.5, 0.2, 0.4), P, RIGHT, strict=True)
]


@pytest.mark.parametrize(("k", "chance", "judge"), [(1, 0.0, False), (2, 0.5, True), (3, 2 / 3, True), (4, 0.5, True)])
def test_best_of_k(k: int, chance: float, judge: bool) -> None:
    assert RIGHT[choose(RUNS[:k], "judge").place] is judge
    drawn = [RIGHT[choose(RUNS[:k], "random", seed).place] for seed in range(600)]
    assert fmean(drawn) == pytest.approx(chance, abs=0.06)
    assert RIGHT[choose(RUNS[:k], "oracle").place] is any(RIGHT[:k])


def test_early_stop() -> None:
    assert early_stop(P, 0.5) == 1
    assert early_stop(P, 0.95) == 3, "the last where none reaches it"


def test_a_vote_is_a_plurality_of_answers() -> None:
    assert plurality(["w", "r", "r", "x"]) == [[1, 2]]
    assert plurality(["b", "a", None, "a", "b"]) == [[0, 4], [1, 3]]
    assert plurality([None, None]) == []
    assert choose(RUNS, "vote").place == 1
    assert choose(RUNS[:2], "vote").place == 0, "the answer seen first where votes are level"
    assert choose([Candidate(None, 1.0), Candidate(None, 0.5)], "vote").place == 0


def test_auto_votes_first_and_then_judges() -> None:
    assert (choose(RUNS, "auto").place, choose(RUNS, "auto").by) == (1, "vote")
    assert choose(RUNS[:2], "auto") == choose(RUNS[:2], "judge"), "level votes"
    blind = [Candidate(each.key, each.entropy) for each in RUNS[:2]]
    assert (choose(blind, "auto").place, choose(blind, "auto").by) == (0, "min_entropy")
    free = [Candidate(None, 0.3, 0.1), Candidate(None, 0.9, 0.8)]
    assert (choose(free, "auto").place, choose(free, "auto").by) == (1, "judge")
    assert choose(RUNS, "min_entropy").place == 2
    with pytest.raises(ValueError, match="probabilities"):
        choose(blind, "judge")
    with pytest.raises(ValueError, match="nothing"):
        choose([], "vote")


@pytest.mark.parametrize(
    ("text", "form", "key"),
    [
        ("so \\boxed{1} or \\boxed{ \\frac{1}{2} }.", "auto", "\\frac{1}{2}"),
        ("so \\boxed{unclosed", "boxed", None),
        ("\\boxed{}", "boxed", None),
        ("First 3 steps.\nThe sum is 1,234.50 then.", "auto", "1234.5"),
        ("There are 3 reasons.\nThey all matter a great deal to those of us who have to live with them.", "auto", None),
        ("3 is not\nthe Last", "number", "3"),
        ("  The  Moon. ", "auto", "the moon"),
        ("100", "auto", "100"),
        ("The Moon", "none", None),
        ("The Moon", "number", None),
        ("", "auto", None),
    ],
)
def test_final_answers(text: str, form: Form, key: str | None) -> None:
    found = final_answer(text, form)
    assert (None if found is None else found.key) == key
    if found is not None:
        assert text[found.start : found.end].strip()
