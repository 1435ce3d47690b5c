"""Teach a projector classes in sessions: many examples at first, then a few of each new class (Mamba-FSCIL, arXiv
2407.06136).

An increment sees its own examples and, of every earlier class, the mean feature map alone. Two losses steer the second
branch: it is to be quiet on classes of the first session, and to scan them with other parameters than new ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from waver.engines.selective import Projector, Trace, cosines

SCALE = 10.0
"""Factor of the classification loss."""


@dataclass(frozen=True)
class Teaching:
    """Settings of the sessions. The paper has others for each data set; these are ours, for maps of some hundred
    channels on a CPU, within the ranges of the released configurations.

    `suppression`, `encouragement` and `separation` are w_s, w_n and w_sep. The first two multiply a norm divided by the
    number of its entries, so that their strength falls with the map's size as 1 / sqrt(size).
    """

    base_steps: int = 250
    base_batch: int = 64
    base_rate: float = 0.1
    momentum: float = 0.9
    steps: int = 80
    batch: int = 24
    rate: float = 2e-3
    decay: float = 5e-4
    clip: float = 5.0
    mixup: float = 0.0
    """Probability of mixing two examples of a batch, half and half, behind the projector."""
    suppression: float = 1.0
    encouragement: float = 0.0
    separation: float = 0.001
    novel_copies: int = 1
    base_copies: int = 1
    """Copies of the mean map of each earlier class among an increment's examples."""


def dot_regression(
    out: torch.Tensor, labels: torch.Tensor, classifier: torch.Tensor, balanced: bool = False
) -> torch.Tensor:
    """Compute 0.5 mean((f · w_y - 1)²) for the unit vectors f of `out` `[batch, width]`.

    `balanced` weighs each example by gamma / count of its label, where gamma is the batch's size over the number of its
    labels (targets of other lengths).
    """
    error = (normalize(out, dim=-1) * classifier[:, labels].T).sum(-1) - 1
    if balanced:
        counts = torch.bincount(labels)
        gamma = len(labels) / int((counts > 0).sum())
        error = error * torch.sqrt(gamma / counts[labels])
    return 0.5 * error.square().mean()


def suppression_loss(gates: torch.Tensor, weight: float) -> torch.Tensor:
    """Compute weight · ||gates||_F / number of entries; 0 for no rows."""
    return weight * gates.norm() / max(gates.numel(), 1) if len(gates) else gates.sum()


def separation_loss(base: torch.Tensor, novel: torch.Tensor, weight: float) -> torch.Tensor:
    """Compute weight · mean|I - S|, S the cosines among the mean rows of two groups `[examples, tokens, n]`: half of
    the absolute cosine of the two means."""
    means = torch.stack([each.flatten(0, -2).mean(0) for each in (base, novel)])
    directions = normalize(means, dim=-1)
    return weight * (torch.eye(2, dtype=means.dtype) - directions @ directions.T).abs().mean()


def class_losses(trace: Trace, novel: torch.Tensor, how: Teaching) -> torch.Tensor:
    """Sum the class-sensitive losses of a batch; `novel` `[batch]` is true where a label came after the first session.

    Both groups must be there for the separation.
    """
    total = suppression_loss(trace.gates[~novel], how.suppression)
    total = total - suppression_loss(trace.gates[novel], how.encouragement)
    if novel.any() and not novel.all():
        for values in (trace.step, trace.b, trace.c):
            total = total + separation_loss(values[~novel], values[novel], how.separation)
    return total


@dataclass(frozen=True)
class Examples:
    """Feature maps `[n, tokens, channels]` and their labels `[n]`."""

    maps: torch.Tensor
    labels: torch.Tensor

    def means(self) -> Examples:
        """Return the mean map of each class, in the order of the labels."""
        labels = torch.unique(self.labels)
        return Examples(torch.stack([self.maps[self.labels == label].mean(0) for label in labels]), labels)

    def joined(self, other: Examples, copies: int = 1) -> Examples:
        """Append others, as many times."""
        return Examples(
            torch.cat([self.maps, *[other.maps] * copies]), torch.cat([self.labels, *[other.labels] * copies])
        )


Tick = Callable[[], None]


def teach_base(
    model: Projector, classifier: torch.Tensor, given: Examples, how: Teaching, seed: int, tick: Tick = lambda: None
) -> None:
    """Run the first session: SGD on all examples."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), how.base_rate, momentum=how.momentum, weight_decay=how.decay)
    model.train()
    for _ in range(how.base_steps):
        rows = torch.randint(len(given.labels), (how.base_batch,), generator=generator)
        out, _ = model(given.maps[rows])
        loss = SCALE * dot_regression(out, given.labels[rows], classifier)
        _step(model, optimizer, loss, how.clip)
        tick()
    model.eval()


def teach_more(
    model: Projector,
    classifier: torch.Tensor,
    given: Examples,
    before: Examples,
    base_classes: int,
    how: Teaching,
    seed: int,
    tick: Tick = lambda: None,
) -> None:
    """Run an increment.

    Args:
        given: examples of new classes. before: the mean map of every earlier class. base_classes: labels below it are
            of the first session.
    """
    model.begin_increments()
    assert model.new is not None
    old = before.labels < base_classes
    pool = given.joined(Examples(before.maps[old], before.labels[old]), how.base_copies)
    pool = pool.joined(Examples(before.maps[~old], before.labels[~old]), how.novel_copies)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.new.parameters(), how.rate, weight_decay=how.decay)
    model.new.train()
    for _ in range(how.steps):
        rows = torch.randint(len(pool.labels), (how.batch,), generator=generator)
        labels = pool.labels[rows]
        out, trace = model(pool.maps[rows])
        if how.mixup and float(torch.rand((), generator=generator)) < how.mixup:
            other = torch.randperm(how.batch, generator=generator)
            mixed = 0.5 * (out + out[other])
            loss = 0.5 * sum(dot_regression(mixed, each, classifier, True) for each in (labels, labels[other]))
        else:
            loss = dot_regression(out, labels, classifier, True)
        loss = SCALE * loss + class_losses(trace, labels >= base_classes, how)
        _step(model.new, optimizer, loss, how.clip)
        tick()
    model.eval()


def _step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor, clip: float) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


@torch.inference_mode()
def accuracies(
    model: Projector, classifier: torch.Tensor, given: Examples, seen: int, base_classes: int
) -> dict[str, float]:
    """Return the share of examples that are right: of all, of classes of the first session, and of later ones."""
    right = cosines(model(given.maps)[0], classifier, seen).argmax(-1) == given.labels
    return shares(right, given.labels, base_classes)


def shares(right: torch.Tensor, labels: torch.Tensor, base_classes: int) -> dict[str, float]:
    """Split the share of what is right by the session of its class; groups without examples are left out."""
    groups = {"all": labels >= 0, "base": labels < base_classes, "novel": labels >= base_classes}
    return {name: float(right[each].float().mean()) for name, each in groups.items() if each.any()}


@torch.inference_mode()
def gate_ratio(model: Projector, given: Examples, base_classes: int) -> float:
    """Return the root mean square of the second branch's gates on base examples over that on novel ones."""
    assert model.new is not None
    gates = model.new(given.maps)[1].gates
    old = given.labels < base_classes
    return float(gates[old].square().mean().sqrt() / gates[~old].square().mean().sqrt())
