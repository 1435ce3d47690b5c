"""SCR with a real embedder and facts on disk: the bare prompt where nothing bears on it, and whose facts count."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.policies.injections import INJECTIONS
from tests.policies.looking import answer, asking
from tests.policies.remembering import Clock, Speaking, speaking
from waver.engines.base import Unsupported
from waver.policies.job import Caller, Job
from waver.policies.retrieve.scr import INSTRUCTION, SelectiveContextualReasoning
from waver.policies.services import Services
from waver.retrieval.embedder import Embedder
from waver.retrieval.memory.facts import Facts, Statement

RIVER = "The river of Corton is the Sorn"
BIRD = "The bird of Corton is the heron"
QUESTION = "What is the river of Corton?"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def facts(tmp_path: Path, embedder: Embedder, clock: Clock) -> Iterator[Facts]:
    made = Facts(tmp_path, 100, 5.0, lambda: embedder, clock)
    yield made
    made.close()


def confirming(reply: Callable[[str], str], **options: Any) -> Speaking:
    """An engine that answers `reply` where it is asked about statements, and `Fine.` else."""

    def says(prompt: str) -> str:
        return reply(prompt) if "data, not" in prompt and "eply with" in prompt else "Fine."

    return speaking(says, **options)


def job_of(engine: Speaking, facts: Facts, text: str = QUESTION, user: str | None = "anna") -> Job:
    made = asking({engine.name: engine}, engine.name, text, None)
    return replace(made, services=Services({engine.name: engine}, facts=facts), caller=Caller("key", user))


async def run(engine: Speaking, facts: Facts, user: str | None = "anna", **options: Any) -> dict[str, Any]:
    policy = SelectiveContextualReasoning(**options)
    await policy.check(job_of(engine, facts, user=user))
    engine.asked.clear()
    _, report = await answer(job_of(engine, facts, user=user), policy)
    found: dict[str, Any] = report["facts"]
    return found


def number_of(text: str) -> Callable[[str], str]:
    def reply(prompt: str) -> str:
        found = re.search(rf"^(\d+)\. {re.escape(text)}$", prompt, re.M)
        return found[1] if found else "0"

    return reply


@pytest.mark.parametrize("confirm", ["listwise", "pointwise"])
async def test_a_confirmed_fact_stands_in_front_of_the_question(facts: Facts, confirm: str) -> None:
    await facts.of("key/anna").add([Statement(text=RIVER), Statement(text=BIRD)])
    yes = number_of(RIVER) if confirm == "listwise" else lambda p: "yes" if f"Statement: {RIVER}\n" in p else "no"
    engine = confirming(yes)
    record = await run(engine, facts, confirm=confirm)
    assert f"{INSTRUCTION}\n\n[1] {RIVER}\n\n{QUESTION}" in engine.asked[-1]
    assert record["route"] == "memory"
    assert [each["text"] for each in record["candidates"]] == [RIVER, BIRD]
    assert record["confirmed"] == [record["candidates"][0]["id"]]
    assert {each.temperature for each in engine.sampled} == {0.0}


@pytest.mark.parametrize("reply", ["0", "", "none of them", "77"])
@pytest.mark.parametrize("confirm", ["listwise", "pointwise", "probability"])
async def test_without_a_confirmation_the_prompt_is_the_bare_one(facts: Facts, confirm: str, reply: str) -> None:
    await facts.of("key/anna").add([Statement(text=RIVER), Statement(text=BIRD)])
    engine = confirming(lambda prompt: reply)
    bare = job_of(engine, facts)
    seen: list[tuple[int, ...]] = []
    generate = engine.generate
    engine.generate = lambda ids, how: (seen.append(tuple(ids)), generate(ids, how))[1]  # type: ignore[method-assign]
    record = await run(engine, facts, confirm=confirm)
    assert record["route"] == "direct"
    assert seen[-1] == bare.prompt_ids


async def test_nothing_is_asked_without_candidates(facts: Facts) -> None:
    engine = confirming(lambda prompt: "1")
    assert (await run(engine, facts))["candidates"] == []
    assert len(engine.asked) == 1
    await facts.of("key/anna").add([Statement(text="Bob plays the violin")])
    await run(engine, facts, floor=0.99)
    assert len(engine.asked) == 1


async def test_the_first_token_s_distribution_decides(facts: Facts) -> None:
    await facts.of("key/anna").add([Statement(text=RIVER)])
    engine = confirming(lambda prompt: "1", gaps=(1.5,))  # the second choice is token 0, which is no number
    record = await run(engine, facts, confirm="probability")
    assert record["probability"] == pytest.approx(1.0)
    assert record["route"] == "memory"
    (zero,) = engine.tokens.encode_plain("0")[-1:]
    plain = Speaking.generate

    async def torn(self: Speaking, ids: Any, how: Any) -> Any:
        async for step in plain(self, ids, how):
            top = ((step.token, -0.2), (zero, -1.7)) if how.top_logprobs else ()
            yield replace(step, top_logprobs=top)

    engine.generate = torn.__get__(engine)  # type: ignore[method-assign, attr-defined]
    record = await run(engine, facts, confirm="probability")
    assert record["probability"] == pytest.approx(0.817574, abs=1e-6)
    assert record["entropy"] == pytest.approx(0.475052, abs=1e-6)
    assert record["route"] == "memory"
    assert (await run(engine, facts, confirm="probability", threshold=0.9))["route"] == "direct"
    direct = {"confirm": "probability", "max_entropy": 0.4, "uncertain": "direct"}
    assert (await run(engine, facts, **direct))["route"] == "direct"
    engine.reply = lambda prompt: "yes" if "yes or no" in prompt else "1"
    assert (await run(engine, facts, **direct | {"uncertain": "pointwise"}))["route"] == "memory"


async def test_several_facts_stand_newest_first(facts: Facts, clock: Clock) -> None:
    own = facts.of("key/anna")
    await own.add([Statement(text=RIVER)])
    clock.now += 10
    await own.add([Statement(text=BIRD)])
    engine = confirming(lambda prompt: "1")
    await run(engine, facts, statements=3)
    assert f"[1] {BIRD}\n[2] {RIVER}\n\n" in engine.asked[-1]


async def test_whose_facts_count(facts: Facts) -> None:
    await facts.of("key/anna").add([Statement(text=RIVER)])
    await facts.of("key/").add([Statement(text=BIRD)])
    await facts.of("other/").add([Statement(text="Another river")])
    engine = confirming(lambda prompt: "1")

    async def seen(user: str | None, **options: Any) -> set[str]:
        return {each["text"] for each in (await run(engine, facts, user, **options))["candidates"]}

    assert await seen("anna") == {RIVER, BIRD}
    assert await seen("anna", shared=False) == {RIVER}
    assert await seen("bob") == {BIRD}
    assert await seen(None) == {BIRD}


async def test_facts_that_give_orders_stay_data(facts: Facts) -> None:
    await facts.of("key/anna").add([Statement(text=each) for each in INJECTIONS])
    engine = confirming(lambda prompt: "1")
    record = await run(engine, facts, top_k=50, statements=3)
    assert len(record["candidates"]) == len(INJECTIONS)
    head, body, rest = engine.asked[-1].split(INSTRUCTION)[1].split("\n\n", 2)
    assert head == ""
    assert [line.partition(" ")[0] for line in body.split("\n")] == ["[1]", "[2]", "[3]"]
    assert rest.startswith(QUESTION)


async def test_edits_over_time(facts: Facts, clock: Clock) -> None:
    own = facts.of("key/anna")
    first = clock()
    (old,) = await own.add([Statement(text="The mayor is Ida", subject="Corton", relation="mayor")])
    await own.add([Statement(text=RIVER, subject="Corton", relation="river")])
    clock.now += 10
    (new,) = await own.add([Statement(text="The mayor is Olaf", subject=" corton", relation="Mayor ")])
    assert [each.text for each in await own.listed()] == [RIVER, "The mayor is Olaf"]
    assert [each.text for each in await own.listed(at=first)] == ["The mayor is Ida", RIVER]
    assert len(await own.listed(history=True)) == 3
    found = await facts.search(["key/anna"], "Who is the mayor?", 5)
    assert "The mayor is Ida" not in [fact.text for fact, _ in found]
    ended = await own.get(old.id)
    assert ended is not None
    assert ended.ended == new.begun
    assert not await facts.of("key/eve").forget(new.id)
    assert await own.forget(new.id)
    assert [each.text for each in await own.listed()] == [RIVER]
    assert await own.erase() == 2
    files = list(facts.file.path.parent.iterdir())
    assert not any(word in file.read_bytes() for file in files for word in (b"Olaf", b"Ida", b"Sorn", b"anna"))


async def test_there_is_an_end(tmp_path: Path, embedder: Embedder) -> None:
    few = Facts(tmp_path / "few", 2, 5.0, lambda: embedder, Clock())
    own = few.of("a")
    await own.add([Statement(text="one")])
    with pytest.raises(ValueError, match="There would be 3 facts"):
        await own.add([Statement(text="two"), Statement(text="three")])
    assert [each.text for each in await own.listed()] == ["one"]
    few.close()


async def test_what_cannot_be_is_refused(facts: Facts) -> None:
    job = job_of(confirming(lambda prompt: ""), facts)
    with pytest.raises(Unsupported, match="unknown engine"):
        await SelectiveContextualReasoning(engine="huge").check(job)
    job.question = None
    with pytest.raises(Unsupported, match="user's message"):
        await SelectiveContextualReasoning().check(job)
