"""Statistics of token entropies over the calls of a run, as features of a judge (Entropy Judger, arXiv 2602.04234).

A run is one attempt at a question: one or more calls of a model, in rounds. Everything is made of the entropies of the
tokens (nats) alone; no text is read. A quotient with the denominator 0 is 0, and what a missing round or answer would
tell is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

STATISTICS = ("max", "min", "mean", "median", "std", "variance", "q1", "q3")
ROUNDS = (1, 2)
"""Rounds that have features of their own; later ones count in what is summed over the whole run."""

Features = dict[str, float]


@dataclass(frozen=True)
class Call:
    """One call of a model within a run: its role, its round (from 1 on) and its tokens' entropies (nats)."""

    role: str
    round: int
    entropies: tuple[float, ...]


@dataclass(frozen=True)
class Trace:
    """All calls of a run, and the entropies of those tokens that spell the final answer."""

    calls: tuple[Call, ...]
    answer: tuple[float, ...] = ()


def statistics(values: Sequence[float]) -> Features:
    """Compute `STATISTICS` and `total`; population variance, quartiles interpolated along a line. All 0 for none."""
    if not len(values):
        return dict.fromkeys((*STATISTICS, "total"), 0.0)
    e = np.asarray(values, np.float64)
    q1, median, q3 = np.percentile(e, (25, 50, 75)).tolist()
    std = float(e.std())
    return {
        "max": float(e.max()),
        "min": float(e.min()),
        "mean": float(e.mean()),
        "median": median,
        "std": std,
        "variance": std * std,
        "q1": q1,
        "q3": q3,
        "total": float(e.sum()),
    }


def features(trace: Trace, alone: Trace | None = None) -> Features:
    """Compute every feature of a run, always the same names in the same order.

    Args:
        alone: a run of the same question by a single solver, to compare with; None: these features are NaN.

    Raises:
        ValueError: the run has no calls.
    """
    if not trace.calls:
        raise ValueError("a run without a call has no features")
    told = [(call, statistics(call.entropies)) for call in trace.calls]
    by_round = {r: [(call, own) for call, own in told if call.round == r] for r in ROUNDS}
    sample = _sample(trace)
    out = {f"sample_{name}": value for name, value in sample.items()}
    out |= {f"answer_{name}": value for name, value in _answer(trace.answer).items()}
    out |= {f"shape_{name}": value for name, value in _shape(sample).items()}
    out |= {f"alone_{name}": value for name, value in _relation(trace, sample, alone).items()}
    sums = {r: _sums(calls) for r, calls in by_round.items()}
    for r in ROUNDS:
        out |= {f"round{r}_{name}": value for name, value in sums[r].items()}
    out |= _changes("rounds", sums[1], sums[2])
    spreads = {r: _within(calls) for r, calls in by_round.items()}
    for r in ROUNDS:
        out |= {f"within{r}_{name}": value for name, value in spreads[r].items()}
    for name in ("spread", "total_spread"):
        out[f"within_{name}_change"] = spreads[2][name] - spreads[1][name]
    out |= _across(by_round)
    for r in ROUNDS:
        out |= _over_agents(r, by_round[r])
    return out


def _sample(trace: Trace) -> Features:
    """Compute the statistics of the whole run: means over calls of each call's own, sums for total and tokens."""
    own = [statistics(call.entropies) for call in trace.calls]
    out = {name: float(np.mean([each[name] for each in own])) for name in STATISTICS}
    total, tokens = sum(each["total"] for each in own), sum(len(call.entropies) for call in trace.calls)
    return out | {
        "total": total,
        "tokens": float(tokens),
        "agents": float(len(own)),
        "per_token": _over(total, tokens),
        "per_agent": total / len(own),
        "stability": 1 - _over(out["std"], out["mean"]),
    }


def _answer(entropies: Sequence[float]) -> Features:
    names = ("max", "mean", "min", "std", "median")
    own = statistics(entropies) if entropies else dict.fromkeys(names, math.nan)
    return {"count": float(len(entropies)), **{name: own[name] for name in names}}


