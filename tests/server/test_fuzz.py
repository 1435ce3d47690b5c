"""Requests made of the published schemas, with tools, pictures and forms: none fails, none hangs, no stream stops."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Running
from tests.pictures import save_seeing
from waver.benchmarks.faults import fuzz

COUNT = 160
TEMPLATE = Path(__file__).with_name("hermes.jinja")


@pytest.fixture(scope="module")
def server(
    start: Callable[..., Running], tiny_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Running:
    """Two engines whose template shows tools, and one that sees."""
    engines = {name: {**engine, "chat_template": str(TEMPLATE)} for name, engine in tiny_config["engines"].items()}
    engines["see"] = {"model": str(save_seeing(tmp_path_factory.mktemp("see")))}
    path = str(tmp_path_factory.mktemp("data"))
    return start(config={"engines": engines, "retrieval": {"path": path}}, timeout=60)


async def test_what_the_schemas_allow_is_answered(server: Running) -> None:
    statuses: Counter[int] = Counter()
    failures = []
    turn = asyncio.Semaphore(4)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        assert (await client.post("/v1/collections", json={"name": "hostile"})).status_code == 200
        openapi = (await client.get("/openapi.json")).json()

        async def send(method: str, path: str, body: bytes) -> None:
            async with turn:
                answer = await client.request(method, path, content=body, headers={"content-type": "application/json"})
            statuses[answer.status_code] += 1
            broken = "event: error" in answer.text or 'data: {"error"' in answer.text
            if answer.status_code >= 500 or (broken and answer.status_code == 200):
                failures.append((answer.status_code, path, body[:600], answer.text[-300:]))

        requests = fuzz.requests(COUNT, 22, openapi)
        await asyncio.gather(*(send(*each) for each in requests))
    assert not failures, failures[:3]
    assert sum(statuses.values()) == COUNT
    assert statuses[200] > COUNT / 8, statuses  # most are refused; enough are not
    assert server.idle(within=30)
