"""Few-shot increments: the losses against figures worked out by hand, and what the class-sensitive losses do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from waver.benchmarks.maps import World
from waver.engines.selective import Projector, Shape, Trace, centred_simplex, simplex
from waver.training.adaptation.fscil import (
    SCALE,
    Examples,
    Teaching,
    accuracies,
    class_losses,
    dot_regression,
    gate_ratio,
    separation_loss,
    shares,
    suppression_loss,
    teach_base,
    teach_more,
)

F64 = torch.float64
W = centred_simplex(torch.eye(3, dtype=F64))


def test_classification_loss() -> None:
    features = torch.tensor([[3.0, 0, 0], [1, 1, 0]], dtype=F64)
    found = float(dot_regression(features, torch.tensor([0, 1]), W))
    assert found == pytest.approx(0.13491414, abs=1e-8)
    assert SCALE * found == pytest.approx(1.34914142, abs=1e-8)
    features = torch.tensor([[3.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=F64)
    labels = torch.tensor([0, 0, 0, 1])
    assert float(dot_regression(features, labels, W, True)) == pytest.approx(0.29737162, abs=1e-8)
    assert float(dot_regression(features, labels, W)) == pytest.approx(0.31956167, abs=1e-8)


def test_class_losses() -> None:
    gates = torch.tensor([[1.0, 2.0], [2.0, 0.0]], dtype=F64)
    assert float(suppression_loss(gates, 1.0)) == pytest.approx(0.75)
    assert float(suppression_loss(gates, 100.0)) == pytest.approx(75.0)
    assert float(suppression_loss(gates[:0], 100.0)) == 0.0
    base = torch.tensor([[[1.0, 0, 1]], [[1, 0, 0]]], dtype=F64)
    novel = torch.tensor([[[0.0, 1, 1]]], dtype=F64)
    assert float(separation_loss(base, novel, 1.0)) == pytest.approx(0.15811388, abs=1e-8)
    assert float(separation_loss(base, base, 1.0)) == pytest.approx(0.5)

    both = torch.cat([base, novel])
    trace = Trace(torch.cat([gates, gates[:1]])[:, None], both, both, both)
    how = Teaching(suppression=2.0, encouragement=0.5, separation=0.1)
    new = torch.tensor([False, False, True])
    expected = 2 * 0.75 - 0.5 * 5**0.5 / 2 + 3 * 0.1 * 0.15811388
    assert float(class_losses(trace, new, how)) == pytest.approx(expected)
    assert float(class_losses(trace, ~(new | True), how)) == pytest.approx(2 * 14**0.5 / 6), "without separation"


def test_means_and_shares() -> None:
    given = Examples(torch.tensor([[[1.0]], [[3.0]], [[5.0]]]), torch.tensor([4, 4, 2]))
    assert given.means().maps.flatten().tolist() == [5.0, 2.0]
    assert given.means().labels.tolist() == [2, 4]
    assert given.joined(given.means(), 2).labels.tolist() == [4, 4, 2, 2, 4, 2, 4]
    right = torch.tensor([True, False, True, True])
    labels = torch.tensor([0, 0, 1, 2])
    assert shares(right, labels, 2) == {"all": 0.75, "base": pytest.approx(2 / 3), "novel": 1.0}
    assert "novel" not in shares(right, labels, 3)


def test_new_classes_are_learned_and_old_ones_kept() -> None:
    """Ten classes, then three more from five examples each."""
    world = World(0, classes=13)
    torch.manual_seed(0)
    model = Projector(Shape(24, 2, 2, 24, states=8, rank=8))
    classifier = simplex(24, 19, torch.Generator().manual_seed(0)).float()
    how = Teaching(base_steps=80, steps=60)
    base, tests = world.draw(range(10), 80), world.draw(range(13), 40)
    ticks: list[int] = []
    teach_base(model, classifier, base, how, 1, lambda: ticks.append(1))
    assert len(ticks) == 80
    old = Examples(tests.maps[tests.labels < 10], tests.labels[tests.labels < 10])
    assert accuracies(model, classifier, old, 10, 10)["base"] > 0.8
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    shots = world.draw(range(10, 13), 5)
    found, ratios = {}, {}
    for weight in (0.0, 10.0):
        torch.manual_seed(2)
        own = Projector(model.shape)
        own.load_state_dict(kept)
        teach_more(own, classifier, shots, base.means(), 10, replace(how, suppression=weight), 3)
        assert all(torch.equal(own.state_dict()[name], value) for name, value in kept.items()), "the base is kept"
        found[weight] = accuracies(own, classifier, tests, 13, 10)
        ratios[weight] = gate_ratio(own, tests, 10)
    assert ratios[10.0] < ratios[0.0] - 0.05, "suppression closes the gate on base classes"
    for each in found.values():
        assert each["novel"] > 0.5
        assert each["base"] > 0.65
