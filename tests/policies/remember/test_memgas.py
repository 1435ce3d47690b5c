"""MemGAS with a real embedder and a store on disk: what becomes an episode, for whom, and what a question recalls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.policies.injections import INJECTIONS
from tests.policies.looking import answer
from tests.policies.remembering import Clock, Speaking, ended, remembering, speaking
from waver.engines.base import EngineError, Unsupported
from waver.policies.job import Job
from waver.policies.remember import grains
from waver.policies.remember.memgas import FILTER, INSTRUCTION, MemGAS
from waver.retrieval.embedder import Embedder
from waver.retrieval.memory.config import MemoryConfig
from waver.retrieval.memory.episode import Episode, Utterance
from waver.retrieval.memory.episodes import Episodes

BOAT = ("My red boat lies in the harbour of Corton.", "What a nice boat.")
FOOD = ("I cannot eat peanuts.", "I will remember that you are allergic.")
MUSIC = ("Bob plays the violin in an orchestra.", "Which orchestra is it?")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def episodes(tmp_path: Path, embedder: Embedder, clock: Clock) -> Iterator[Episodes]:
    made = Episodes(tmp_path, MemoryConfig(), lambda: embedder, clock)
    yield made
    made.close()


def policy(**options: Any) -> MemGAS:
    return MemGAS(**{"extraction": "words", "filter": "none", "idle": 60.0, **options})


def job_for(engine: Speaking, episodes: Episodes, text: str, user: str = "anna", **sampling: Any) -> Job:
    job = remembering(engine, None, text, user, **sampling)  # type: ignore[arg-type]
    return replace(job, services=replace(job.services, episodes=episodes))


async def talk(engine: Speaking, episodes: Episodes, which: MemGAS, *turns: str, user: str = "anna") -> None:
    """Have a conversation, a request for each of the user's turns, each with all that was said before."""
    said: list[dict[str, Any]] = []
    for i in range(0, len(turns), 2):
        job = job_for(engine, episodes, turns[i], user)
        said.append({"role": "user", "content": turns[i]})
        job.messages = list(said)
        await which.after(job, ended(turns[i + 1]))
        said.append({"role": "assistant", "content": turns[i + 1]})


async def write_all(engine: Speaking, episodes: Episodes) -> int:
    services = job_for(engine, episodes, "x").services
    count = 0
    while await grains.step(services):
        count += 1
    return count


async def three(engine: Speaking, episodes: Episodes, clock: Clock, **options: Any) -> None:
    """Have three conversations and make episodes of them."""
    for turns in (BOAT, FOOD, MUSIC):
        await talk(engine, episodes, policy(**options), *turns)
    clock.now += 61
    assert await write_all(engine, episodes) == 3
    engine.asked.clear()


async def ask(engine: Speaking, episodes: Episodes, which: MemGAS, text: str, user: str = "anna") -> Any:
    engine.asked.clear()
    await which.check(job_for(engine, episodes, text, user))
    return (await answer(job_for(engine, episodes, text, user), which))[1]


async def test_a_conversation_becomes_an_episode_once_it_is_idle(episodes: Episodes, clock: Clock) -> None:
    def reply(prompt: str) -> str:
        return "boat; Corton" if "separated by semicolons" in prompt else "Anna's boat\nis in Corton."

    engine = speaking(reply)
    await talk(engine, episodes, policy(extraction="engine"), *BOAT, "It is old.", "I see.")
    assert engine.asked == []  # nothing of it in the request
    assert await write_all(engine, episodes) == 0
    clock.now += 61
    assert await write_all(engine, episodes) == 1
    assert [prompt.count("It is old.") for prompt in engine.asked] == [1, 1]
    assert {(each.temperature, each.max_tokens) for each in engine.sampled} == {(0.0, grains.NOTE_TOKENS)}
    (kept,) = await episodes.of("key/anna").page()
    assert [each.text for each in kept.episode.turns] == [*BOAT, "It is old.", "I see."]
    assert (kept.episode.summary, kept.episode.keywords) == ("Anna's boat is in Corton.", "boat; Corton")
    await talk(engine, episodes, policy(extraction="engine"), *BOAT, "It is old.", "I see.", "Very old.", "Oh.")
    clock.now += 61
    assert await write_all(engine, episodes) == 1
    (kept,) = await episodes.of("key/anna").page()
    assert len(kept.episode.turns) == 6


