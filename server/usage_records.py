"""Make usage records: the fields that all of them have, and the record of work outside of requests."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import structlog

from waver.engines.metering import Meter

BILLION = 1e9


def background_record(key: str | None, policy: str, meter: Meter) -> dict[str, Any]:
    """Return the record of what a policy had engines compute outside of requests, for memories for instance."""
    return {
        **head(key, None),
        "kind": "background",
        "policy": policy,
        "outcome": "finished",
        "besides_tokens": meter.first,
        "engines": {name: asdict(each) for name, each in meter.usage.items()},
        "cost": {"spent": sum(meter.spent) / BILLION, "unit": "billion parameters times tokens"},
    }


def head(key: str | None, model: str | None) -> dict[str, Any]:
    """Return the time, the request and who asked for what."""
    return {
        "time": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds"),
        "request_id": structlog.contextvars.get_contextvars().get("request_id"),
        "key": key,
        "model": model,
    }
