"""Tool-Light's rules: scores of steps, pairs of each round, efficiency and necessity, and where a branch must begin."""

from __future__ import annotations

import math

import numpy as np
import pytest

from waver.training.tool_light import criteria
from waver.training.tool_light.branching import Branching, branch_places
from waver.training.tool_light.chains import Chain, Step
from waver.training.tool_light.criteria import Candidate, Choice
from waver.training.tool_light.entropies import Score, most_uncertain, score, top_entropy
from waver.training.tool_light.scores import efficiency, f1, necessity

PEAKED = [0.2, 0.4, 1.5, 0.9, 0.1, 0, 0.3, 0.2, 0.1, 0.3, *[0.05] * 10, *[0.6] * 10, *[0.1] * 25]


def test_a_step_is_scored_by_its_most_uncertain_opening() -> None:
    assert [score(PEAKED, (n,)).value for n in (10, 20, 30, 40, 50)] == pytest.approx([0.4, 0.225, 0.35, 0.2875, 0.25])
    found = score(PEAKED)
    assert found.value == pytest.approx(0.4)
    assert (found.window, found.peak) == (10, 2)
    assert sum(PEAKED) / len(PEAKED) == pytest.approx(0.236364, abs=1e-6)
    short = score([0.5, 0.7, 0.1])
    assert short.value == pytest.approx(0.433333, abs=1e-6)
    assert (short.window, short.peak) == (10, 1)
    scores = [Score(value, 10, 0) for value in (0.40, 0.39, 0.41, 0.12)]
    assert most_uncertain(scores, 2) == [2, 0]
    assert most_uncertain([Score(1.0, 10, 0)] * 3, 2) == [0, 1]


def test_entropies_over_the_most_likely_tokens() -> None:
    p = [0.6, 0.2, 0.1, 0.05, 0.03, 0.02]
    assert top_entropy(p, 6) == pytest.approx(1.191865, abs=1e-6)
    assert top_entropy(p, 3) == pytest.approx(0.858641, abs=1e-6)
    assert top_entropy(p, 3, renormalised=True) == pytest.approx(0.848686, abs=1e-6)


CHAINS = [
    Candidate(True, 2, 0.30, 300),
    Candidate(True, 1, 0.25, 260),
    Candidate(True, 1, 0.20, 400),
    Candidate(False, 3, 0.4, 500),
    Candidate(False, 1, 0.1, 100),
    Candidate(False, 4, 0.5, 700),
]


def test_pairs_of_the_first_round() -> None:
    assert criteria.first_round(CHAINS, "guided") == Choice(2, 5, "hard"), "one half is hard"
    assert criteria.first_round(CHAINS[:4], "guided") == Choice(2, 3, "easy")
    assert criteria.first_round([*CHAINS[:3], CHAINS[4]], "guided") is None, "no wrong chain has more calls"
    assert criteria.first_round(CHAINS, "vanilla") is None, "between the buckets"
    assert criteria.first_round([*CHAINS, CHAINS[3], CHAINS[3]], "vanilla") == Choice(1, 5, "hard")
    assert criteria.first_round(CHAINS[:4], "vanilla") == Choice(1, 3, "easy")
    assert criteria.first_round([*CHAINS[:3], CHAINS[4]], "vanilla") is None, "the wrong chain is short"


def test_the_reference_stands_in_where_nothing_is_right() -> None:
    wrong = CHAINS[3:]
    assert criteria.first_round(wrong, "guided") is None
    assert criteria.first_round(wrong, "guided", Candidate(True, 2, 0, 200)) == Choice(None, 2, "hard")
    assert criteria.first_round(wrong, "guided", Candidate(True, 4, 0, 200)) is None
    assert criteria.first_round(wrong, "vanilla", Candidate(True, 2, 0, 200)) is None


def test_pairs_of_self_evolution() -> None:
    assert not criteria.is_hard(CHAINS)
    assert criteria.evolved_round(CHAINS) == Choice(2, 5, "easy")
    assert criteria.evolved_round(CHAINS, hard=True) == Choice(2, 4, "hard")
    hard = [CHAINS[0], *CHAINS[3:]]
    assert criteria.is_hard(hard)
    assert criteria.evolved_round(hard) == Choice(0, 2, "hard")
    assert not criteria.is_hard([CHAINS[0], *CHAINS[3:5]]), "exactly half as many is easy"
    assert criteria.evolved_round(CHAINS[:3]) is None
    assert criteria.evolved_round(CHAINS[3:]) is None


