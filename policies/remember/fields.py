"""Read the fields of JSON that an engine wrote, in which anything may stand."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from waver.policies.retrieve.quoting import one_line
from waver.retrieval.memory.unit import MOST_WORD, in_utc


def word(value: Any) -> str:
    """Return a short text; an empty one for what is none."""
    return one_line(value)[:MOST_WORD] if isinstance(value, str) else ""


def moment(value: Any) -> datetime | None:
    """Return a time in ISO 8601, in UTC; None for what is none."""
    try:
        return in_utc(datetime.fromisoformat(value)) if isinstance(value, str) else None
    except ValueError:
        return None
