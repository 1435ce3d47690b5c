"""Teach classes in sessions with and without class-sensitive losses (Mamba-FSCIL, arXiv 2407.06136)."""

from __future__ import annotations

from dataclasses import replace

import torch

from waver.benchmarks.experiments import Found
from waver.benchmarks.maps import World
from waver.engines.selective import Projector, Shape, simplex
from waver.training.adaptation.fscil import Examples, Teaching, accuracies, gate_ratio, teach_base, teach_more

BASE, NOVEL, SESSIONS, SHOTS = 10, 3, 3, 5
"""Classes of the first session, new ones of each of the others, and examples of each of these."""
WEIGHTS = {
    "two branches": Teaching(suppression=0.0, separation=0.0),
    "and class losses": Teaching(),
}


def increments(seed: int) -> Found:
    """Learn ten classes, and then three times three more from five examples each; return accuracies at the end, and
    how open the second branch's gate is on base classes as a part of how open on new ones."""
    classes = BASE + SESSIONS * NOVEL
    world = World(seed, classes=classes)
    torch.manual_seed(seed)
    first = Projector(Shape(world.channels, 2, 2, world.channels, states=8, rank=8))
    classifier = simplex(world.channels, classes, torch.Generator().manual_seed(seed)).float()
    base, tests = world.draw(range(BASE), 80), world.draw(range(classes), 100)
    shots = [world.draw(range(BASE + i * NOVEL, BASE + (i + 1) * NOVEL), SHOTS) for i in range(SESSIONS)]
    teach_base(first, classifier, base, Teaching(), seed)
    kept = {name: value.clone() for name, value in first.state_dict().items()}
    found: Found = {"nearest mean": _nearest(base, shots, tests)}
    for name, how in WEIGHTS.items():
        torch.manual_seed(seed + 1)
        model = Projector(first.shape)
        model.load_state_dict(kept)
        before = base.means()
        for i, given in enumerate(shots):
            teach_more(model, classifier, given, before, BASE, replace(how), seed + i)
            before = before.joined(given.means())
        shares = accuracies(model, classifier, tests, classes, BASE)
        found[name] = {**shares, "gate ratio": gate_ratio(model, tests, BASE)}
    return found


def _nearest(base: Examples, shots: list[Examples], tests: Examples) -> dict[str, float]:
    """Return what the nearest mean map of a class gets right."""
    means = base.means()
    for given in shots:
        means = means.joined(given.means())
    distances = torch.cdist(tests.maps.flatten(1), means.maps.flatten(1))
    right = means.labels[distances.argmin(-1)] == tests.labels
    old = tests.labels < BASE
    parts = {"all": right, "base": right[old], "novel": right[~old]}
    return {name: float(each.float().mean()) for name, each in parts.items()} | {"gate ratio": float("nan")}
