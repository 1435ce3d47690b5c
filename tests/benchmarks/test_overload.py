"""Overload: accepted and refused requests are told apart, and the bars are those that the page names."""

from __future__ import annotations

import itertools
from typing import Any

import httpx

from waver.benchmarks.overload import Asking, Took, page, quantiles, verdicts


async def test_what_came_of_each_request_is_counted() -> None:
    statuses = itertools.cycle((200, 429, 429, 503))

    def handle(request: httpx.Request) -> httpx.Response:
        status = next(statuses)
        return httpx.Response(status, headers={"retry-after": "1"} if status == 429 else {})

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://test") as http:
        took = await Asking(http).beyond(2000, 0.02)
    assert (len(took.accepted), len(took.refused), took.hints, took.other) == (10, 20, 20, ["503"] * 10)
    assert isinstance(took, Took)


def found(accepted: float, refused: float, **more: Any) -> dict[str, Any]:
    return {
        "rate": 10.0,
        "full": quantiles([1.0] * 10),
        "accepted": {"count": 10} | quantiles([accepted] * 10),
        "refused": {"count": 10, "hints": 10} | quantiles([refused] * 10),
        "other": [],
        **more,
    }


def test_the_bars() -> None:
    assert all(verdicts(found(1.9, 0.04)).values())
    assert [name for name, met in verdicts(found(2.1, 0.06, other=["500"])).items() if not met] == [
        "accepted", "refused", "nothing else",
    ]  # fmt: skip
    text = "\n".join(page({"overload": found(1.9, 0.06), "settings": {"times": 4.0}}))
    assert "Refusals within 50 ms (p95): not met" in text
