"""The store of memories on disk: owners, erasure, limits, queues, other weights, and several writers."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from waver.retrieval.base import BadDocument, Damaged
from waver.retrieval.memory.config import MemoryConfig
from waver.retrieval.memory.memories import Memories, OwnMemories
from waver.retrieval.memory.span import Span
from waver.retrieval.memory.turns import MOST_TRIES, Turn
from waver.retrieval.memory.unit import Unit, read_unit


class Hashed:
    """An embedder of hashed words."""

    dimension, loaded = 64, True

    def __init__(self, fingerprint: str = "a") -> None:
        self.fingerprint, self.embedded = fingerprint, 0

    @property
    def model(self) -> Any:
        return self

    def embed(self, texts: list[str]) -> np.ndarray:
        self.embedded += len(texts)
        out = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(out, texts, strict=True):
            for word in text.lower().split():
                row[hash((word, self.fingerprint)) % self.dimension] += 1
            row /= max(float(np.linalg.norm(row)), 1e-9)
        return out

    def question(self, text: str) -> np.ndarray:
        return self.embed([text])[0]


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def opened(folder: Path, clock: Clock, fingerprint: str = "a", **limits: Any) -> Memories:
    embedder = Hashed(fingerprint)
    return Memories(folder, MemoryConfig(**limits), lambda: embedder, clock)  # type: ignore[arg-type, return-value]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memories(tmp_path: Path, clock: Clock) -> Iterator[Memories]:
    made = opened(tmp_path, clock)
    yield made
    made.close()


def facts(*contents: str) -> list[Unit]:
    return [Unit(content=each) for each in contents]


async def texts(own: OwnMemories) -> list[str]:
    return [each.unit.content for each in await own.page()]


async def test_owners_do_not_see_each_other(memories: Memories) -> None:
    anna, bob = memories.of("key/anna"), memories.of("key/bob")
    (first,) = await anna.add(facts("Anna has a red boat"))
    await bob.add(facts("Bob has a blue boat", "Bob swims"))
    assert await texts(anna) == ["Anna has a red boat"]
    assert [m.unit.content for m in (await anna.index()).memories] == ["Anna has a red boat"]
    assert not await bob.forget(first)
    assert await bob.erase() == 2
    assert await texts(anna) == ["Anna has a red boat"]
    assert (await bob.index()).memories == ()
    assert await bob.merge(Unit(content="stolen", abstract=True), [first]) is None


async def test_words_that_are_known_are_not_kept_twice(memories: Memories) -> None:
    own = memories.of("a")
    assert len(await own.add(facts("Anna runs.", "anna RUNS", "Bob runs."))) == 2
    assert await own.add(facts("Anna runs!")) == []
    assert len(await memories.of("b").add(facts("Anna runs!"))) == 1


def on_disk(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def test_what_is_erased_is_in_no_file(memories: Memories, tmp_path: Path, clock: Clock) -> None:
    own = memories.of("key/secretuser")
    await own.add(facts("The zebracode is 4711", "The quaggacode is 4712"))
    await own.say([Turn("user", "my okapicode is 4713", clock.now)], {"engine": "x"}, 10, 60)
    held = on_disk(tmp_path)
    assert all(word in held for word in (b"zebracode", b"quaggacode", b"okapicode", b"secretuser"))
    assert await own.erase() == 2
    left = on_disk(tmp_path)
    assert not any(word in left for word in (b"zebracode", b"quaggacode", b"okapicode", b"secretuser"))
    assert await own.page() == []
    assert await own.waiting() == []


async def test_erasing_by_time_takes_abstracts_along(memories: Memories, clock: Clock) -> None:
    own = memories.of("a")
    old = await own.add(facts("Anna ran on Monday"))
    clock.now += 100
    new = await own.add(facts("Anna ran on Tuesday"))
    abstract = await own.merge(Unit(content="Anna runs", abstract=True, count=2), [*old, *new])
    assert [m.archived_by for m in await own.page()] == [abstract, abstract, None]
    assert await own.erase(Span(None, clock.now - 50)) == 2  # the old one, and what repeats it
    (left,) = await own.page()
    assert (left.id, left.archived_by) == (new[0], None)


async def test_limits(tmp_path: Path, clock: Clock) -> None:
    memories = opened(tmp_path, clock, max_memories=3, max_days=2)
    own = memories.of("a")
    await own.add(facts("one", "two"))
    clock.now += 86_400 * 1.5
    await own.add(facts("three", "four"))
    assert await texts(own) == ["two", "three", "four"]
    clock.now += 86_400
    await memories.expire()
    assert await texts(own) == ["three", "four"]
    memories.close()


async def test_vectors_of_other_weights_are_made_anew(tmp_path: Path, clock: Clock) -> None:
    before = opened(tmp_path, clock, "a")
    await before.of("a").add(facts("Anna runs"))
    before.close()
    after = opened(tmp_path, clock, "b")
    index = await after.of("a").index()
    assert index.dense(await after.question("Anna runs")) == pytest.approx([1.0])
    with sqlite3.connect(after.file.path) as db:
        assert db.execute("SELECT DISTINCT embedder FROM memories").fetchall() == [("b",)]
    db.close()
    after.close()


async def test_searches_see_what_another_process_writes(memories: Memories, tmp_path: Path, clock: Clock) -> None:
    own = memories.of("a")
    await own.add(facts("one"))
    first = await own.index()
    assert await own.index() is first
    other = opened(tmp_path, clock)
    await other.of("a").add(facts("two"))
    other.close()
    assert [m.unit.content for m in (await own.index()).memories] == ["one", "two"]


def said(*words: str, start: float = 0.0) -> list[Turn]:
    return [Turn("user" if i % 2 == 0 else "assistant", text, start) for i, text in enumerate(words)]


async def test_only_new_turns_are_kept_and_threads_stay_apart(memories: Memories) -> None:
    own = memories.of("a")
    assert await own.say(said("hello", "hi"), {}, 4, 0) == 2
    assert await own.say(said("hello", "hi", "I am Anna", "hi Anna"), {}, 4, 0) == 2
    assert await own.say(said("another", "talk"), {}, 4, 0) == 2
    first, second = await memories.claim(), await memories.claim()
    assert first is not None
    assert second is not None
    assert [turn.text for turn in first.turns] == ["hello", "hi", "I am Anna", "hi Anna"]
    assert [turn.text for turn in second.turns] == ["another", "talk"]
    assert await memories.claim() is None


async def test_work_survives_and_is_done_once(memories: Memories, tmp_path: Path, clock: Clock) -> None:
    own = memories.of("a")
    await own.say(said("hello", "hi"), {"engine": "x"}, 2, 60)
    lost = await memories.claim()
    assert lost is not None
    assert await memories.claim() is None  # somebody is at it
    clock.now += 1000  # who did not come back
    again = opened(tmp_path, clock)
    work = await again.claim()
    assert work is not None
    assert work.settings == {"engine": "x"}
    assert len(await again.finish(work, facts("done"), 2, 2, None, 0)) == 1
    assert await again.claim() is None
    assert await again.next_due() is None
    assert await memories.finish(lost, facts("twice"), 2, 2, None, 0) == []  # too late
    assert await texts(own) == ["done"]
    assert await own.waiting() == []  # texts that were read and are no history any more
    again.close()


async def test_turns_that_come_meanwhile_are_not_lost(memories: Memories) -> None:
    own = memories.of("a")
    await own.say(said("hello", "hi"), {}, 2, 0)
    work = await memories.claim()
    assert work is not None
    await own.say(said("hello", "hi", "more", "of it"), {}, 2, 0)
    await memories.finish(work, [], 2, 2, None, 0)
    rest = await memories.claim()
    assert rest is not None
    assert [turn.text for turn in rest.turns if turn.text] == ["more", "of it"]


@pytest.mark.parametrize("span", [Span(), Span(0.0, None)])
async def test_what_is_being_made_of_erased_turns_is_not_stored(memories: Memories, span: Span) -> None:
    own = memories.of("a")
    await own.say(said("my secret", "noted"), {}, 2, 0)
    work = await memories.claim()
    assert work is not None
    await own.erase(span)
    assert await memories.finish(work, facts("the secret"), 2, 2, None, 0) == []
    assert await own.page() == []


async def test_work_that_always_fails_is_given_up(memories: Memories, clock: Clock) -> None:
    await memories.of("a").say(said("hello", "hi"), {}, 2, 0)
    for _ in range(MOST_TRIES):
        work = await memories.claim()
        assert work is not None
        await memories.postpone(work, 0.0)
    assert await memories.claim() is None
    assert await memories.next_due() is None


async def test_several_writers_at_once(memories: Memories, tmp_path: Path, clock: Clock) -> None:
    others = [opened(tmp_path, clock) for _ in range(3)]
    every = [memories, *others]

    async def write(i: int) -> None:
        own = every[i % 4].of(f"owner{i % 2}")
        await own.add(facts(f"fact {i}"))
        await own.say(said(f"turn {i}", "ok"), {}, 2, 0)

    await asyncio.gather(*(write(i) for i in range(24)))
    for i in range(2):
        assert sorted(await texts(memories.of(f"owner{i}"))) == sorted(f"fact {n}" for n in range(24) if n % 2 == i)
    for other in others:
        other.close()


async def test_another_format_is_refused(memories: Memories) -> None:
    await memories.of("a").add(facts("one"))
    db = sqlite3.connect(memories.file.path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    memories.file.close()
    with pytest.raises(Damaged, match="this release"):
        memories.file._connection().__enter__()


def test_the_exported_form_is_read_again() -> None:
    unit = Unit(
        content="Anna moved to Rome.", keywords=("move",), time=datetime(2026, 1, 2, tzinfo=UTC), persons=("Anna",),
        location="Rome", sources=("D1:3",), abstract=True, count=4,
    )  # fmt: skip
    line = {"object": "memory", "format": 1, "id": 3, "created": "x", **json.loads(unit.model_dump_json())}
    assert read_unit(line) == unit
    assert read_unit({"content": "x", "time": "2026-01-02"}).time == datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    "wrong",
    [None, [], {}, {"content": ""}, {"content": "x", "format": 2}, {"content": "x", "object": "turn"},
     {"content": "x", "time": "soon"}, {"content": "x", "time": "0001-01-01T00:00:00+14:00"},
     {"content": "\ud800"}, {"content": "x", "owner": "b"}, {"content": "x" * 3000}],
)  # fmt: skip
def test_what_is_no_memory_is_refused_in_a_sentence(wrong: Any) -> None:
    with pytest.raises(BadDocument, match=r"\.$"):
        read_unit(wrong)