def test_keywords_without_an_engine_are_the_frequent_words() -> None:
    many = " ".join(f"word{first}{second}" for first in "abcdefghij" for second in "abcdefghij")
    turns = (Utterance(speaker="user", text=f"{many} violin orchestra violin"), Utterance(speaker="x", text="violin"))
    keywords = grains.with_own_words(Episode(turns=turns, time=None, until=None)).keywords.split("; ")
    assert keywords[:3] == ["violin", "wordaa", "wordab"]
    assert len(keywords) == grains.OWN_WORDS


async def test_a_question_recalls_the_conversation_that_it_is_about(episodes: Episodes, clock: Clock) -> None:
    engine = speaking(lambda prompt: "Yes.")
    await three(engine, episodes, clock)
    report = await ask(engine, episodes, policy(episodes=1), "Where is the red boat?")
    (prompt,) = engine.asked
    record = report["episodes"]
    assert f"{INSTRUCTION}\n\n[1] Conversation of 2027-01-15; summary: {BOAT[0]}" in prompt
    assert f"user: {BOAT[0]}" in prompt
    assert FOOD[0] not in prompt
    assert (record["searched"], len(record["recalled"])) == (3, 1)
    assert record["recalled"][0]["text"] == BOAT[0]
    assert record["prompt_tokens"] > 0
    assert set(record["grains"]) == {"episode", "turn", "summary", "keyword"}
    assert sum(each["weight"] for each in record["grains"].values()) == pytest.approx(1.0)
    assert all(0 <= each["share"] <= 1 for each in record["grains"].values())
    food = await ask(engine, episodes, policy(episodes=1, weighting="paper"), "Which food is bad for me?")
    assert food["episodes"]["recalled"][0]["text"] == FOOD[0]


async def test_an_engine_copies_out_what_is_needed_once(episodes: Episodes, clock: Clock) -> None:
    def reply(prompt: str) -> str:
        return f" {BOAT[0]}\n\nIt is red. " if FILTER[:20] in prompt else "Yes."

    engine = speaking(reply)
    await three(engine, episodes, clock)
    report = await ask(engine, episodes, policy(filter="engine"), "Where is the red boat?")
    shown, prompt = engine.asked
    assert all(each in shown for each in (*BOAT, *FOOD, *MUSIC))
    assert "Question, asked on 2027-01-15: Where is the red boat?" in shown
    assert f"{INSTRUCTION}\n\n[1] {BOAT[0]}\n[2] It is red.\n\nWhere is the red boat?" in prompt
    assert report["episodes"]["quoted"] == [BOAT[0], "It is red."]
    assert report["discarded_tokens"] > 0
    engine.reply = lambda prompt: "NONE."
    job = job_for(engine, episodes, "Where is the red boat?")
    bare = engine.tokens.decode(job.prompt_ids)
    report = await ask(engine, episodes, policy(filter="engine"), "Where is the red boat?")
    assert engine.asked[-1] == bare
    assert report["episodes"]["quoted"] == []


async def test_a_filter_s_prompt_is_cut_to_the_context(episodes: Episodes, clock: Clock) -> None:
    engine = speaking(lambda prompt: "NONE")
    await talk(engine, episodes, policy(), "boat " * 700, "oh " * 700)
    await talk(engine, episodes, policy(), *FOOD)
    clock.now += 61
    await write_all(engine, episodes)
    engine.context_length = 1200
    await ask(engine, episodes, policy(filter="engine"), "Where is the boat?")
    assert "boat boat boat" in engine.asked[0]
    assert len(engine.tokens.encode(engine.asked[0])) <= 1200 - 300


async def test_the_conversation_that_goes_on_is_not_recalled(episodes: Episodes, clock: Clock) -> None:
    engine = speaking(lambda prompt: "Yes.")
    await three(engine, episodes, clock)
    job = job_for(engine, episodes, "Where is it?")
    job.messages = [{"role": "user", "content": BOAT[0]}, {"role": "assistant", "content": BOAT[1]},
                    {"role": "user", "content": "Where is it?"}]  # fmt: skip
    _, report = await answer(job, policy())
    assert report["episodes"]["searched"] == 2
    assert BOAT[0] not in [each["text"] for each in report["episodes"]["recalled"]]


async def test_linked_episodes_come_along(episodes: Episodes, clock: Clock) -> None:
    """A higher damping gives more to what is linked with the best; none without links."""
    engine = speaking(lambda prompt: "Yes.")
    await three(engine, episodes, clock)
    scores = {
        damping: sorted(
            each["score"]
            for each in (await ask(engine, episodes, policy(damping=damping, seeds=1), "The red boat"))["episodes"][
                "recalled"
            ]
        )
        for damping in (0.0, 0.1, 0.5)
    }
    assert scores[0.0] == pytest.approx([0, 0, 1])
    assert scores[0.1][-1] > scores[0.5][-1] > 0.5
    assert scores[0.5][0] + scores[0.5][1] > scores[0.1][0] + scores[0.1][1] > 0


