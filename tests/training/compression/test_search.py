"""The search by level switches, against the paper's figures, and the compression of single layers."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations

import pytest
import torch

from waver.training.compression.fitness import sequence_divergence
from waver.training.compression.layers import inverse_factor, pruned, quantised
from waver.training.compression.run import FAST, OFFSPRING, ROUNDS
from waver.training.compression.search import (
    Depth,
    Levels,
    Progress,
    Round,
    State,
    evolve,
    first_bits,
    mutate,
    offspring,
    sparsity_levels,
    switches,
    tokens_of_a_generation,
)


def test_switches_and_generations() -> None:
    exact = Counter(min(a, b) for a in (1, 2, 3) for b in (1, 2, 3))
    assert exact == {1: 5, 2: 3, 3: 1}
    rng = random.Random(0)
    drawn = Counter(switches(rng) for _ in range(9000))
    assert {f: drawn[f] / 1000 for f in exact} == pytest.approx(dict(exact), rel=0.1)
    assert [Depth(32, k).generations for k in (4, 8, 12, 16)] == [74, 128, 160, 170]


def test_levels_of_sparsity() -> None:
    for weights, ends, shares in (
        (4096 * 4096, (-8, 5), (0.223163, 0.998023)),
        (14336 * 4096, (-8, 8), (0.563761, 0.836239)),
        (1024 * 4096, (-2, 1), (0.223163, 0.938419)),
    ):
        levels = sparsity_levels(0.7, weights, 1_000_000)
        assert (levels[0], levels[-1]) == ends
        assert [0.7 + level * 1e6 / weights for level in ends] == pytest.approx(shares, abs=1e-6)
    assert pytest.approx(0.059605, abs=1e-6) == 1e6 / 4096**2


def test_divergence() -> None:
    dense = torch.tensor([[2.0, 0, -1], [0, 1, 0], [3, 3, 0]], dtype=torch.float64)
    compressed = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 9]], dtype=torch.float64)
    assert sequence_divergence(dense, compressed) == pytest.approx(0.15333389, abs=5e-8)


def test_tokens_of_a_generation() -> None:
    found = {kind: tokens_of_a_generation(ROUNDS[kind], OFFSPRING[kind]) for kind in ROUNDS}  # type: ignore[index]
    assert found == {"depth": (163_840, 35), "sparsity": (458_752, 75), "bits": (1_179_648, 149)}
    assert tokens_of_a_generation(FAST, 16) == (16 * 512 + 2 * 8192, 18)


def test_mutations_keep_the_budget() -> None:
    rng = random.Random(1)
    for space in (Depth(12, 5), Depth(12, 5, whole=True)):
        state = space.random(rng)
        for _ in range(1000):
            after = mutate(space, state, rng)
            assert (sum(after[:12]), sum(after[12:])) == (5, 5)
            assert not space.whole or after[:12] == after[12:]
            state = after
    groups = (0, 0, 0, 1, 1)
    levels = Levels((-2, -1, 0, -3, -3), (2, 1, 3, 3, 3), groups)
    state = (0, 0, 0, 0, 0)
    seen = set()
    for _ in range(1000):
        state = mutate(levels, state, rng)
        seen.add(state)
        assert sum(state[:3]) == sum(state[3:]) == 0
        assert all(a <= x <= b for a, x, b in zip(levels.low, state, levels.high, strict=True))
    assert len(seen) > 20
    assert Levels((0, 0), (1, 1), (0, 1)).switch((0, 0), rng) is None
    assert Depth(2, 1).switch((1, 1, 0, 0), rng) is None


def test_offspring_differ() -> None:
    rng = random.Random(2)
    space = Depth(8, 3)
    parent = space.random(rng)
    found = offspring(space, parent, 16, rng)
    assert len(set(found)) == 16
    assert parent not in found
    assert len(offspring(Depth(2, 1, whole=True), (0, 1, 0, 1), 16, rng)) == 1, "a small space has no more"


def test_first_bits() -> None:
    rng = random.Random(3)
    assert first_bits(3, [4, 4, 8], 2, 6, rng) == (3, 3, 3)
    bits = first_bits(2.5, [4, 4, 8, 16], 2, 6, rng)
    assert sum(b * n for b, n in zip(bits, [4, 4, 8, 16], strict=True)) <= 2.5 * 32
    assert set(bits) == {2, 3}


def test_a_search_finds_a_good_state_of_a_landscape_that_does_not_add_up() -> None:
    """Remove five of twelve blocks, scored with interactions, and with more noise on smaller minibatches:
    the best of all 792 states, or one of the first 16, at a small part of the evaluations."""
    rng = random.Random(4)
    single = [rng.random() for _ in range(12)]
    pair = {both: rng.gauss(0, 0.25) for both in combinations(range(12), 2)}

    def true(state: State) -> float:
        gone = [i for i in range(12) if state[i]]
        return sum(single[i] for i in gone) + sum(pair[both] for both in combinations(gone, 2))

    sizes: list[int] = []

    def score(states: list[State], tokens: int, own: random.Random) -> list[float]:
        sizes.append(len(states))
        return [true(state) + own.gauss(0, 2 / tokens**0.5) for state in states]

    space = Depth(12, 5, whole=True)
    every = sorted(true(tuple(int(i in own) for i in range(12)) * 2) for own in combinations(range(12), 5))
    assert len(every) == 792
    progress = Progress(space.random(rng), rng=random.Random(5))
    rounds = (Round(2, 128), Round(1, 2048))
    for _ in evolve(space, progress, score, rounds, space.generations, 16):  # type: ignore[arg-type]
        pass
    assert space.generations == progress.generation == 23
    assert sizes == [16, 3] * 23, "the parent is scored again in the last round"
    assert progress.tokens == 23 * (16 * 128 + 3 * 2048) < 0.12 * 792 * 2048
    assert every.index(true(progress.parent)) < 16


def test_a_layer_is_pruned_and_rounded_with_compensation() -> None:
    torch.manual_seed(0)
    mix = torch.randn(48, 48) / 4 + torch.eye(48)
    x = torch.randn(512, 48) @ mix
    weight = torch.randn(20, 48)
    factor = inverse_factor(x.T @ x)

    def loss(made: torch.Tensor) -> float:
        return float(((weight - made) @ x.T).square().mean())

    for count in (0, 100, 480, 900):
        made = pruned(weight, factor, count)
        assert int((made == 0).sum()) == count
    plain = weight.clone()
    plain.flatten()[weight.abs().flatten().argsort()[:480]] = 0
    made = pruned(weight, factor, 480)
    assert loss(made) < loss(plain)
    assert loss(made) < loss(weight.masked_fill(made == 0, 0.0)), "what is left makes up for it"
    wide = torch.randn(4, 300)
    assert int((pruned(wide, torch.eye(300, dtype=torch.float64), 601) == 0).sum()) == 601, "over several blocks"
    losses = [loss(quantised(weight, factor, bits)) for bits in (2, 3, 4, 6)]
    assert losses == sorted(losses, reverse=True)
    nearest = quantised(weight, torch.eye(48, dtype=torch.float64), 3)
    assert losses[1] < 0.95 * loss(nearest), "rounding to the nearest makes up for nothing"
    assert all(len(row.unique()) <= 8 for row in quantised(weight, factor, 3))
    dead = x.clone()
    dead[:, 0] = 0
    assert torch.isfinite(pruned(weight, inverse_factor(dead.T @ dead), 480)).all()
