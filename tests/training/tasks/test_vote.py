"""The majority vote as a reward of TRL: groups by prompt, one way to write a number, and no vote of one."""

from __future__ import annotations

import pytest

pytest.importorskip("trl")

from waver.training.tasks.vote import answer_of, majority


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("That is 1,200.50 in all.", "1200.5"),
        (r"7 or 8, so \boxed{8.0}", "8"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("I do not know", None),
        ("It is 300", "300"),
    ],
)
def test_what_an_answer_is(said: str, answer: str | None) -> None:
    assert answer_of(said) == answer


def test_most_answers_of_a_prompt_are_rewarded() -> None:
    """Rows of two prompts that take turns, as texts and as messages; truth does not count."""
    ask = [[{"role": "user", "content": text}] for text in "ab"]
    said = ["3", "1", "3", "2", "4", "2"]
    completions = [[{"role": "assistant", "content": text}] for text in said]
    assert majority(ask * 3, completions, answer=["4", "1"] * 3) == [1, 0, 1, 1, 0, 1]
    assert majority(["q"] * 3, ["5", "no", "5.0"]) == [1, 0, 1]


def test_a_completion_alone_is_judged_by_the_truth() -> None:
    assert majority(["a", "b"], ["It is 4", "It is 5"], answer=["#### 4", "4"]) == [1, 0]
    assert majority(["a"], ["It is 4"]) == [None]