def _shape(s: Mapping[str, float]) -> Features:
    iqr, whole = s["q3"] - s["q1"], s["max"] - s["min"]
    return {
        "range": whole,
        "iqr": iqr,
        "iqr_over_mean": _over(iqr, s["mean"]),
        "iqr_over_range": _over(iqr, whole),
        "bowley": _over(s["q3"] + s["q1"] - 2 * s["median"], iqr),
        "median_over_mean": _over(s["median"], s["mean"]),
        "tail": _over(s["max"] - s["q3"], iqr),
        "cv": _over(s["std"], s["mean"]),
    }


def _relation(trace: Trace, own: Mapping[str, float], alone: Trace | None) -> Features:
    """Compare with a run of a single solver: 17 features."""
    base = _sample(alone) if alone is not None else dict.fromkeys(("total", "tokens", "per_token"), math.nan)
    mine, its = _answer(trace.answer), _answer(alone.answer if alone is not None else ())
    change = own["total"] - base["total"]
    return {
        "total": base["total"],
        "tokens": base["tokens"],
        "per_token": base["per_token"],
        "ratio": _over(own["total"], base["total"]),
        "reduction": _over(-change, base["total"]),
        "per_token_ratio": _over(own["per_token"], base["per_token"]),
        "per_token_difference": own["per_token"] - base["per_token"],
        **{f"answer_{name}": value if alone is not None else math.nan for name, value in its.items()},
        "answer_difference": mine["mean"] - its["mean"],
        "answer_ratio": _over(mine["mean"], its["mean"]),
        "change": change,
        "absolute_change": abs(change),
    }


Told = Sequence[tuple[Call, Mapping[str, float]]]
"""Calls of one round with their statistics."""


def _sums(calls: Told) -> Features:
    if not calls:
        return dict.fromkeys(("calls", "total", "tokens", "density", "mean_per_call"), math.nan)
    total, tokens = sum(own["total"] for _, own in calls), sum(len(call.entropies) for call, _ in calls)
    return {
        "calls": float(len(calls)),
        "total": total,
        "tokens": float(tokens),
        "density": _over(total, tokens),
        "mean_per_call": total / len(calls),
    }


def _changes(prefix: str, first: Mapping[str, float], second: Mapping[str, float]) -> Features:
    """Compare two rounds: difference and ratio of totals, tokens and densities; the slope of the density per round, and
    its population standard deviation."""
    out = {}
    for name in ("total", "tokens", "density"):
        out[f"{prefix}_{name}_change"] = second[name] - first[name]
        out[f"{prefix}_{name}_ratio"] = _over(second[name], first[name])
    return out | _trend(f"{prefix}_density", first["density"], second["density"])


def _trend(prefix: str, first: float, second: float) -> Features:
    return {f"{prefix}_slope": second - first, f"{prefix}_volatility": abs(second - first) / 2}


def _within(calls: Told) -> Features:
    """Compute how much the agents of one round differ in their mean entropies and totals."""
    if not calls:
        return dict.fromkeys(("spread", "cv", "bowley", "total_spread"), math.nan)
    means, totals = statistics([own["mean"] for _, own in calls]), [own["total"] for _, own in calls]
    return {
        "spread": means["max"] - means["min"],
        "cv": _over(means["std"], means["mean"]),
        "bowley": _over(means["q3"] + means["q1"] - 2 * means["median"], means["q3"] - means["q1"]),
        "total_spread": max(totals) - min(totals),
    }


def _across(by_round: Mapping[int, Told]) -> Features:
    """Compare the rounds' means over agents of mean entropy and of total entropy."""
    out = {}
    for name in ("mean", "total"):
        first, second = (_mean([own[name] for _, own in by_round[r]]) for r in ROUNDS)
        out[f"cross_{name}_difference"] = second - first
        out[f"cross_{name}_ratio"] = _over(second, first)
        out |= _trend(f"cross_{name}", first, second)
    change = out["cross_mean_difference"]
    out["cross_mean_sign"] = math.nan if math.isnan(change) else float(np.sign(change))
    return out


def _over_agents(r: int, calls: Told) -> Features:
    """Compute `STATISTICS` over the agents of a round of each of `STATISTICS` and the total of an agent: 72."""
    out: Features = {}
    for inner in (*STATISTICS, "total"):
        own = statistics([each[inner] for _, each in calls]) if calls else dict.fromkeys(STATISTICS, math.nan)
        out |= {f"round{r}_{outer}_of_{inner}": own[outer] for outer in STATISTICS}
    return out


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _over(a: float, b: float) -> float:
    return a / b if b else 0.0
