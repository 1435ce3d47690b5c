"""The entropy router of MemGAS: numbers worked out by hand, and pairs of episodes of which questions name one."""

from __future__ import annotations

import numpy as np
import pytest

from waver.policies.remember.router import LEAST, entropies, grain_weights, rank, restart
from waver.retrieval.memory.graph import Floats, neighbours, walk

SIMILARITIES = np.array([[0.9, 0.3, 0.2], [0.6, 0.5, 0.4], [0.8, 0.75, 0.1], [0.5, 0.5, 0.5]]).T
PAIRS, DIMENSION, WORLDS, QUERIES = 20, 96, 2, 100


def released(entropy: Floats) -> Floats:
    """The weights of the research code."""
    out: Floats = (1 - entropy) / (1 - entropy).sum()
    return out


def test_by_hand() -> None:
    found = entropies(SIMILARITIES, 0.2)
    assert found == pytest.approx([0.313109, 1.020191, 0.758827, 1.098612], abs=1e-6)
    assert grain_weights(found, 3, "paper") == pytest.approx([0.498868, 0.153109, 0.205844, 0.142179], abs=1e-6)
    assert grain_weights(found, 3) == pytest.approx([0.652568, 0.065149, 0.282282, 0.000001], abs=1e-6)
    assert released(found) == pytest.approx([0.848789, -0.024950, 0.298017, -0.121855], abs=1e-6)


def test_the_research_code_s_weights_are_reversed_above_one_nat() -> None:
    entropy = np.array([1.2, 2.0, 2.5, 3.0])
    assert grain_weights(entropy, 40, "paper") == pytest.approx([0.403226, 0.241935, 0.193548, 0.161290], abs=1e-6)
    assert released(entropy) == pytest.approx([0.042553, 0.212766, 0.319149, 0.425532], abs=1e-6)
    assert (np.diff(grain_weights(entropy, 40)) < 0).all()


def test_one_episode_and_flat_grains() -> None:
    for rule in ("paper", "bounded"):
        assert grain_weights(np.zeros(4), 1, rule) == pytest.approx([0.25] * 4)  # type: ignore[arg-type]
    assert grain_weights(np.array([np.log(5)] * 4), 5) == pytest.approx([0.25] * 4)
    assert grain_weights(np.array([0.0, np.log(5)] * 2), 5)[1] == pytest.approx(LEAST / 2, rel=1e-3)


def test_walks_begin_at_the_highest_weighted_similarities() -> None:
    weights = np.array([0.5, 0.5, 0.0, 0.0])
    similarities = np.array([[0.9, 0.1, 1.0, 1.0], [0.3, -0.4, 1.0, 1.0]])
    assert restart(similarities, weights, 2) == pytest.approx([0.75, 0, 0, 0, 0.25, 0, 0, 0])
    assert restart(-similarities, np.full(4, 0.25), 1) == pytest.approx([0, 0, 0, 0, 0, 1, 0, 0])
    assert restart(np.full((2, 4), -1.0), weights, 2) == pytest.approx([1 / 8] * 8)
    assert restart(np.full((2, 4), np.nan), weights, 2) == pytest.approx([1 / 8] * 8)


class World:
    """Episodes in pairs that share a part, and questions that match one grain of one episode and never name it."""

    def __init__(self, seed: int) -> None:
        self._draw = np.random.default_rng(seed)
        self.themes = [self.unit() for _ in range(2 * PAIRS)]
        shared = [self.unit() for _ in range(PAIRS)]
        self.own = [[self.unit() for _ in range(4)] for _ in range(2 * PAIRS)]
        self.nodes = np.array(
            [[normal(0.3 * self.themes[i] + 0.75 * shared[i // 2] + 0.6 * self.own[i][g]) for g in range(4)]
             for i in range(2 * PAIRS)]
        )  # fmt: skip

    def unit(self) -> Floats:
        return normal(self._draw.standard_normal(DIMENSION))

    def links(self) -> np.ndarray:
        """Link each node with those of earlier episodes."""
        flat = self.nodes.reshape(-1, DIMENSION)
        pairs = [
            (4 * i + g, other)
            for i in range(1, 2 * PAIRS)
            for g in range(4)
            for other in neighbours(self.nodes[i, g], flat[: 4 * i])
        ]
        return np.array(pairs)

    def question(self) -> tuple[int, Floats]:
        i, g = int(self._draw.integers(2 * PAIRS)), int(self._draw.integers(4))
        return i, normal(0.3 * self.themes[i] + 0.6 * self.own[i][g] + 0.35 * self.unit())


def normal(vector: Floats) -> Floats:
    out: Floats = vector / np.linalg.norm(vector)
    return out


def test_the_router_finds_the_grain_and_links_find_the_mate() -> None:
    hits: dict[str, list[bool]] = {}
    both: dict[str, list[bool]] = {}
    for seed in range(WORLDS):
        world = World(seed)
        links, nothing = world.links(), np.zeros((0, 2), np.int64)
        for _ in range(QUERIES):
            i, question = world.question()
            similarities = world.nodes @ question
            entropy = entropies(similarities, 0.2)
            weightings = {
                "bounded": grain_weights(entropy, len(similarities)),
                "paper": grain_weights(entropy, len(similarities), "paper"),
                "equal": np.full(4, 0.25),
                "released": released(entropy),
            }
            gold = {i, i ^ 1}
            for name, weights in weightings.items():
                scores = walk(nothing, restart(similarities, weights, 15), 0.1).reshape(-1, 4).sum(axis=1)
                hits.setdefault(name, []).append(int(np.argmax(scores)) == i)
                both.setdefault(f"{name} alone", []).append(gold <= set(np.argsort(-scores)[:3].tolist()))
            for rule in ("bounded", "paper"):
                scores = rank(similarities, links, 0.2, 15, 0.5, rule).scores  # type: ignore[arg-type]
                both.setdefault(f"{rule} linked", []).append(gold <= set(np.argsort(-scores)[:3].tolist()))
    hit = {name: float(np.mean(found)) for name, found in hits.items()}
    recall = {name: float(np.mean(found)) for name, found in both.items()}
    assert hit["bounded"] > hit["paper"] > hit["equal"] > hit["released"], hit
    assert hit["bounded"] > 0.9
    assert recall["bounded linked"] >= 3 * recall["bounded alone"], recall
    assert recall["bounded linked"] > recall["paper linked"] > recall["paper alone"]
