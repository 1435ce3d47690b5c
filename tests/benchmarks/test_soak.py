"""The soak: it asks for every policy, and tells answers that change, errors, and what is left from what should be."""

from __future__ import annotations

import json

import httpx
import pytest

from waver.benchmarks.replay_policies import WAYS
from waver.benchmarks.replay_requests import CHAT, Request
from waver.benchmarks.soak import Clients, Seen, asked_for, page, policies, verdicts


def test_every_policy_is_asked_for() -> None:
    setup, drawn = asked_for(1)
    assert {each.path for each in setup} >= {"/v1/collections"}
    named = {name for each in drawn for name in policies(each)}
    assert named >= {policy["name"] for way in WAYS for policy in way.policies}


def answer(request: httpx.Request) -> httpx.Response:
    """Answer as a server does: the text is what the request's `user` says, and `fail` fails in the stream."""
    body = json.loads(request.content)
    if body["user"] == "refused":
        return httpx.Response(503)
    choice = {"index": 0, "message": {"content": body["user"]}}
    if not body["stream"]:
        return httpx.Response(200, json={"choices": [choice]})
    events = [{"choices": [{"index": 0, "delta": {"content": each}}]} for each in (body["user"][:1], body["user"][1:])]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    events += [{"error": {}}] if body["user"] == "fail" else []
    text = "".join(f"data: {json.dumps(each)}\n\n" for each in events) + "data: [DONE]\n\n"
    return httpx.Response(200, text=text)


async def test_what_clients_see_is_told_apart() -> None:
    asked = {
        name: Request(f"1 {name}", "POST", CHAT, {"user": name, "temperature": heat, "model": "small"})
        for name, heat in (("same", 0.0), ("other", 0.0), ("drawn", 1.0), ("refused", 0.0), ("fail", 0.0))
    }
    known: set[str] = set()

    def server(request: httpx.Request) -> httpx.Response:
        name = json.loads(request.content)["user"]
        if name in ("other", "drawn") and name not in known:
            known.add(name)
            return httpx.Response(200, json={"choices": [{"index": 0, "message": {"content": "was"}}]})
        return answer(request)

    async with httpx.AsyncClient(transport=httpx.MockTransport(server), base_url="http://test") as http:
        clients = Clients(http, seed=1)
        statuses = [await clients.first(request) for request in asked.values()]
        assert statuses == ["200", "200", "200", "503", "200"]
        for request in asked.values():
            for _ in range(60):
                await clients.one(request)
    seen = clients.seen
    assert sum(seen.ends.values()) == 300
    assert seen.ends["left"] > 0  # also of the stream that fails later
    assert seen.ends["503"] == 60
    assert seen.ends["error event"] > 0
    assert set(seen.greedy_others) == {"1 other"}
    assert set(seen.sampled_others) == {"1 drawn"}
    assert seen.greedy_others["1 other"] + seen.sampled_others["1 drawn"] == pytest.approx(120 * 0.9, abs=15)


def test_bars() -> None:
    good = {**vars(Seen()), "ends": {"200": 9, "left": 1}, "memory_early": 100.0, "memory_late": 104.0, "left": 0.0}
    assert all(verdicts(good).values())
    for worse, bar in (
        ({"ends": {"200": 9, "ReadError": 1}}, "errors"), ({"memory_late": 106.0}, "memory"), ({"left": 2.0}, "left"),
        ({"greedy_others": {"1 a": 1}}, "greedy"),
    ):  # fmt: skip
        assert [name for name, met in verdicts(good | worse).items() if not met] == [bar]
    whole = good | {"requests": 3, "refused_once": {"7 x": "400"}, "seconds": 1.0, "until": 0.1}
    text = "\n".join(page({"soak": whole | {"greedy": 9}, "settings": {"count": 10, "at_once": 2}}))
    assert "+4.0%" in text
    assert "7 x" in text
