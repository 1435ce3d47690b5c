"""The projector of `safeharbor`: numbers worked out by hand, and the dual gate against one threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from waver.engines.projector import Projector, distances, harm
from waver.policies.guard.gate import similarity, verdict
from waver.training.guard.fit import fit, loss, margins
from waver.training.guard.options import GuardFit

BENIGN, HARMFUL, Z = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([[0.6, 0.8]])


def test_by_hand() -> None:
    to_benign, to_harmful = distances(Z, BENIGN, HARMFUL)
    assert float(to_benign) == pytest.approx(0.894427, abs=1e-6)
    assert float(to_harmful) == pytest.approx(0.632456, abs=1e-6)
    assert float(harm(to_benign, to_harmful)) == pytest.approx(0.565121, abs=1e-6)
    for label, margin in ((1.0, 0.738028), (0.0, 1.261972)):
        found = margins(to_benign, to_harmful, torch.tensor([label]), 1.0)
        assert float(found) == pytest.approx(margin, abs=1e-6)
    value = loss(to_benign, to_harmful, torch.tensor([1.0]), 0.5, 1.0)
    assert float(value) == pytest.approx(0.939730, abs=1e-6)
    assert -math.log(0.565121) == pytest.approx(0.570716, abs=1e-5)


def test_nearness_to_benign_requests_is_the_cosine() -> None:
    assert similarity(np.array([[0.6, 0.8]]), np.array([[0.8, 0.6], [-1.0, 0.0]])) == pytest.approx([0.96])


@pytest.mark.parametrize(("harmful", "benign", "passes"), [(0.1, 0.9, True), (0.1, 0.5, False), (0.6, 0.9, False),
                                                          (0.9, 0.9, False)])  # fmt: skip
def test_the_gate_wants_both(harmful: float, benign: float, passes: bool) -> None:
    assert verdict(harmful, benign, 0.2, 0.75) == passes


class Toy:
    """Requests on 12 topics, with a direction of harm."""

    def __init__(self, seed: int) -> None:
        self._draw = np.random.default_rng(seed)
        self._topics = [self._unit() for _ in range(12)]
        self._harm = self._unit()

    def _unit(self) -> np.ndarray:
        vector = self._draw.standard_normal(32)
        found: np.ndarray = vector / np.linalg.norm(vector)
        return found

    def requests(self, strength: float, topics: range, count: int) -> np.ndarray:
        rows = []
        for i in range(count):
            row = self._topics[topics[i % len(topics)]] + strength * self._harm + 0.6 * self._unit()
            rows.append(row / np.linalg.norm(row))
        return np.array(rows)


@pytest.mark.parametrize("seed", [0, 1])
def test_unseen_attacks_do_not_take_the_fast_path(seed: int) -> None:
    toy = Toy(seed)
    kinds = {"harmful": (0.6, range(4), 600), "hard": (0.1, range(4), 150), "easy": (-0.1, range(4, 8), 600)}
    train = {name: toy.requests(*kind) for name, kind in kinds.items()}
    store = np.concatenate([train["hard"], train["easy"]])
    vectors = torch.tensor(np.concatenate([train["harmful"], store]), dtype=torch.float32)
    labels = torch.tensor([1.0] * 600 + [0.0] * len(store))
    projector = fit(vectors, labels, GuardFit(seed=seed))
    single, dual = {}, {}
    for name, (strength, topics) in {
        **{name: kind[:2] for name, kind in kinds.items()},
        "unseen": (0.3, range(8, 12)),
    }.items():
        fresh = toy.requests(strength, topics, 300)
        harms = projector.harm(torch.tensor(fresh, dtype=torch.float32)).numpy()
        near = similarity(fresh, store)
        single[name] = float(np.mean(harms < 0.2))
        dual[name] = float(np.mean([verdict(h, b, 0.2, 0.75) for h, b in zip(harms, near, strict=True)]))
    assert single["unseen"] > 0.1
    assert dual["unseen"] < 0.02
    assert dual["harmful"] < 0.02
    assert dual["hard"] >= single["hard"] - 0.02
    assert dual["easy"] >= single["easy"] - 0.02
    assert single["hard"] > 0.85


def test_it_is_read_as_it_was_written(tmp_path: object) -> None:
    vectors = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    labels = (vectors[:, 0] > 0).float()
    made = fit(vectors, labels, GuardFit(width=4, projected=2, steps=20))
    file = tmp_path / "projector.safetensors"  # type: ignore[operator]
    made.save(file)
    again = Projector.load(file)
    assert torch.equal(again.harm(vectors), made.harm(vectors))
    assert again.dimension == 8
    file.write_bytes(b"x")
    with pytest.raises(ValueError, match="no projector"):
        Projector.load(file)
    with pytest.raises(ValueError, match="both labels"):
        fit(vectors, torch.zeros(20), GuardFit())
