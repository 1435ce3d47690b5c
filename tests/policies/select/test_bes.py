"""BES on an engine that says what it is told: goals, budgets, what is given, and what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from tests.policies.looking import asking
from tests.policies.remembering import Speaking, speaking
from waver import knights, timed_patterns
from waver.engines.base import Sampling, Step, Unsupported
from waver.goals import knights_task, regex_task, score, sum_task
from waver.policies.base import Proceed
from waver.policies.job import Job
from waver.policies.select.bes import BES

SUM = "What is 12 + 30 - 5?"


class Writer(Speaking):
    """An engine that says the next of some texts at each call, whatever it is asked."""

    began: asyncio.Event

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        begun = len(prompt_ids) - (len(prompt_ids) if sampling.answer_start is None else sampling.answer_start)
        how = replace(sampling, answer_start=None, max_tokens=sampling.max_tokens - begun)
        async with aclosing(super().generate(prompt_ids, how)) as steps:
            async for step in steps:
                self.began.set()
                await asyncio.sleep(0)
                yield step


def writer(*texts: str | Callable[[str], str]) -> Writer:
    """An engine that says these texts in turn, the last one again and again."""
    left = list(texts)

    def reply(prompt: str) -> str:
        text = left.pop(0) if len(left) > 1 else left[0]
        return text if isinstance(text, str) else text(prompt)

    base = speaking(reply)
    made = Writer(base.tokens, "", reply=reply)
    made.began = asyncio.Event()
    return made


def job_for(engine: Speaking, text: str = SUM, **sampling: Any) -> Job:
    return asking({engine.name: engine}, engine.name, text, None, **{"max_tokens": 200, **sampling})


async def run(job: Job, **options: Any) -> tuple[str, dict[str, Any], str | None]:
    """The answer's text, the report, and how it finished."""
    policy = BES(**{"task": "sums", "delimiter": "\n", **options})
    await policy.check(job)
    steps = []
    async for step in Proceed((policy,))(job):
        if step.token >= 0:
            job.report.observe(step)
        steps.append(step)
    text = job.writer.tokens.decode([step.token for step in steps if step.token >= 0])
    return text, job.report.as_dict(), steps[-1].finish


async def test_the_goals_of_a_sum() -> None:
    task = sum_task(SUM)
    assert task.names == ("all", "total 42", "total 37")
    assert (await task.judge("12 + 30 is 42.\nSo 37")).values == (1, 1, 1)
    assert (await task.judge("It is 42")).values == (0, 1, 0)
    assert score(task.root, (await task.judge("It is 42")).values) == pytest.approx(0.35)
    assert (await task.judge("It is 37")).solved
    assert (await sum_task("Add -3 + 4").judge("1")).solved


async def test_the_goals_of_a_puzzle_do_not_use_its_solution() -> None:
    puzzle = knights.make(4, 1)
    task = knights_task(puzzle.text)
    (solution,) = puzzle.solutions()

    def told(kinds: dict[str, bool]) -> str:
        return "\n".join(f"{name} is a {'knight' if kind else 'knave'}." for name, kind in kinds.items())

    assert (await task.judge(told(solution))).solved
    assert not (await task.judge(told(solution))).wrong
    assert (await task.judge("")).values == (0,) * 5
    some = dict(list(solution.items())[:2])
    assert not (await task.judge(told(some))).solved
    assert not (await task.judge(told(some))).wrong
    other = {name: not kind for name, kind in solution.items()}
    assert (await task.judge(told(other))).wrong or not (await task.judge(told(other))).solved


async def test_a_slow_pattern_counts_as_not_met_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_patterns, "SECONDS", 0.4)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    beside = asyncio.create_task(tick())
    verdict = await regex_task(["(a|aa)+$", "b"]).judge("a" * 5000 + "b")
    beside.cancel()
    assert verdict.values == (0, 0, 1)
    assert ticks > 20, "the event loop ran meanwhile"


