"""Every measure of uncertainty behind one interface: from evidence to a score that is higher where less is certain."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

import numpy as np

from waver.entropy.agreement import clusters, degree, disagreement, luq, predictive_entropy, semantic_entropy
from waver.entropy.inverse import DRAWS, Inverse, inverse
from waver.policies.uncertainty.evidence import Evidence, Need

T = TypeVar("T")

SAME = 0.9
"""Similarity from which two answers count as the same."""


@dataclass(frozen=True)
class Reading:
    """Evidence with the settings of the bootstrap; Inv-Entropy and its variants share one."""

    evidence: Evidence
    draws: int = DRAWS
    seed: int = 0
    same: float = SAME

    def inverse(self) -> Inverse:
        """Measure with the same draws, however often it is asked."""
        own = self.evidence
        assert own.inputs is not None
        assert own.outputs is not None
        return inverse(own.inputs, own.outputs, len(own.samples), np.random.default_rng(self.seed), self.draws)

    def groups(self) -> list[list[int]]:
        """Group the answers to the question as it is by meaning."""
        return clusters(self.evidence.own, self.same)


@dataclass(frozen=True)
class Measure:
    """A measure: what it is, what it needs, and how it is computed."""

    about: str
    needs: frozenset[Need]
    score: Callable[[Reading], float]
    paper: str | None = None


def _measure(about: str, *needs: Need, paper: str | None = None) -> Callable[[Callable[[Reading], float]], Measure]:
    return lambda score: Measure(about, frozenset(needs), score, paper)


INVERSE = "arXiv 2506.09684"
MEASURES: dict[str, Measure] = {
    "inv_entropy": _measure("how surely the wording can be told from the answer", "variants", paper=INVERSE)(
        lambda r: r.inverse().entropy
    ),
    "ni_entropy": _measure("the same in the forward direction", "variants", paper=INVERSE)(
        lambda r: r.inverse().forward
    ),
    "nr_inv_entropy": _measure("inv_entropy of one answer to each wording", "variants", paper=INVERSE)(
        lambda r: r.inverse().single
    ),
    "max_py_x": _measure("the largest probability of an answer given its wording", "variants", paper=INVERSE)(
        lambda r: r.inverse().largest
    ),
    "wd_px_py": _measure("distance between the values of P(X) and P(Y)", "variants", paper=INVERSE)(
        lambda r: r.inverse().distance
    ),
    "semantic_entropy": _measure("entropy of the answers by meaning (nats)", "samples", paper="arXiv 2302.09664")(
        lambda r: semantic_entropy(r.groups())
    ),
    "self_consistency": _measure(
        "share of answers that differ from most of them", "samples", paper="arXiv 2203.11171"
    )(lambda r: disagreement(r.groups())),
    "deg_mat": _measure("how unlike the answers are, on average", "samples", paper="arXiv 2305.19187")(
        lambda r: degree(r.evidence.own)
    ),
    "luq": _measure("sentences that other answers do not support", "samples", paper="arXiv 2403.20279")(
        lambda r: luq(_given(r.evidence.support))
    ),
    "predictive_entropy": _measure("mean negative log-probability of sampled answers, a token (nats)", "samples")(
        lambda r: predictive_entropy([s.logprob for s in r.evidence.samples], [s.tokens for s in r.evidence.samples])
    ),
    "mean_entropy": _measure("mean entropy of the answer's tokens (nats)", "answer")(
        lambda r: fmean(r.evidence.entropies)
    ),
    "max_entropy": _measure("largest entropy of the answer's tokens (nats)", "answer")(
        lambda r: max(r.evidence.entropies)
    ),
    "p_true": _measure("1 - the probability of true, by the model itself", "verdict", paper="arXiv 2207.05221")(
        lambda r: 1.0 - _given(r.evidence.true)
    ),
}  # fmt: skip
"""Measures by name, the paper's own first."""


def needs(names: Collection[str]) -> frozenset[Need]:
    """Return what any of some measures needs."""
    return frozenset(need for name in names for need in MEASURES[name].needs)


def scores(names: Collection[str], reading: Reading) -> dict[str, float]:
    """Compute measures by name."""
    return {name: float(MEASURES[name].score(reading)) for name in names}


def _given(value: T | None) -> T:
    assert value is not None
    return value
