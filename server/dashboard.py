"""GET /v1/dashboard: how the counters of `/metrics` moved over the last hour."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from waver.server.runtime import runtime

router = APIRouter()


@router.get("/v1/dashboard", summary="How the counters moved over the last hour")
async def dashboard(request: Request) -> dict[str, Any]:
    return runtime(request).hour.as_dict(asyncio.get_running_loop().time())