def test_two_hard_questions_to_an_easy_one() -> None:
    for hard, easy, kept in (
        (100, 10, (20, 10)),
        (10, 100, (10, 5)),
        (20, 10, (20, 10)),
        (0, 7, (0, 7)),
        (7, 0, (7, 0)),
    ):
        found = criteria.balanced(["hard"] * hard, ["easy"] * easy, seed=1)
        assert (found.count("hard"), found.count("easy")) == kept
    kinds = criteria.kinds(100, 0.65, seed=1)
    assert kinds.count("vanilla") == 65
    assert kinds == criteria.kinds(100, 0.65, seed=1) != criteria.kinds(100, 0.65, seed=2)


def test_efficiency_and_necessity() -> None:
    marks = [[1, 1, 0, 1], [1, 0, 1, 1], [0, 0, 1, 1]]
    calls = [[2, 4, 1, 1], [3, 1, 2, 0], [1, 2, 2, 3]]
    both = list(zip(marks, calls, strict=True))
    assert [efficiency(m, t) for m, t in both] == pytest.approx([0.4375, 0.4583, 0.2083], abs=1e-4)
    assert [efficiency(m, t, skip_uncalled=True) for m, t in both] == pytest.approx([0.4375, 0.2778, 0.2083], abs=1e-4)
    raw, scaled = necessity(marks, calls)
    assert raw == [0.5, 0.25, -0.25]
    assert scaled == pytest.approx([1, 2 / 3, 0])
    assert f1("The Red house", "red House!") == 1
    assert f1("red barn", "red house") == 0.5
    assert f1("", "red") == 0


def chain(*entropies: list[float]) -> Chain:
    return Chain(tuple(Step(tuple(range(len(each))), tuple(each)) for each in entropies), 0, "", None)


def test_a_short_chain_is_branched_more_often_where_it_can_be() -> None:
    assert branch_places(chain([0.1], [0.9], [0.5], [0.7]), Branching()) == [1, 3, 2] * 3
    assert branch_places(chain([0.1], [0.9]), Branching()) == [1, 0, 1, 0, 1, 0, 1, 0, 1]


STEPS, LONG, CHOICES, QUIET = 6, 30, 4, 0.02


def entropy(p: np.ndarray) -> float:
    return float(-(p * np.log(p)).sum())


def unique_per_token(rng: np.random.Generator, worlds: int) -> dict[str, float]:
    """Count different chains per 1000 generated tokens. A step is decided at one of its first ten tokens, which carries
    the entropy of the decision; most steps are nearly certain."""
    unique, spent = (
        dict.fromkeys(("plain", "before", "after", "random"), 0),
        dict.fromkeys(("plain", "before", "after", "random"), 0),
    )
    for _ in range(worlds):
        forks = rng.random(STEPS) < 0.35
        odds = [rng.dirichlet(np.full(CHOICES, 5.0 if fork else 0.03)) * (1 - 1e-12) + 2.5e-13 for fork in forks]
        at = rng.integers(0, 10, STEPS)

        def draw(begun: tuple[int, ...], odds: list[np.ndarray] = odds) -> tuple[int, ...]:
            rest = [int(rng.choice(CHOICES, p=odds[i] / odds[i].sum())) for i in range(len(begun), STEPS)]
            return (*begun, *rest)

        plain = [draw(()) for _ in range(10)]
        unique["plain"] += len(set(plain))
        spent["plain"] += 10 * STEPS * LONG
        main = draw(())
        entropies = [[entropy(odds[i]) if t == at[i] else QUIET for t in range(LONG)] for i in range(STEPS)]
        scores = [score(each, (10, 20, 30)) for each in entropies]
        picked = most_uncertain(scores, 3)
        anywhere = [int(place) for place in rng.choice(STEPS, 3, replace=False)]
        for name, places in (("before", picked), ("random", anywhere)):
            found = [main, *(draw(main[:place]) for place in places for _ in range(3))]
            unique[name] += len(set(found))
            spent[name] += STEPS * LONG + 3 * sum((STEPS - place) * LONG for place in places)
        found = [main]
        for place in picked:
            kept = main[: place + 1] if at[place] < scores[place].window else main[:place]
            found += [draw(kept) for _ in range(3)]
            spent["after"] += 3 * ((STEPS - place) * LONG - scores[place].window)
        unique["after"] += len(set(found))
        spent["after"] += STEPS * LONG
    return {name: 1000 * unique[name] / spent[name] for name in unique}


def test_branches_must_begin_before_the_decision() -> None:
    found = unique_per_token(np.random.default_rng(0), 300)
    assert found["before"] > 1.2 * found["plain"]
    assert found["before"] > found["random"]
    assert found["after"] < 1.1 * found["plain"], "the window holds the decision that should be drawn anew"
    assert math.isclose(found["plain"], 4.08, rel_tol=0.15)
