"""Keep what two models read in the same texts: the entropy of every token, and which of them matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from waver.benchmarks.answers import LARGE, SMALL


@dataclass(frozen=True)
class Trace:
    """A text as two models read it: the entropy of each of its tokens under either (nats), and which are critical."""

    small: list[float]
    large: list[float]
    critical: list[bool]


def stored(trace: Trace) -> dict[str, str]:
    """Return a trace on few lines: entropies as numbers between spaces, and a digit for each token."""
    entropies = {side: " ".join(f"{value:.4g}" for value in getattr(trace, side)) for side in (SMALL, LARGE)}
    return entropies | {"critical": "".join(str(int(each)) for each in trace.critical)}


def restored(traces: Sequence[Mapping[str, str]]) -> Trace:
    """Return the tokens of all `stored` traces of a pair, as of one text."""
    small, large = ([float(value) for trace in traces for value in trace[side].split()] for side in (SMALL, LARGE))
    return Trace(small, large, [mark == "1" for trace in traces for mark in trace["critical"]])
