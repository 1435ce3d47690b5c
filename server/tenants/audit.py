"""The audit log: who changed keys and owners, and when. It holds names and settings, never a text or a key."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
import structlog

from waver.server.tenants import database as tables
from waver.server.tenants.database import Database

log = structlog.get_logger("waver")


def record(
    db: sa.Connection, actor: str, action: str, subject: str, detail: Mapping[str, Any], request: str | None = None
) -> None:
    """Add an entry in the transaction of what it tells, and log it.

    Args:
        actor: a key's name, `nobody` without keys, or `command line`. request: the request's id.
    """
    text = json.dumps(detail)
    row = {"time": time.time(), "actor": actor, "action": action, "subject": subject, "detail": text}
    db.execute(sa.insert(tables.audit).values(request=request, **row))
    log.info("audit", actor=actor, action=action, subject=subject, detail=dict(detail))


def entries(database: Database, most: int, before: int | None = None) -> list[dict[str, Any]]:
    """Return the newest entries, at most so many, older than the one with the id `before`. Blocks."""
    query = sa.select(tables.audit).order_by(tables.audit.c.id.desc()).limit(most)
    if before is not None:
        query = query.where(tables.audit.c.id < before)
    return database.read(lambda db: [_shown(row) for row in db.execute(query)], [])


def _shown(row: Any) -> dict[str, Any]:
    return {
        "object": "audit",
        "id": row.id,
        "time": datetime.fromtimestamp(row.time, UTC).isoformat(timespec="milliseconds"),
        "actor": row.actor,
        "action": row.action,
        "subject": row.subject,
        "detail": json.loads(row.detail),
        "request": row.request,
    }
