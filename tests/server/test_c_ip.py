"""Asking back over HTTP: both ready tasks from the first question to the metrics, a restart in between, and bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT, Running, until
from waver.engines.base import Step
from waver.policies.ask.task import AskTask, ready_tasks

HELLO = [{"role": "user", "content": "Hello."}]


@pytest.fixture(scope="module")
def server(start: Callable[..., Running]) -> Running:
    return start()


def turn(running: Running, messages: list[dict[str, str]], **options: Any) -> tuple[str, dict[str, Any]]:
    """Return what the server says next, and its report."""
    policy = {"name": "c_ip", "predictor": "table", **options}
    with running.http() as http:
        response = http.post(
            "/v1/chat/completions",
            json={"model": "small", "messages": messages, "max_tokens": 400, "policy": [policy]},
        )
    assert response.status_code == 200, response.text
    told = response.json()
    return told["choices"][0]["message"]["content"], told["waver"]["asking"]


def play(running: Running, name: str, truth: int, messages: list[dict[str, str]], turns: int = 30) -> dict[str, Any]:
    """Answer for a hypothesis until the server guesses, or for so many turns; `messages` grows."""
    task = AskTask.load(ready_tasks()[name])
    told: dict[str, Any] = {}
    for _ in range(turns):
        said, told = turn(running, messages, task=name)
        messages.append({"role": "assistant", "content": said})
        if "guess" in told:
            break
        yes = task.answer(truth, task.questions.index(told["question"]))
        messages.append({"role": "user", "content": "Yes." if yes else "No, it does not."})
    return told


@pytest.mark.parametrize(("name", "truth"), [("animals", 3), ("triage", 3)])
def test_a_ready_task_from_its_first_question_to_the_metrics(server: Running, name: str, truth: int) -> None:
    messages = list(HELLO)
    told = play(server, name, truth, messages)
    task = AskTask.load(ready_tasks()[name])
    assert told["guess"] == task.hypotheses[truth]
    assert told["asked"] <= 12
    messages.append({"role": "user", "content": "Yes, right."})
    said, told = turn(server, messages, task=name)
    assert (said, told["outcome"], told["covered"], told["promised"]) == ("Good.", "right", True, 0.9)
    with server.http() as http:
        counted = http.get("/metrics").text
    assert f'waver_asking_outcomes_total{{outcome="right",task="{name}"}} 1.0' in counted
    assert f'waver_asking_coverage_total{{held="true",task="{name}"}} 1.0' in counted


def test_a_truth_that_the_set_missed_is_counted(server: Running) -> None:
    messages = list(HELLO)
    told = play(server, "triage", 0, messages)
    other = next(each for each in AskTask.load(ready_tasks()["triage"]).hypotheses if each not in told["set"])
    messages.append({"role": "user", "content": f"No, it was {other}."})
    said, told = turn(server, messages, task="triage")
    assert (said, told["outcome"], told["covered"]) == ("Thank you, I did not know.", "wrong", False)
    with server.http() as http:
        assert 'waver_asking_coverage_total{held="false",task="triage"} 1.0' in http.get("/metrics").text


def test_a_restart_in_between_loses_nothing(server: Running, start: Callable[..., Running]) -> None:
    whole = list(HELLO)
    play(server, "animals", 11, whole)
    first = start()
    parted = list(HELLO)
    play(first, "animals", 11, parted, turns=2)
    first.server.should_exit = True
    until(lambda: first.runtime.loaded is False, "the server to stop", 30)
    play(start(), "animals", 11, parted)
    assert parted == whole


def test_a_task_that_is_not_there(server: Running) -> None:
    with server.http() as http:
        body = {"model": "small", "messages": HELLO, "policy": [{"name": "c_ip", "task": "plants"}]}
        response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert "there are animals, triage" in response.json()["error"]["message"]


@pytest.fixture(scope="module")
def bundled(start: Callable[..., Running]) -> Running:
    engines = {"small": {"model": str(ROOT / "models" / "small")}}
    return start(config={"engines": engines, "presets": {}, "default_preset": None}, max_extra_tokens=12)


def test_a_limit_of_the_server_ends_it_with_its_best_guess(bundled: Running) -> None:
    said, told = turn(bundled, HELLO, task="triage", predictor="model", select="ip")
    assert told["ended"] == told["stopped"] == "extra_tokens"
    assert said == f"It is: {told['guess']}."
    assert sum(told["tokens"].values()) <= 12, "no question is looked at by halves"
    assert bundled.idle(5)


async def test_a_client_that_leaves_leaves_nothing_behind(bundled: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = bundled.runtime.engines["small"]
    quick, begun = engine.generate, 0

    async def slow(*given: Any) -> AsyncGenerator[Step, None]:
        nonlocal begun
        begun += 1
        async with aclosing(quick(*given)) as steps:
            async for step in steps:
                await asyncio.sleep(0.5)
                yield step

    monkeypatch.setattr(engine, "generate", slow)
    policy = {"name": "c_ip", "task": "triage", "predictor": "model", "select": "ip"}
    body = {"model": "small", "messages": HELLO, "max_tokens": 400, "policy": [policy]}
    async with httpx.AsyncClient(base_url=bundled.url, timeout=60) as http:
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        await asyncio.to_thread(until, lambda: begun > 0, "a question that is looked at")
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert await asyncio.to_thread(bundled.idle, 10)
    there = begun
    await asyncio.sleep(1)
    assert begun == there, "no further question is looked at"
