"""Typed builders for the `policy` field of a request: `extra_body={"policy": [ead(threshold=0.3)]}`.

Only the parameters that are given are sent, so the server's configuration decides the rest. Entropies are in nats.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict, Unpack


class EadParameters(TypedDict, total=False):
    """Entropy Adaptive Decoding (arXiv 2502.06833): the large engine writes while the rolling entropy is high."""

    small: str
    large: str
    threshold: float
    threshold_down: float | None
    window: int
    min_tokens: int
    monitor: Literal["active", "small"]
    timing: Literal["eager", "lagged"]
    start: Literal["small", "large"]


class RandomSwitchParameters(TypedDict, total=False):
    """A control for `ead`: each stretch goes to the large engine with probability `rate`."""

    small: str
    large: str
    rate: float


class RouteParameters(TypedDict, total=False):
    """A control for `ead`: the entropy of a short draft sends the whole request to one engine."""

    small: str
    large: str
    threshold: float
    draft_tokens: int


def ead(**parameters: Unpack[EadParameters]) -> dict[str, Any]:
    """Switch between a small and a large engine, token by token, by entropy."""
    return {"name": "ead", **parameters}


def random_switch(**parameters: Unpack[RandomSwitchParameters]) -> dict[str, Any]:
    """Switch between a small and a large engine at random."""
    return {"name": "random_switch", **parameters}


def route(**parameters: Unpack[RouteParameters]) -> dict[str, Any]:
    """Send the whole request to the small or to the large engine."""
    return {"name": "route", **parameters}
