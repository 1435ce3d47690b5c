"""Adapt a classifier to a stream of items without labels: select views, and follow the prior of labels (ADTE, arXiv
2602.11743)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from waver.entropy.debiased import (
    CONSTANT,
    LEAST,
    Array,
    LabelBank,
    Selected,
    debiased_entropy,
    orders,
    select_views,
    shannon,
    softmax,
)
from waver.training.adaptation.options import ClassifyRun


@dataclass
class Stream:
    """The state of a stream: the bank, and the orders as of the last estimate.

    `classify` takes the logits of one item's views `[views, labels]`; `Stream(labels, ClassifyRun("any", …))` works for
    any classifier.
    """

    labels: int
    how: ClassifyRun
    seen: int = 0
    frozen: bool = False
    """The prior stays as it is: it was estimated in a first pass."""
    bank: LabelBank = field(init=False)
    q: Array = field(init=False)
    prior: Array | None = None

    def __post_init__(self) -> None:
        self.bank = LabelBank(self.labels, self.how.slots, self.how.margin)
        self.q = np.full(self.labels, CONSTANT)

    def learn(self, logits: Array) -> None:
        """Take an item into the bank, and estimate the prior anew after every `every` items."""
        self.seen += 1
        if self.frozen:
            return
        self.bank.add(logits.mean(0))
        if self.seen % self.how.every == 0:
            self.estimate()

    def estimate(self, least: int | None = None) -> None:
        """Estimate the prior, if as many items have entered the bank as the warm-up asks for."""
        if self.bank.entered >= (self.how.warmup if least is None else least):
            self.prior = self.bank.prior()
            self.q = orders(self.prior, self.how.low, self.how.high)

    def freeze(self) -> None:
        """Keep the estimate as it is from now on, and begin again at the first item."""
        self.estimate(least=1)
        self.frozen, self.seen = True, 0

    def classify(self, logits: Array, measure: str | None = None) -> Selected:
        """Choose the label of an item by a measure, the run's own by default; the state stays as it is."""
        kind = measure or self.how.measure
        if self.how.adjust and self.prior is not None:
            logits = logits - np.log(np.clip(self.prior, LEAST, None))
        p = softmax(logits)
        if kind == "first":
            return select_views(p[:1], [0.0], 1.0)
        if kind == "all":
            return select_views(p, np.zeros(len(p)), 1.0)
        if kind == "shannon":
            return select_views(p, shannon(p), self.how.keep)
        return select_views(p, debiased_entropy(p, self.q if kind == "adte" else self.how.q), self.how.keep)

    def state(self) -> dict[str, Any]:
        """Return arrays that hold all of it."""
        prior = np.empty(0) if self.prior is None else self.prior
        flags = np.array([self.seen, int(self.frozen)])
        return {**self.bank.state(), "q": self.q, "prior": prior, "flags": flags}

    def restore(self, state: Any) -> None:
        """Take the state of another stream of this run."""
        self.bank.restore(state)
        self.q = np.array(state["q"])
        self.prior = np.array(state["prior"]) if len(state["prior"]) else None
        self.seen, self.frozen = int(state["flags"][0]), bool(state["flags"][1])
