"""Reference numbers: trace entropy, labels, the oracle; and thresholds that are suggested."""

from __future__ import annotations

import math

import pytest
import torch

from waver.entropy import shannon_entropy
from waver.training.probe.labels import (
    CLASSES,
    EASY,
    HARD,
    NORMAL,
    PLAIN,
    Answers,
    Thresholds,
    Trace,
    cheapest_right,
    median_beta,
    oracle,
    paper,
    solved_beta,
    strict_easy,
)

PAPER = Thresholds()


def told(right: float, entropy: float = 0.0, tokens: float = 10.0) -> Answers:
    return Answers(right, tokens, entropy, 0.0)


def test_entropies_are_of_the_whole_vocabulary() -> None:
    """The paper's code renormalises the largest probabilities; ours are those of a step, over all of them."""
    shares = torch.tensor([0.6, 0.2, 0.1, 0.05, 0.03, 0.02])
    assert float(shannon_entropy(shares.log())) == pytest.approx(1.1918653, abs=1e-6)
    assert float(shannon_entropy(shares[:4].log())) == pytest.approx(1.0102099, abs=1e-6)
    assert float(shannon_entropy(torch.tensor([0.75, 0.25]).log())) == pytest.approx(0.5623351, abs=1e-6)


def test_each_answer_weighs_the_same() -> None:
    of = Answers.of([Trace(True, 10, 0.2, False), Trace(False, 1000, 0.6, True)])
    assert (of.right, of.tokens, of.entropy, of.cut) == (0.5, 505, pytest.approx(0.4), 0.5)


@pytest.mark.parametrize(
    ("right", "entropy", "label"),
    [
        (1.0, 0.30, NORMAL),
        (0.9, 0.349, NORMAL),
        (0.9, 0.35, EASY),
        (0.8, 0.2, EASY),
        (0.6, 0.5, EASY),
        (0.5, 0.1, HARD),
        (0.0, 0.6, HARD),
        (1.0, 0.6, EASY),
    ],
)
def test_labels_of_the_card(right: float, entropy: float, label: int) -> None:
    asked = {PLAIN: told(right, entropy)}
    assert paper(asked, PAPER) == label
    middling = 0.6 <= right <= 0.85
    assert strict_easy(asked, PAPER) == (NORMAL if middling else label)


def test_the_oracle_takes_the_cheapest_right_strategy() -> None:
    runs = {"easy": told(0, tokens=300), "normal": told(1, tokens=2400), "hard": told(1, tokens=900)}
    assert oracle(runs) == CLASSES.index("hard")
    assert cheapest_right([told(0, tokens=300), told(0, tokens=2400), told(0, tokens=200)]) == HARD
    assert cheapest_right([told(0.9, tokens=300), told(1, tokens=2400), told(0.9, tokens=200)]) == NORMAL


def test_beta_is_the_median_of_what_is_answered_rightly() -> None:
    asked = [{PLAIN: told(right, entropy)} for right, entropy in ((1, 0.1), (0.9, 0.2), (1, 0.6), (0.8, 5.0))]
    assert median_beta(asked) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="too hard for this model"):
        median_beta(asked[3:])


def test_beta_can_follow_what_the_easy_strategy_solves() -> None:
    def asked(entropy: float, easy: float, right: float = 1.0) -> dict[str, Answers]:
        return {PLAIN: told(right, entropy), "easy": told(easy), "normal": told(1.0), "hard": told(1.0)}

    solved = [asked(0.9, 1.0), asked(0.8, 1.0), asked(0.7, 1.0), asked(0.2, 0.0), asked(0.95, 0.0, right=0.3)]
    assert solved_beta(solved, PAPER.alpha) == 0.7
    unsolved = [asked(0.9, 0.0), asked(0.8, 1.0)]
    beta = solved_beta(unsolved, PAPER.alpha)
    assert beta > 0.9
    assert math.isfinite(beta)
    assert {strict_easy(each, Thresholds(beta=beta)) for each in unsolved} == {NORMAL}
