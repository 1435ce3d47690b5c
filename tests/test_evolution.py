"""The search of BES: operators and scores by hand, and puzzles in which a model keeps to one style."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from waver.evolution import (
    Plan,
    Search,
    boltzmann,
    combine,
    common,
    crossover,
    delete,
    translocate,
)
from waver.goals import Goal, Verdict, joint, score

A, B = ("p", "a1", "a2", "a3"), ("p", "b1", "b2")
ITEMS, VALUES, MOST = 6, 4, 12
Claim = tuple[int, int]


def test_operators_by_hand() -> None:
    assert common(A, B) == 1
    assert combine(A, B) == ("p", "a1", "a2", "a3", "b1", "b2")
    assert delete(A, 2) == ("p", "a1", "a3")
    assert translocate(A, B, 1, 0) == ("p", "a1", "b1", "a3")
    assert crossover(A, B, 1, 2) == ("p", "a1", "b1", "b2")
    assert crossover(A, B, 0, 1) == ("p", "b2")


def test_scores_by_hand() -> None:
    tree = Goal(0, (Goal(1), Goal(2, (Goal(3), Goal(4), Goal(5)))))
    assert score(tree, [0, 1, 0, 1, 0, 0.5]) == pytest.approx(0.4725)
    assert score(tree, [1, 0, 0, 0, 0, 0]) == 1
    # A goal with a value between 0 and 1 may score less once it is split.
    assert score(Goal(0), [0.9]) == pytest.approx(0.9)
    assert score(Goal(0, (Goal(1), Goal(2))), [0.9, 0, 0.2]) == pytest.approx(0.34)


def test_joint_scores_by_hand() -> None:
    root = Goal(0, (Goal(1), Goal(2), Goal(3, (Goal(4), Goal(5)))))
    x = np.array([[0, 1, 0, 0, 0, 0]], float)
    y = np.array([[0, 0, 1, 0, 1, 0]], float)
    assert joint(root, x, y) == pytest.approx([0.833333], abs=1e-6)
    assert joint(root, x, x) == pytest.approx([0.333333], abs=1e-6)
    solved = np.array([[1, 0, 0, 0, 0, 0]], float)
    assert joint(root, np.concatenate([x, solved]), np.concatenate([y, x])) == pytest.approx([5 / 6, 1.0])


@pytest.mark.parametrize(
    ("tau", "expected"), [(1.5, [0.340657, 0.340657, 0.318687]), (0.3, [0.368117, 0.368117, 0.263767])]
)
def test_selection_by_hand(tau: float, expected: list[float]) -> None:
    assert boltzmann(np.array([0.6, 0.5 + 0.1, 0.5]), tau) == pytest.approx(expected, abs=1e-6)


def test_the_temperature_falls() -> None:
    plan = Plan(iterations=200)
    assert [plan.temperature(i) for i in (0, 99, 198)] == pytest.approx([2.0, 1.5, 1.0])
    assert math.isfinite(Plan(iterations=1).temperature(0))


@pytest.mark.parametrize(("goals", "candidates"), [(3, 21), (5, 24), (8, 26)])
def test_together_candidates_meet_what_none_meets_alone(goals: int, candidates: int) -> None:
    """m independent goals, each met with p = 0.2: O(log(m / delta) / p) candidates against 1 / p^m."""
    assert math.ceil(math.log(goals / 0.05) / 0.2) == candidates
    met = np.random.default_rng(goals).random((2000, candidates, goals)) < 0.2
    assert met.any(axis=1).all(axis=1).mean() > 0.95
    assert met.all(axis=2).any(axis=1).mean() < {3: 0.2, 5: 0.02, 8: 0.005}[goals]


class Items:
    """Items whose values are claimed one by one. A model is right about those of the first one's parity, and seldom
    about others; whoever finishes keeps the right one of contradicting claims with probability 0.9."""

    root = Goal(0, tuple(Goal(i) for i in range(1, ITEMS + 1)))

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"items:{seed}")
        self.right = [self.rng.uniform(0.5, 0.9) for _ in range(ITEMS)]
        self.calls = 0

    async def expand(self, steps: tuple[Claim, ...], count: int) -> tuple[tuple[Claim, ...], bool]:
        for _ in range(count):
            left = sorted(set(range(ITEMS)) - {item for item, _ in steps})
            if not left or len(steps) >= MOST:
                break
            self.calls += 1
            item = self.rng.choice(left)
            alike = not steps or steps[0][0] % 2 == item % 2
            value = (
                0 if self.rng.random() < self.right[item] * (1 if alike else 0.15) else self.rng.randrange(1, VALUES)
            )
            steps = (*steps, (item, value))
        return steps, False

    async def finish(self, steps: tuple[Claim, ...]) -> tuple[tuple[Claim, ...], bool]:
        self.calls += 1
        final = []
        for item in range(ITEMS):
            said = [value for each, value in steps if each == item]
            keeps = 0 in said and (set(said) == {0} or self.rng.random() < 0.9)
            final.append((item, 0 if keeps else next((value for value in said if value), 1)))
        return tuple(final), True

    def fits(self, steps: tuple[Claim, ...]) -> bool:
        return True

    def ended(self, steps: tuple[Claim, ...]) -> bool:
        return {item for item, _ in steps} == set(range(ITEMS))

    async def judge(self, steps: tuple[Claim, ...]) -> Verdict:
        met = [float((item, 0) in steps) for item in range(ITEMS)]
        return Verdict((float(len(steps) == ITEMS and all(met)), *met))


async def solved(seeds: int, **how: object) -> float:
    count = 0
    for seed in range(seeds):
        plan = Plan(iterations=100, longest=MOST, **how)  # type: ignore[arg-type]
        search = Search(Items(seed), plan, random.Random(seed))
        await search.run()
        count += search.best.done and search.best.verdict.solved
    return count / seeds


async def test_recombination_with_goals_leaves_the_style() -> None:
    rates = {
        "bes": await solved(40),
        "tree": await solved(40, method="tree"),
        "tree without goals": await solved(40, method="tree", use_goals=False),
        "bes without goals": await solved(40, use_goals=False),
        "best of n": await solved(40, method="best_of_n"),
    }
    assert rates["bes"] > 0.12, rates
    assert all(rates["bes"] >= 2 * rate for name, rate in rates.items() if name != "bes"), rates


async def test_a_search_is_repeatable_and_has_no_doubles() -> None:
    found = []
    for _ in range(2):
        search = Search(Items(3), Plan(iterations=40), random.Random(3))
        await search.run()
        found.append([(each.steps, each.how, each.parents) for each in search.nodes])
    assert found[0] == found[1]
    assert len({(each.steps, each.done) for each in search.nodes}) == len(search.nodes)
    assert all(parent < i for i, each in enumerate(search.nodes) for parent in each.parents)
