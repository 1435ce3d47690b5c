"""Name a stretch of time in which something was remembered."""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """A stretch of time, in seconds since 1970; open where None."""

    after: float | None = None
    before: float | None = None


ALWAYS = Span()


def within(span: Span) -> tuple[str, list[float]]:
    """Return the end of an SQL condition on `created`, and its values."""
    parts, values = "", []
    if span.after is not None:
        parts, values = " AND created >= ?", [span.after]
    if span.before is not None:
        parts, values = parts + " AND created < ?", [*values, span.before]
    return parts, values
