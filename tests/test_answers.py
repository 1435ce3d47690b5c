"""Answers are scored as their scorer says."""

from __future__ import annotations

import pytest

from waver.answers import SCORERS, names_only


@pytest.mark.parametrize(
    ("scorer", "text", "answer", "right"),
    [
        ("contains", "The river is the SORN.", "Sorn", True),
        ("contains", "The river is the Sornby.", "Sorn", False),
        ("contains", "It is 120 km.", "12", False),
        ("contains", "答案是北京。", "北京", True),
        ("contains", "New\n York", "new york", True),
        ("contains", "C++ it is", "C++", True),
        ("exact", " Sorn. ", "sorn", True),
        ("exact", "The Sorn", "sorn", False),
        ("number", "1 + 1,199.50 = 1,200.5", "1200.50", True),
        ("number", "3 apples, not 4", "3", False),
        ("number", "x-3 is -7", "-7", True),
        ("number", "none", "3", False),
    ],
)
def test_scorers(scorer: str, text: str, answer: str, right: bool) -> None:
    assert SCORERS[scorer](text, answer) == right


def test_an_empty_answer_is_nowhere() -> None:
    assert not SCORERS["contains"]("anything", " ")


def test_listing_all_answers_is_no_answer() -> None:
    birds = ("heron", "swan")
    assert names_only("It is the heron.", "heron", birds)
    assert not names_only("heron or swan", "heron", birds)
    assert not names_only("herons", "heron", birds)
