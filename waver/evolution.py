"""Search for an answer by growing and recombining partial ones (BES, arXiv 2605.28814).

The constants are those of the released code for puzzles of knights and knaves.

An iteration expands one partial answer by 1 to 5 steps with the policy (probability 0.70), or makes one of what is
there, without the policy: combine (0.10), delete (0.05), translocate (0.075), crossover (0.075). With a, b two parents,
s the length of their longest common prefix in steps, A = a[s:] and B = b[s:], both not empty:

    combine      prefix + A + B
    delete       one parent of more than 2 steps without an interior one
    translocate  one step of A is replaced by one of B
    crossover    prefix + the first m of A + the last n of B, m in 0..len(A) - 1, n in 1..len(B)

A parent is drawn with weight exp(w / tau), w = 10 s + 1[no child] (delete: 10 s), a pair with exp(10 J / tau); tau
falls from 2 to 1 over the iterations.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np

from waver.goals import Goal, Values, Verdict, joint, score

Step = TypeVar("Step")
Method = Literal["bes", "tree", "best_of_n"]
SCALE, WRONG, SOLVED = 10.0, 0.01, 100.0
UNBOUNDED = 2**31
"""Steps of a whole answer."""
OPERATORS = (("combine", 0.10), ("delete", 0.15), ("translocate", 0.225), ("crossover", 0.30))
"""Operators with the upper bounds of one roll; above them all, expansion."""


@dataclass(frozen=True)
class Plan:
    """Options of a search. `longest`: most steps of an answer. `pairs`: most pairs that are compared (ours). `collect`:
    whole answers that are gathered before a right one ends the search."""

    method: Method = "bes"
    iterations: int = 200
    hot: float = 2.0
    cold: float = 1.0
    expand: int = 5
    longest: int = 12
    pairs: int = 400
    collect: int = 0
    use_goals: bool = True

    def temperature(self, iteration: int) -> float:
        """Return tau of an iteration."""
        return self.hot + (self.cold - self.hot) * min(iteration / max(self.iterations - 2, 1), 1.0)


@dataclass
class Node(Generic[Step]):
    """A partial or whole (`done`) answer: its steps, how it was made and of which nodes, and how it is judged."""

    steps: tuple[Step, ...]
    done: bool
    how: str
    parents: tuple[int, ...]
    verdict: Verdict
    score: float
    children: int = 0


class Problem(Protocol[Step]):
    """A question: what draws steps, and what judges them. Steps are compared with each other."""

    @property
    def root(self) -> Goal:
        """Return the goal of the whole answer."""

    async def expand(self, steps: tuple[Step, ...], count: int) -> tuple[tuple[Step, ...], bool]:
        """Draw up to `count` steps more; return all of them, and whether the answer is whole."""

    async def finish(self, steps: tuple[Step, ...]) -> tuple[tuple[Step, ...], bool]:
        """Bring an answer that may not go on to its end."""

    def fits(self, steps: tuple[Step, ...]) -> bool:
        """Return whether recombined steps may be an answer."""

    def ended(self, steps: tuple[Step, ...]) -> bool:
        """Return whether a partial answer may not go on."""

    async def judge(self, steps: tuple[Step, ...]) -> Verdict:
        """Tell which goals steps meet."""


@dataclass
class Search(Generic[Step]):
    """A search under way: `nodes` is all that was made so far, so that it can be ended at any time."""

    problem: Problem[Step]
    plan: Plan
    rng: random.Random
    nodes: list[Node[Step]] = field(default_factory=list)

    async def run(self) -> None:
        """Search until an answer is whole and right, or the iterations are spent."""
        await self._add((), False, "root", ())
        for iteration in range(self.plan.iterations):
            if await self.iterate(iteration):
                return

    @property
    def best(self) -> Node[Step]:
        """Return the best answer so far: a right one, else the whole one with the best score, else a partial one."""
        return max(self.nodes, key=lambda each: (each.score >= SOLVED, each.done, each.score, len(each.steps)))

    @property
    def whole(self) -> list[Node[Step]]:
        """Return the whole answers, the best first."""
        return sorted((each for each in self.nodes if each.done), key=lambda each: -each.score)

    async def iterate(self, iteration: int) -> bool:
        """Make one child, if it is new; return whether the search is over."""
        tau, before = self.plan.temperature(iteration), len(self.nodes)
        how = self._operator()
        if how != "expand":
            made = self._recombined(how, tau)
            if made is not None and self.problem.fits(steps := made[0][: self.plan.longest]):
                await self._add(steps, False, how, made[1])
        else:
            at = 0 if self.plan.method == "best_of_n" else self._single(tau)
            if at is None:
                return False
            count = UNBOUNDED if self.plan.method == "best_of_n" else self.rng.randint(1, self.plan.expand)
            steps, done = await self.problem.expand(self.nodes[at].steps, count)
            await self._add(steps, done, how, (at,))
        if len(self.nodes) == before:
            return False
        child = self.nodes[-1]
        if not child.done and self._ended(child):
            steps, done = await self.problem.finish(child.steps)
            await self._add(steps, done, "finish", (before,))
        return any(each.score >= SOLVED for each in self.nodes) and len(self.whole) >= self.plan.collect

    def _operator(self) -> str:
        if self.plan.method != "bes":
            return "expand"
        roll = self.rng.random()
        return next((name for name, bound in OPERATORS if roll < bound), "expand")

    def _ended(self, node: Node[Step]) -> bool:
        return len(node.steps) >= self.plan.longest or self.problem.ended(node.steps)

    async def _add(self, steps: tuple[Step, ...], done: bool, how: str, parents: tuple[int, ...]) -> None:
        """Take a child in, unless it is there already."""
        if any(each.done == done and each.steps == steps for each in self.nodes):
            return
        verdict = await self.problem.judge(steps)
        value = score(self.problem.root, verdict.values) if self.plan.use_goals else 0.0
        if verdict.wrong:
            value = min(value, WRONG)
        if done and verdict.solved:
            value = SOLVED
        self.nodes.append(Node(steps, done, how, parents, verdict, value))
        for parent in parents:
            self.nodes[parent].children += 1

    def _single(self, tau: float) -> int | None:
        """Draw a partial answer that may go on."""
        places = [i for i, each in enumerate(self.nodes) if not each.done and not self._ended(each)]
        return self._drawn(places, [SCALE * self.nodes[i].score + (not self.nodes[i].children) for i in places], tau)

    def _drawn(self, places: Sequence[int], weights: Sequence[float], tau: float) -> int | None:
        if not places:
            return None
        return self.rng.choices(places, boltzmann(np.array(weights), tau).tolist())[0]

    def _recombined(self, how: str, tau: float) -> tuple[tuple[Step, ...], tuple[int, ...]] | None:
        """Make the steps of a child by an operator, with its parents; None where it is not possible."""
        partial = [i for i, each in enumerate(self.nodes) if not each.done and each.steps]
        rng = self.rng
        if how == "delete":
            long = [i for i in partial if len(self.nodes[i].steps) > 2]
            at = self._drawn(long, [SCALE * self.nodes[i].score for i in long], tau)
            if at is None:
                return None
            steps = self.nodes[at].steps
            return delete(steps, rng.randint(1, len(steps) - 2)), (at,)
        pair = self._pair(partial, tau)
        if pair is None:
            return None
        a, b = (self.nodes[i].steps for i in pair)
        shared = common(a, b)
        own, other = len(a) - shared, len(b) - shared
        if not own or not other:
            return None
        if how == "combine":
            return combine(a, b), pair
        if how == "translocate":
            return translocate(a, b, rng.randrange(own), rng.randrange(other)), pair
        return crossover(a, b, rng.randrange(own), rng.randint(1, other)), pair

    def _pair(self, places: Sequence[int], tau: float) -> tuple[int, int] | None:
        """Draw two partial answers by what they meet together, in random order."""
        count = len(places)
        if count < 2:
            return None
        every = count * (count - 1) // 2
        if every <= self.plan.pairs:
            pairs = [(i, j) for i in range(count) for j in range(i)]
        else:
            pairs = [(i, j) for i, j in (self.rng.sample(range(count), 2) for _ in range(self.plan.pairs))]
        at = np.array(pairs)
        if self.plan.use_goals:
            values: Values = np.array([self.nodes[i].verdict.values for i in places])
            weights = SCALE * joint(self.problem.root, values[at[:, 0]], values[at[:, 1]])
        else:
            weights = np.zeros(len(pairs))
        i, j = self.rng.choices(pairs, boltzmann(weights, tau).tolist())[0]
        return (places[i], places[j]) if self.rng.random() < 0.5 else (places[j], places[i])


def boltzmann(weights: Values, tau: float) -> Values:
    """Return probabilities proportional to exp(w / tau)."""
    powers = np.exp((weights - weights.max()) / tau)
    found: Values = powers / powers.sum()
    return found


def common(a: Sequence[Step], b: Sequence[Step]) -> int:
    """Return the length of the longest common prefix, in steps."""
    shared = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        shared += 1
    return shared


def combine(a: tuple[Step, ...], b: tuple[Step, ...]) -> tuple[Step, ...]:
    return (*a, *b[common(a, b) :])


def delete(a: tuple[Step, ...], at: int) -> tuple[Step, ...]:
    return (*a[:at], *a[at + 1 :])


def translocate(a: tuple[Step, ...], b: tuple[Step, ...], at: int, taken: int) -> tuple[Step, ...]:
    """Replace step `at` of A by step `taken` of B."""
    shared = common(a, b)
    return (*a[: shared + at], b[shared + taken], *a[shared + at + 1 :])


def crossover(a: tuple[Step, ...], b: tuple[Step, ...], first: int, last: int) -> tuple[Step, ...]:
    """Follow the first so many steps of A by the last so many of B."""
    return (*a[: common(a, b) + first], *b[len(b) - last :])
