"""Choose the most confident of several views of one item by an entropy that is debiased (ADTE, arXiv 2602.11743).

A view is a probability vector over a closed set of labels. A model that prefers some labels is confidently wrong in
their favour, so that Shannon entropy keeps the wrong views. ADTE gives every label an order q of its own, from how
often the model predicts it: `H(p) = Σ_l p_l^q_l / (1 - q_l)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
LEAST = 1e-12
"""Probabilities are at least this before a power or a logarithm."""
CONSTANT = 0.1
"""Order of every label where nothing is known about the labels yet."""
LOW, HIGH = 0.01, 0.9
"""The paper's interval of orders; the weight 1 / (1 - q) explodes towards 1."""
KEPT = 0.1
"""The paper's share of views that are kept."""


def debiased_entropy(p: ArrayLike, q: ArrayLike) -> Array:
    """Compute Σ_l p_l^q_l / (1 - q_l) of probabilities `[..., labels]` with orders `[labels]` or one order below 1.

    Values rank views of one item only: those of other orders are on another scale. With one order for all labels it is
    the Tsallis entropy plus 1 / (1 - q).

    Raises:
        ValueError: an order is not in [0, 1).
    """
    orders = np.asarray(q, np.float64)
    if not ((orders >= 0) & (orders < 1)).all():
        raise ValueError("orders are at least 0 and below 1")
    clamped = np.clip(np.asarray(p, np.float64), LEAST, None)
    return np.asarray((clamped**orders / (1 - orders)).sum(-1), np.float64)


def shannon(p: ArrayLike) -> Array:
    """Compute -Σ p ln p of probabilities `[..., labels]`, in nats: the limit of order 1."""
    clamped = np.clip(np.asarray(p, np.float64), LEAST, None)
    return np.asarray(-(clamped * np.log(clamped)).sum(-1), np.float64)


def orders(prior: ArrayLike, low: float = LOW, high: float = HIGH) -> Array:
    """Scale ln prior `[labels]` to [low, high]: frequent labels get orders near `high`, rare ones near `low`; all get
    `low` where all are alike.

    The paper's printed formula has the other sign, which the released code and its results contradict.
    """
    logs = np.log(np.clip(np.asarray(prior, np.float64), LEAST, None))
    width = logs.max() - logs.min()
    if width == 0:
        return np.full(logs.shape, low)
    return np.asarray(low + (high - low) * (logs - logs.min()) / width, np.float64)


def stationary_prior(matrix: ArrayLike, tolerance: float = 1e-4, most: int = 500) -> Array:
    """Solve p = M p for the prior of labels by iteration from the uniform vector, `[labels]`, summing to 1.

    Args:
        matrix: `[labels, labels]`; column j is the mean prediction for items whose predicted label is j, 0 where there
            are none. tolerance: largest change of an entry at which it ends. most: iterations at which it ends.
    """
    m = np.asarray(matrix, np.float64)
    p = np.full(len(m), 1 / len(m))
    for _ in range(most):
        after = m @ p
        after = after / max(after.sum(), LEAST)
        change, p = np.abs(after - p).max(), after
        if change < tolerance:
            break
    return np.asarray(p, np.float64)


def softmax(logits: ArrayLike) -> Array:
    """Compute the softmax over the last axis, in float64."""
    z = np.asarray(logits, np.float64)
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True), np.float64)


def margin(logits: ArrayLike) -> float:
    """Return the largest logit `[labels]` minus the second largest."""
    second, first = np.partition(np.asarray(logits, np.float64), -2)[-2:]
    return float(first - second)


@dataclass(frozen=True)
class Selected:
    """The views that were kept, the most confident first, their mean distribution `[labels]` and its largest label."""

    kept: tuple[int, ...]
    mean: Array
    label: int


def select_views(p: ArrayLike, scores: ArrayLike, share: float = KEPT) -> Selected:
    """Keep the `max(floor(share · views), 1)` views with the lowest scores, the first of those that are level, and
    average them.

    Args:
        p: `[views, labels]` probabilities. scores: `[views]` entropies.
    """
    views = np.asarray(p, np.float64)
    count = max(int(share * len(views) + 1e-9), 1)  # 0.29 · 100 is 28.999…
    kept = np.argsort(np.asarray(scores), kind="stable")[:count]
    mean = views[kept].mean(0)
    return Selected(tuple(int(i) for i in kept), np.asarray(mean, np.float64), int(mean.argmax()))


@dataclass
class LabelBank:
    """The surest predictions of each label, from which the prior of labels is estimated.

    An item enters under its predicted label if its margin reaches `least`, in the place of the smallest margin there:
    an empty slot, or else the weakest, even by a weaker item (as in the released code).
    """

    labels: int
    slots: int = 10
    least: float = 1.0
    entered: int = 0
    """Items that have entered so far."""
    margins: Array = field(default_factory=lambda: np.empty(0))
    """`[labels, slots]`, -1 where a slot is empty."""
    rows: Array = field(default_factory=lambda: np.empty(0))
    """`[labels, slots, labels]` predictions."""

    def __post_init__(self) -> None:
        if not self.margins.size:
            self.margins = np.full((self.labels, self.slots), -1.0)
            self.rows = np.zeros((self.labels, self.slots, self.labels))

    def add(self, logits: ArrayLike) -> tuple[int, int] | None:
        """Take the view-averaged logits `[labels]` of an item; returns its label and slot, None if it is not sure."""
        own = np.asarray(logits, np.float64)
        sure = margin(own)
        if not sure >= self.least:
            return None
        label = int(own.argmax())
        slot = int(self.margins[label].argmin())
        self.margins[label, slot], self.rows[label, slot] = sure, softmax(own)
        self.entered += 1
        return label, slot

    def matrix(self) -> Array:
        """Return the mean prediction of each label's items as columns, `[labels, labels]`; 0 where there are none."""
        full = self.margins >= 0
        count = full.sum(1)
        sums = (self.rows * full[..., None]).sum(1)
        return np.asarray((sums / np.maximum(count, 1)[:, None]).T, np.float64)

    def prior(self) -> Array:
        """Estimate the prior of labels, `[labels]`."""
        return stationary_prior(self.matrix())

    def orders(self, low: float = LOW, high: float = HIGH, warmup: int = 100) -> Array:
        """Return the order of each label; `CONSTANT` for all until `warmup` items have entered."""
        if self.entered < max(warmup, 1):
            return np.full(self.labels, CONSTANT)
        return orders(self.prior(), low, high)

    def state(self) -> dict[str, Any]:
        """Return arrays that hold all of it; `restore` takes them."""
        return {"margins": self.margins, "rows": self.rows, "entered": np.array(self.entered)}

    def restore(self, state: Any) -> None:
        """Take the state of another bank of this shape."""
        self.margins, self.rows = np.array(state["margins"]), np.array(state["rows"])
        self.entered = int(state["entered"])
