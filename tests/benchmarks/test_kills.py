"""The table of kills: what clients see is told apart, and what may not be lost is named."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from waver.benchmarks.kills.load import OUTCOMES, Clients
from waver.benchmarks.kills.run import flaws, page

TOKEN = 'data: {"choices": [{"text": "a"}]}\n\n'
USAGE = 'data: {"choices": [], "usage": {"completion_tokens": 40, "total_tokens": 50}}\n\n'
DONE = "data: [DONE]\n\n"
ERROR = 'data: {"error": {"message": "gone", "type": "server_error"}}\n\n'


def cut(request: httpx.Request) -> httpx.Response:
    raise httpx.RemoteProtocolError("gone", request=request)


def nobody(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("nobody", request=request)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (TOKEN + USAGE + DONE, "whole"),
        (TOKEN + ERROR, "error event"),
        (TOKEN + ERROR + DONE, "error event"),
        (TOKEN, "silent"),
        (TOKEN + DONE, "silent"),
        (503, "refused"),
        (cut, "cut off"),
        (nobody, "no connection"),
    ],
)
async def test_what_becomes_of_a_request(answer: Any, outcome: str) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if callable(answer):
            return answer(request)
        if isinstance(answer, int):
            return httpx.Response(answer, json={"error": {"message": "not now"}})
        return httpx.Response(200, text=answer, headers={"content-type": "text/event-stream"})

    clients = Clients("http://test", "key", ["small"], 1, 5.0)
    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://test") as http:
        assert await clients._ask(http, "small") == outcome


def event(breaks: bool = False, recovered: bool = True, **more: Any) -> dict[str, Any]:
    outcomes = {**dict.fromkeys(OUTCOMES, 0), **more.pop("outcomes", {})}
    return {"event": "e", "breaks": breaks, "outcomes": outcomes, "statuses": {"200": 1}, "hung": 0, "tokens": 5,
            "recovered": recovered, "seconds": 1.0, **more}  # fmt: skip


def test_what_may_not_be_lost() -> None:
    assert flaws(event(outcomes={"error event": 3, "refused": 2, "whole": 9})) == []
    assert flaws(event(outcomes={"silent": 1, "cut off": 2})) == ["1 silent", "2 cut off"]
    assert flaws(event(breaks=True, outcomes={"cut off": 2, "no connection": 1})) == []
    assert flaws(event(statuses={"500": 2}, hung=1)) == ["2 x 500", "1 hung"]
    assert flaws(event(recovered=False)) == ["not served again"]
    numbers = {"events": [event()], "engines": "one", "database": "SQLite", "charged": {"received": 1, "charged": 2}}
    assert any("| e |" in part for part in page(numbers))