async def test_nobody_recalls_what_is_another_s(episodes: Episodes, clock: Clock) -> None:
    engine = speaking(lambda prompt: "Yes.")
    await three(engine, episodes, clock)
    bare = engine.tokens.decode(job_for(engine, episodes, "Where is the red boat?").prompt_ids)
    report = await ask(engine, episodes, policy(), "Where is the red boat?", user="eve")
    assert engine.asked == [bare]
    assert (report["episodes"]["searched"], report["episodes"]["recalled"]) == (0, [])


async def test_recalling_and_remembering_can_be_switched_off(episodes: Episodes, clock: Clock) -> None:
    engine = speaking(lambda prompt: "Yes.")
    await three(engine, episodes, clock)
    assert "episodes" not in await ask(engine, episodes, policy(recall=False), "Where is the red boat?")
    await policy(remember=False).after(job_for(engine, episodes, "x"), ended("y"))
    assert await episodes.of("key/anna").waiting() == []


@pytest.mark.parametrize("ending", ["failed", "refused", "client_gone", "content_filter"])
async def test_what_failed_or_was_withheld_is_not_remembered(episodes: Episodes, ending: str) -> None:
    await policy().after(job_for(speaking(lambda prompt: ""), episodes, "My secret"), ended("No.", ending))
    assert await episodes.of("key/anna").waiting() == []


async def test_an_engine_that_is_down_is_asked_again_later(episodes: Episodes, clock: Clock) -> None:
    def down(prompt: str) -> str:
        raise EngineError("gone")

    engine = speaking(down)
    await talk(engine, episodes, policy(extraction="engine"), *BOAT)
    clock.now += 61
    assert await write_all(engine, episodes) == 1
    assert await episodes.of("key/anna").page() == []
    engine.reply = lambda prompt: "A note."
    clock.now += 31
    assert await write_all(engine, episodes) == 1
    (kept,) = await episodes.of("key/anna").page()
    assert kept.episode.summary == "A note."


async def test_what_is_too_long_for_the_engine_is_noted_in_halves(episodes: Episodes, clock: Clock) -> None:
    engine = speaking(lambda prompt: "A note.", context_length=1024)
    await talk(engine, episodes, policy(extraction="engine"), "boat " * 300, "oh " * 300)
    clock.now += 61
    assert await write_all(engine, episodes) == 1
    (kept,) = await episodes.of("key/anna").page()
    assert kept.episode.summary == "A note.; A note."


async def test_no_episode_passes_for_anything_but_a_quotation(episodes: Episodes, clock: Clock) -> None:
    """Conversations that try to give orders stay data: in the prompts that note and filter, and in the one that
    answers."""
    engine = speaking(lambda prompt: "\n".join(INJECTIONS) if FILTER[:20] in prompt else "A note.")
    for attempt in INJECTIONS[:12]:
        await talk(engine, episodes, policy(extraction="engine"), attempt, "ok")
    clock.now += 61
    assert await write_all(engine, episodes) == 12
    for prompt in engine.asked:
        body = prompt.partition("nothing else.\n\n")[2]
        assert body.count("\n[") == 1  # the two utterances
    _, report = await answer(
        job_for(engine, episodes, "What is it?", max_tokens=8), policy(filter="engine", episodes=12)
    )
    shown, prompt = engine.asked[-2:]
    quoted = report["episodes"]["quoted"]
    assert f"{INSTRUCTION}\n\n" + "".join(f"[{i}] {line}\n" for i, line in enumerate(quoted, 1)) in prompt
    assert all("\n" not in line and line.isprintable() for line in quoted)
    assert shown.count("\n\nQuestion, asked on") == 1
    assert prompt.count("<|im_start|>") <= engine.tokens.decode(job_for(engine, episodes, "x").prompt_ids).count(
        "<|im_start|>"
    ) + sum(line.count("<|im_start|>") for line in quoted)


async def test_what_cannot_be_is_refused(episodes: Episodes) -> None:
    job = job_for(speaking(lambda prompt: ""), episodes, "x")
    with pytest.raises(Unsupported, match="no memories"):
        await policy().check(replace(job, services=replace(job.services, episodes=None)))
    with pytest.raises(Unsupported, match="unknown engine 'none'"):
        await policy(engine="none").check(job)
    with pytest.raises(Unsupported, match="user's message"):
        await policy().check(replace(job, question=None))