async def test_the_first_right_answer_is_given() -> None:
    engine = writer("It is 5.", "12 + 30 is 42\n42 - 5 is 37")
    text, report, finish = await run(job_for(engine), expand=1, method="best_of_n")
    record = report["search"]
    assert text.startswith("12 + 30 is 42\n42 - 5 is 37")
    assert finish == "stop"
    assert (record["ended"], record["best_so_far"], record["whole"]) == ("solved", False, True)
    assert record["goals"] == {"all": 1.0, "total 42": 1.0, "total 37": 1.0}
    assert [each["how"] for each in record["tree"]] == ["root", "expand", "expand"]
    assert (record["calls"], record["chosen"]) == (2, 2)
    # What was drawn and not given is discarded, and nothing is counted twice.
    assert report["discarded_tokens"] == record["tokens"][engine.name] - sum(report["tokens"].values())


async def test_steps_go_on_from_each_other() -> None:
    engine = writer("first 42\n", "then\n", "and 37")
    _, report, _ = await run(job_for(engine), expand=1, method="tree", iterations=3)
    record = report["search"]
    assert record["tree"][1]["score"] == pytest.approx(0.35)
    assert len(engine.asked[0]) < len(engine.asked[-1]) or record["tree"][2]["parents"] == [0]
    assert all(each.seed != engine.sampled[0].seed for each in engine.sampled[1:])
    assert {each.temperature for each in engine.sampled[:3]} <= {0.6, 0.0}


@pytest.mark.parametrize(
    ("options", "ended"),
    [({"iterations": 3}, "iterations"), ({"tokens": 30}, "tokens"), ({"seconds": 1e-9}, "seconds")],
)
async def test_a_budget_ends_with_the_best_so_far(options: dict[str, Any], ended: str) -> None:
    count = iter(range(1000))
    engine = writer(lambda prompt: f"{next(count)} apples and 42\nno more")
    text, report, finish = await run(job_for(engine), **options)
    record = report["search"]
    assert (record["ended"], record["best_so_far"]) == (ended, True)
    assert text
    assert finish == "stop"
    assert engine.open == 0
    if ended == "iterations":
        assert "42" in text


async def test_the_server_s_limit_ends_it() -> None:
    engine = writer("wrong 42\nno")
    job = job_for(engine)
    limited = replace(job, services=replace(job.services, extra_tokens=5))
    _, report, finish = await run(limited)
    assert (report["search"]["ended"], finish) == ("extra_tokens", "stop")


async def test_an_answer_is_never_longer_than_asked_for() -> None:
    count = iter(range(1000))
    engine = writer(lambda prompt: f"{next(count)} is 42 and so on and so on\n" * 3)
    job = job_for(engine, max_tokens=20)
    steps = [step async for step in Proceed((BES(task="sums", delimiter="\n", iterations=10),))(job)]
    assert sum(step.token >= 0 for step in steps) <= 20
    assert steps[-1].finish in ("length", "stop")
    assert all(step.finish is None for step in steps[:-1])


async def test_who_leaves_leaves_no_sequence_behind() -> None:
    engine = writer("one 42\ntwo\nthree")
    job = job_for(engine)

    async def read() -> None:
        async with aclosing(Proceed((BES(task="sums", iterations=1000),))(job)) as steps:
            async for _ in steps:
                pass

    running = asyncio.create_task(read())
    await engine.began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert engine.open == 0


async def test_what_cannot_be_is_refused() -> None:
    engine = writer("")
    for which, text, said in ((BES(task="sums"), "Who?", "no sum"), (BES(task="knights"), "Who?", "no puzzle")):
        with pytest.raises(Unsupported, match=said):
            await which.check(job_for(engine, text))
    with pytest.raises(Unsupported, match="user's message"):
        await BES(task="sums").check(replace(job_for(engine), question=None))
    with pytest.raises(Unsupported, match="response_format"):
        await BES(task="sums").check(job_for(engine, grammar="{}"))
    job = job_for(engine)
    job.report.policy.append({"name": "l_rag"})
    with pytest.raises(Unsupported, match="l_rag"):
        await BES(task="sums").check(job)
    for wrong in ({"task": "regex"}, {"task": "sums", "goals": ["x"]}, {"task": "regex", "goals": ["("]}):
        with pytest.raises(ValidationError, match="goal"):
            BES(**wrong)  # type: ignore[arg-type]
