"""Verifiers of the configuration, and goals that a model proposes: what they tell a search, and how they fail."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from tests.policies.select.test_bes import SUM, job_for, run, writer
from waver.engines.base import EngineError, Unsupported
from waver.goals import Goal, NotJudged, Task, Verdict, joint, score
from waver.policies.select import verifiers
from waver.policies.select.bes import BES
from waver.policies.select.proposals import Covering, with_proposals
from waver.policies.select.verifiers import Outcome, VerifierConfig, load
from waver.policies.services import Services

PROGRAM = "```python\ndef double(n):\n    return 2 * n\n```"


def made(**config: Any) -> verifiers.Verifier:
    parsed: Any = TypeAdapter(VerifierConfig).validate_python(config)
    return load("mine", parsed)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "tests.jsonl"
    lines = [
        {"question": "Write double.", "tests": ["assert double(2) == 4", "assert double('a') == 'aa'"]},
        {"prompt": "def half(n):", "test": "def check(f):\n    assert f(4) == 2", "entry_point": "half"},
    ]
    found.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return found


@pytest.fixture
def served() -> Iterator[tuple[str, dict[str, Any]]]:
    """A server on this machine that verifies as it is told: its address, and what it says to each text."""
    told: dict[str, Any] = {"say": lambda asked: 0.0, "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the library's name
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told["asked"].append(asked)
            found = told["say"](asked)
            body = json.dumps(found).encode()
            self.send_response(500 if found is None else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/verify", told
        server.shutdown()
        thread.join(10)


async def test_python_tests_are_goals(file: Path) -> None:
    task = await made(kind="python", file=str(file)).task("Please:  Write double. Use Python.")
    assert task.names == ("all", "assert double(2) == 4", "assert double('a') == 'aa'")
    assert (await task.judge(PROGRAM)).values == (1, 1, 1)
    assert (await task.judge(PROGRAM.replace("2 * n", "n + 2"))).values == (0, 1, 0)
    assert (await task.judge("")).values == (0, 0, 0)
    half = await made(kind="python", file=str(file)).task("def half(n):")
    assert (await half.judge("def half(n):\n    return n // 2")).solved


async def test_a_search_by_python_tests(file: Path) -> None:
    engine = writer("I cannot.", PROGRAM)
    job = job_for(engine, "Write double.")
    job = replace(job, services=replace(job.services, verifiers={"programs": made(kind="python", file=str(file))}))
    text, report, _ = await run(job, task="auto", verifier="programs", method="best_of_n", delimiter="\n\n\n")
    assert report["search"]["ended"] == "solved"
    assert text.startswith(PROGRAM)
    with pytest.raises(Unsupported, match="no tests for this question"):
        await BES(verifier="programs").check(replace(job, question=replace(job.question, text="Another?")))  # type: ignore[type-var]
    with pytest.raises(Unsupported, match="unknown verifier 'other'; there are programs"):
        await BES(verifier="other").check(job)
    with pytest.raises(ValidationError, match="leave out task and goals"):
        BES(verifier="programs", task="sums")


async def test_a_function_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def length(question: str, text: str) -> Mapping[str, Any]:
        return {"goals": {"short": float(len(text) < 9), "named": float(question in text)}, "wrong": "no" in text}

    point = EntryPoint("length", "json:loads", verifiers.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: length)
    monkeypatch.setattr(verifiers, "entry_points", lambda group: [point] if group == verifiers.GROUP else [])
    task = await made(kind="function", name="length").task("Q")
    assert task.names == ("all", "short", "named")
    assert await task.judge("Q is") == Verdict((1.0, 1.0, 1.0))
    assert await task.judge("no Q here at all") == Verdict((0.0, 0.0, 1.0), wrong=True)
    with pytest.raises(ValueError, match=r"no installed package has the entry point 'other' .*; there are length"):
        made(kind="function", name="other")


async def test_a_server_on_this_machine(served: tuple[str, dict[str, Any]]) -> None:
    url, told = served
    told["say"] = lambda asked: float("37" in asked["text"])
    task = await made(kind="http", url=url).task(SUM)
    assert (task.names, (await task.judge("It is 37")).solved) == (("all",), True)
    assert told["asked"][-1] == {"question": SUM, "text": "It is 37"}
    told["say"] = lambda asked: {"solved": 2.0}
    with pytest.raises(NotJudged, match="answers in another form"):
        await task.judge("x")
    told["say"] = lambda asked: None
    with pytest.raises(NotJudged, match="the verifier 'mine' failed") as failed:
        await task.judge("x")
    assert "500" in failed.value.detail


@pytest.mark.parametrize(
    "url",
    ["http://example.com/verify", "https://127.0.0.1/v", "http://10.0.0.1/v", "http://u:p@127.0.0.1/v", "file:///x"],
)
def test_no_other_machine_is_asked(url: str) -> None:
    with pytest.raises(ValidationError, match="on this machine only"):
        TypeAdapter(VerifierConfig).validate_python({"kind": "http", "url": url})


async def test_a_verifier_that_fails_ends_the_search_with_the_best_so_far(served: tuple[str, dict[str, Any]]) -> None:
    url, told = served
    told["say"] = lambda asked: {"goals": {"a": 1, "b": 0}} if len(told["asked"]) < 5 else None
    engine = writer("one", "two", "three", "four", "five", "six")
    job = job_for(engine)
    job = replace(job, services=replace(job.services, verifiers={"mine": made(kind="http", url=url)}))
    text, report, finish = await run(job, task="auto", verifier="mine", method="best_of_n")
    assert (report["search"]["ended"], report["search"]["best_so_far"]) == ("verifier", True)
    assert report["search"]["failure"] == "the verifier 'mine' failed"
    assert (text, finish) == ("one", "stop") or text in ("two", "three")
    assert engine.open == 0
    with pytest.raises(EngineError, match="the verifier 'mine' failed"):  # before the first token: 503
        await BES(verifier="mine").check(job)


async def test_a_slow_verifier_is_not_waited_for() -> None:
    async def never(question: str, text: str) -> Any:
        await asyncio.sleep(60)

    with pytest.raises(NotJudged, match=r"took more than 0\.05 s"):
        await verifiers.Called("slow", never, 0.05).task("Q")


def test_outcomes_and_files_are_checked(tmp_path: Path) -> None:
    assert Outcome.of(True).solved == 1
    assert Outcome.of({"goals": {"a": 1, "b": 0.5}}).verdict(("b", "a", "c")).values == (0, 0.5, 1, 0)
    for wrong in ({}, {"solved": -1}, {"values": 1}, "yes"):
        with pytest.raises(ValueError):  # noqa: PT011  # pydantic's own words
            Outcome.of(wrong)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "x"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 1: an object with `question` and `tests`"):
        made(kind="python", file=str(bad))
    with pytest.raises(ValueError, match="cannot be read"):
        made(kind="python", file=str(tmp_path / "none"))


def test_scores_of_ordered_goals_by_hand() -> None:
    """Coverage of 1, 1, 0, 1 is 0.5: 0.15 without the answer and 0.85 with it."""
    root = Goal(0, tuple(Goal(i) for i in range(1, 5)), ordered=True)
    assert score(root, [0, 1, 1, 0, 1]) == pytest.approx(0.15)
    assert score(root, [1, 1, 1, 0, 1]) == pytest.approx(0.85)
    one, other = np.array([[0.0, 1, 0, 0, 1]]), np.array([[1.0, 0, 1, 0, 0]])
    assert joint(root, one, other) == pytest.approx([0.85])


QUESTIONS = ("how many apples are there", "what does an apple cost", "what is the total")
TEXT = "How many apples? There are 3 apples here, so many.\nAn apple does cost 2.\n"


async def test_sub_questions_are_covered_by_sentences() -> None:
    covering = Covering(QUESTIONS, Services({}))
    assert await covering.met(TEXT) == [True, True, False]
    assert await covering.met(TEXT + "The total is what? 6") == [True, True, True]
    assert await covering.met("") == [False] * 3


async def test_sub_questions_beside_other_goals() -> None:
    async def judge(text: str) -> Verdict:
        return Verdict((float("6" in text), 0.0))

    own = Task(Goal(0, (Goal(1),)), ("all", "other"), judge)
    task = with_proposals(own, QUESTIONS, Services({}))
    assert task.names == ("all", "other", "all sub-questions", *QUESTIONS)
    verdict = await task.judge(TEXT)
    assert verdict.values == (0, 0, 0, 1, 1, 0)
    assert score(task.root, verdict.values) == pytest.approx(0.7 * (0 + 0.7 * 2 / 3) / 2)
    alone = with_proposals(None, QUESTIONS, Services({}))
    assert alone.root.ordered
    assert score(alone.root, (await alone.judge(TEXT)).values) == pytest.approx(0.2)


def proposing(*answers: str) -> Callable[[str], str]:
    """Say sub-questions where a prompt asks for some, else the next answer."""
    left = list(answers)

    def reply(prompt: str) -> str:
        if "sub-questions" in prompt:
            return "1. How many apples are there?\n2. What does #1 cost?\n"
        return left.pop(0) if len(left) > 1 else left[0]

    return reply


async def test_an_engine_proposes_the_goals() -> None:
    engine = writer(proposing("I do not know.", "How many apples are there? 3.\nWhat does X cost? 2."))
    job = job_for(engine, "I buy apples. What do I pay?")
    text, report, _ = await run(job, task="auto", propose="played", method="best_of_n")
    record = report["search"]
    assert list(record["goals"]) == ["all sub-questions", "How many apples are there?", "What does [X] cost?"]
    assert record["ended"] == "solved"
    assert text.startswith("How many apples")
    assert report["discarded_tokens"] == record["tokens"][engine.name] - sum(report["tokens"].values())
    how = next(each for each in engine.sampled if each.max_tokens == 200 and each.temperature == 0.3)
    assert how.top_p == 0.9


async def test_proposals_come_out_of_the_same_limits() -> None:
    engine = writer(proposing("How many apples are there? 3."))
    job = job_for(engine, "I buy apples. What do I pay?")
    limited = replace(job, services=replace(job.services, extra_tokens=3))
    _, report, finish = await run(limited, task="auto", propose="played")
    assert (report["search"]["ended"], report["search"]["goals"], finish) == ("extra_tokens", {"all": 0.0}, "stop")
