"""Make the settings of a policy that calibration compares, from the entropies of the user's own prompts.

An engine answers some of the prompts with a trace. Thresholds are quantiles of what a policy would have compared there,
so that they suit the pair and the prompts, whatever their entropies are; they set shares only about, as the other
engine's entropies decide, too. What they really bring is measured afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from waver.clients.questions import Refused

MOST = 64
"""Most settings that are compared."""
SHARES = (0.1, 0.2, 0.4)
"""Shares of tokens, or of requests under `route`, that thresholds are set for unless a goal names one."""
PARTS = (1.0, 0.75, 0.5)
"""Parts of the share that a goal names."""
LOWER = 0.4
"""`threshold_down` of `ead`, as a part of its threshold."""
COURSES: tuple[Mapping[str, Any], ...] = (
    {"window": 1, "min_tokens": 1, "monitor": "small"},
    {"window": 5, "min_tokens": 5, "monitor": "small"},
    {"window": 2, "min_tokens": 3, "monitor": "active"},
    {"window": 1, "min_tokens": 4, "monitor": "active", "timing": "lagged"},
    {"window": 3, "min_tokens": 5, "monitor": "active"},
    {"window": 1, "min_tokens": 10, "monitor": "active"},
    {"window": 5, "min_tokens": 10, "monitor": "active"},
    {"window": 5, "min_tokens": 10, "monitor": "active", "timing": "lagged"},
)
"""Windows, dwells, monitors and timings of `ead` that are tried, each at every share."""
DRAFTS = (8, 16, 32)
"""Drafts of `route`, in tokens."""
SPANS = (0.05, 0.1, 0.2, 0.3)
"""Spans of `adaptive_temperature`."""
VARIED: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "ead": {"threshold": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "window": (1, 5), "monitor": ("small",)},
    "route": {"threshold": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "draft_tokens": (16,)},
    "diffadapt": {"strategy": ("auto", "easy", "normal", "hard")},
}
"""Values to try of policies where no entropies are known."""
TRACED = ("ead", "route", "adaptive_temperature")
"""Policies whose settings follow from entropies."""

Traces = Sequence[Sequence[float]]
"""The entropies (nats) of answers, token by token."""


def settings_from(name: str, fixed: Mapping[str, Any], traces: Traces, share: float | None) -> list[dict[str, Any]]:
    """List the settings to try of a policy that is known here, without those that differ in nothing.

    Args:
        fixed: parameters that stay. traces: answers of the engine that is watched; empty for policies that need none.
        share: the share of tokens that thresholds are set for; None: several.

    Raises:
        Refused: the traces hold no entropies, or the policy is not known here.
    """
    if name in TRACED and not any(traces):
        raise Refused("The answers carry no entropies: is it a Waver of this release?")
    shares = SHARES if share is None else tuple(part * share for part in PARTS)
    if name == "ead":
        tried = [_course({**course, **fixed}, traces, each) for course in COURSES for each in shares] + [{}]
    elif name == "route":
        tried = [_route(int(fixed.get("draft_tokens", draft)), traces, each) for draft in DRAFTS for each in shares]
    elif name == "adaptive_temperature":
        tried = [statistics(traces) | {"span": span} for span in SPANS]
    elif name in VARIED:
        tried = [dict(zip(VARIED[name], values, strict=True)) for values in product(*VARIED[name].values())]
    else:
        raise Refused(f"Say which parameters of {name} to vary: --vary threshold=0.1,0.3,1")
    made = [{"name": name} | each | dict(fixed) for each in tried]
    return [each for place, each in enumerate(made) if each not in made[:place]]


def statistics(traces: Traces) -> dict[str, float]:
    """Return the entropies at which `adaptive_temperature` is coolest, neutral and warmest: the smallest, the 0.8
    quantile and the largest (HAPO, arXiv 2509.16591), within its bounds and in rising order."""
    values = np.concatenate([np.asarray(each, float) for each in traces])
    low, pivot, high = (float(each) for each in (values.min(), np.quantile(values, 0.8), values.max()))
    low = min(max(low, 1e-8), 25.0)
    pivot = min(max(pivot, 2 * low), 50.0)
    return {"low": _short(low), "pivot": _short(pivot), "high": _short(min(max(high, 2 * pivot), 100.0))}


def rolling(trace: Sequence[float], window: int) -> list[float]:
    """Return the mean of the last `window` entropies at each token; of what is there until the window is full."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(trace, float))])
    ends = np.arange(1, len(trace) + 1)
    starts = np.maximum(ends - window, 0)
    means: list[float] = ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
    return means


def _course(course: Mapping[str, Any], traces: Traces, share: float) -> dict[str, Any]:
    means = [value for trace in traces for value in rolling(trace, int(course["window"]))]
    threshold = float(course.get("threshold", _short(max(float(np.quantile(means, 1 - share)), 1e-4))))
    down = None if course.get("monitor") == "small" else _short(LOWER * threshold)
    return {"threshold": threshold, "threshold_down": down, **course}


def _route(draft: int, traces: Traces, share: float) -> dict[str, Any]:
    means = [float(np.mean(trace[:draft])) for trace in traces if trace]
    return {"threshold": _short(float(np.quantile(means, 1 - share))), "draft_tokens": draft}


def _short(value: float) -> float:
    """Return a number with three digits."""
    return float(f"{value:.3g}")
