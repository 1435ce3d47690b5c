"""Estimate S and H by coding the training of a model: prequential and requential (arXiv 2601.03220, section 4).

A teacher is trained on each batch once; its losses before each update give the prequential length. With `requential`, a
student of the same start is trained on samples of the teacher's average alone, and the divergences of the two are what
it costs to send them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from waver.training.selection.epiplexity import lengths
from waver.training.selection.epiplexity.hull import Point

Batch = TypeVar("Batch")
MOST_HELD = 100
"""Updates of the student alone that one update of the teacher waits for at most."""


class Coding(Protocol[Batch]):
    """Reads a batch with a model, and draws batches from one."""

    def logits(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits `[coded, vocab]` and the tokens `[coded]` that stand there."""

    def redraw(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with its coded tokens drawn from the model at temperature 1; the context stays."""


@dataclass(frozen=True)
class Settings:
    """The course of one estimate.

    Args:
        warmup: steps over which the learning rate rises; then it is constant. ema: steps that the averages of the
            weights remember. clip: largest norm of a gradient. max_kl: divergence (nats per token) above which the
            teacher waits for the student. points: moments at which the curve is read. last: training losses that the
            shortcut averages.
    """

    warmup: int = 100
    ema: float = 50.0
    clip: float | None = 1.0
    max_kl: float | None = None
    requential: bool = False
    points: int = 8
    last: int = 200
    seed: int = 1


@dataclass(frozen=True)
class Reading:
    """The state of a run at one moment: tokens that the teacher and the student have seen, S and the held-out loss
    (nats per token) of both."""

    tokens: int
    s_prequential: float
    loss: float
    student_tokens: int = 0
    s_requential: float | None = None
    student_loss: float | None = None


@dataclass
class Estimate:
    """One run, losses and divergences in nats; `before` and `after` are each batch's mean losses before its update and
    under the final average."""

    parameters: int
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    messages: list[float] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)

    def points(self, run: str, described: int, requential: bool) -> list[Point]:
        """Return the readings as points of a hull, for a data set of `described` tokens."""
        found = []
        for each in self.readings:
            if requential and each.s_requential is not None and each.student_loss is not None:
                s, loss, trained = each.s_requential, each.student_loss, each.student_tokens
            else:
                s, loss, trained = each.s_prequential, each.loss, each.tokens
            flops = lengths.compute(self.parameters, trained, described)
            found.append(Point(run, flops, s, lengths.noise(loss, described)))
        return found


class Average:
    """Keeps the exponential moving average of a model's weights: decay exp(-1 / steps), at first (1 + t) / (10 + t), so
    that a short run's average is not its start."""

    def __init__(self, model: nn.Module, steps: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay, self._updates = math.exp(-1.0 / steps), 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        own: list[torch.Tensor] = list(self.model.parameters())
        new: list[torch.Tensor] = list(model.parameters())
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(own, new, 1.0 - decay)


class _Trained:
    """A model without dropout, so that its losses are code lengths; its average and its optimizer."""

    def __init__(
        self, model: nn.Module, optimizer: Callable[[nn.Module], torch.optim.Optimizer], settings: Settings
    ) -> None:
        self.model, self.average = model.eval(), Average(model, settings.ema)
        self._optimizer, self._settings = optimizer(model), settings
        self._rates = [group["lr"] for group in self._optimizer.param_groups]

    def update(self, loss: torch.Tensor, step: int) -> None:
        share = min(1.0, (step + 1) / max(1, self._settings.warmup))
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self._settings.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.clip)
        self._optimizer.step()
        self.average.update(self.model)


def estimate(
    model: nn.Module,
    coding: Coding[Batch],
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    settings: Settings,
    advance: Callable[[], None] = lambda: None,
) -> Estimate:
    """Train on every batch once, in order, and return what coding it took.

    Args:
        model: at its start; it is trained. optimizer: makes one, at the full learning rate. advance: called after each
            batch.

    Raises:
        ValueError: there are no batches, or the loss is not finite.
    """
    if not batches or not held_out:
        raise ValueError("an estimate needs batches to learn and batches held out")
    generator = torch.Generator().manual_seed(settings.seed)
    start = copy.deepcopy(model) if settings.requential else None
    teacher = _Trained(model, optimizer, settings)
    student = None if start is None else _Trained(start, optimizer, settings)
    made = Estimate(sum(weight.numel() for weight in model.parameters()))
    marks = {round(len(batches) * (i + 1) / settings.points) for i in range(settings.points)} | {len(batches)}
    student_tokens, last_kl = 0, 0.0
    for step, batch in enumerate(batches):
        logits, targets = coding.logits(model, batch)
        loss = cross_entropy(logits.float(), targets)
        if not math.isfinite(value := float(loss.detach())):
            raise ValueError(f"the loss is {value} at step {step + 1}: take a smaller learning rate")
        made.before.append(value)
        made.tokens.append(len(targets))
        if student is not None:
            for _ in range(MOST_HELD):
                if settings.max_kl is None or last_kl <= settings.max_kl:
                    break
                count, last_kl = _send(teacher.average.model, student, coding, batch, step, generator)
                made.messages.append(last_kl * count)
                student_tokens += count
        teacher.update(loss, step)
        if student is not None:
            count, last_kl = _send(teacher.average.model, student, coding, batch, step, generator)
            made.messages.append(last_kl * count)
            student_tokens += count
        if step + 1 in marks:
            _read(made, coding, batches[: step + 1], held_out, teacher, student, student_tokens)
        advance()
    return made


def _send(
    teacher: nn.Module,
    student: _Trained,
    coding: Coding[Batch],
    batch: Batch,
    step: int,
    generator: torch.Generator,
) -> tuple[int, float]:
    """Draw a batch from the teacher and train the student on it; returns its coded tokens, and the mean divergence
    before the student's update."""
    drawn = coding.redraw(teacher, batch, generator)
    with torch.no_grad():
        wanted, _ = coding.logits(teacher, drawn)
    logits, targets = coding.logits(student.model, drawn)
    kl = float(lengths.divergence(wanted, logits.detach()).double().mean())
    student.update(cross_entropy(logits.float(), targets), step)
    return len(targets), kl


def _read(
    made: Estimate,
    coding: Coding[Batch],
    seen: Sequence[Batch],
    held_out: Sequence[Batch],
    teacher: _Trained,
    student: _Trained | None,
    student_tokens: int,
) -> None:
    """Take a reading, with every batch so far re-scored by the teacher's average."""
    made.after = [mean_loss(teacher.average.model, coding, [batch]) for batch in seen]
    loss = mean_loss(teacher.average.model, coding, held_out)
    reading = Reading(sum(made.tokens), lengths.prequential(made.before, made.after, made.tokens), loss)
    if student is not None:
        own = mean_loss(student.average.model, coding, held_out)
        sent = lengths.requential(made.messages)
        reading = Reading(reading.tokens, reading.s_prequential, loss, student_tokens, sent, own)
    made.readings.append(reading)


@torch.no_grad()
def mean_loss(model: nn.Module, coding: Coding[Batch], batches: Sequence[Batch]) -> float:
    """Return the mean cross-entropy of the coded tokens, in nats."""
    total, count = 0.0, 0
    for batch in batches:
        logits, targets = coding.logits(model, batch)
        total += float(cross_entropy(logits.float(), targets, reduction="sum"))
        count += len(targets)
    return total / count
