"""The store of episodes on disk: owners, growth, links, erasure, limits, other weights, and another process."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.retrieval.memory.test_memories import Clock, Hashed, said
from waver.retrieval.base import BadDocument
from waver.retrieval.memory.config import MemoryConfig
from waver.retrieval.memory.episode import PIECE, Episode, Kept, grains, read_episode
from waver.retrieval.memory.episodes import EMPTY, EpisodeIndex, Episodes, Linking, OwnEpisodes
from waver.retrieval.memory.span import Span

LINKING = Linking()


def opened(folder: Path, clock: Clock, fingerprint: str = "a", **limits: Any) -> Episodes:
    embedder = Hashed(fingerprint)
    return Episodes(folder, MemoryConfig(**limits), lambda: embedder, clock)  # type: ignore[arg-type, return-value]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def episodes(tmp_path: Path, clock: Clock) -> Iterator[Episodes]:
    made = opened(tmp_path, clock)
    yield made
    made.close()


def episode(*words: str, **more: Any) -> Episode:
    """A conversation of these utterances."""
    turns = [{"speaker": "user" if i % 2 == 0 else "assistant", "text": text} for i, text in enumerate(words)]
    return Episode.model_validate({"turns": turns, "summary": words[0], "keywords": words[0], **more})


async def texts(own: OwnEpisodes) -> list[str]:
    return [each.episode.turns[0].text for each in await own.page()]


async def write(episodes: Episodes, made: Episode) -> int | None:
    """Take the work that is due, and make an episode of it."""
    work = await episodes.claim()
    assert work is not None
    before = await episodes.of(work.owner_name).of_thread(work.thread)
    return await episodes.finish(work, before, made, LINKING)


async def test_no_owner_sees_another_s(episodes: Episodes) -> None:
    await episodes.of("a").add([episode("red boat", "nice")], LINKING)
    await episodes.of("b").add([episode("blue car", "nice")], LINKING)
    assert await texts(episodes.of("a")) == ["red boat"]
    assert await texts(episodes.of("b")) == ["blue car"]
    assert (await episodes.of("b").index()).links.tolist() == []
    assert await texts(episodes.of("c")) == []
    assert not await episodes.of("b").forget(1)
    assert await episodes.of("c").erase() == 0
    assert await texts(episodes.of("a")) == ["red boat"]


def at(*angles: float) -> np.ndarray:
    """Unit vectors `[angles, 2]`."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def indexed(*rows: np.ndarray) -> EpisodeIndex:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    kept = [Kept(id=10 + i, created=now, updated=now, episode=episode(f"{i}")) for i in range(len(rows))]
    return EpisodeIndex(kept, np.stack(rows))


def test_a_new_node_is_linked_with_the_upper_part_of_the_mixture() -> None:
    index = indexed(at(0.1, 1.5, 1.5, 1.5), at(1.5, 0.05, 1.5, 1.5), at(1.55, 1.5, 1.45, 1.5))
    new = at(0.0, 0.0, 0.0, 0.0)
    new[2:] = 0  # grains without a text
    assert index.linked(new, LINKING) == [(own, *node) for own in (0, 1) for node in ((11, 1), (10, 0))]
    assert index.linked(new, Linking(candidates=3)) == index.linked(new, LINKING)
    assert EMPTY.linked(new, LINKING) == []


async def test_links_are_kept_and_end_with_either_episode(episodes: Episodes) -> None:
    own = episodes.of("a")
    made = await own.add([episode("red boat"), episode("red boat", "nice"), episode("red boat", "oh")], LINKING)
    index = await own.index()
    assert index.vectors.shape == (3, 4, 64)
    pairs = {(int(a) // 4, int(b) // 4) for a, b in index.links}
    assert pairs <= {(1, 0), (2, 0), (2, 1)}
    assert {one for one, _ in pairs} == {1, 2}
    assert await own.forget(made[1])
    # The third is now at the second place.
    left = {(int(a) // 4, int(b) // 4) for a, b in (await own.index()).links}
    assert left == {(1, 0)} & {(one - 1, other) for one, other in pairs}


async def test_an_episode_grows_with_its_conversation(episodes: Episodes, clock: Clock) -> None:
    own = episodes.of("a")
    assert await own.say(said("red boat", "nice"), {}, 0) == 2
    first = await write(episodes, episode("red boat", "nice"))
    assert await episodes.claim() is None
    assert await own.running(said("red boat", "nice", "it is old")) == first
    assert await own.running(said("red boat")) is None  # another conversation may begin so
    assert await own.running(said("hello", "you")) is None
    clock.now += 10
    assert await own.say(said("red boat", "nice", "it is old", "oh"), {}, 0) == 2
    assert [each["text"] for each in await own.waiting()] == ["it is old", "oh"]
    assert await write(episodes, episode("red boat", "nice", "it is old", "oh")) == first
    (kept,) = await own.page()
    assert len(kept.episode.turns) == 4
    assert (kept.updated - kept.created).total_seconds() == 10
    assert await own.waiting() == []
    assert (await own.index()).without(first).episodes == ()


async def test_what_is_being_made_of_an_erased_conversation_is_not_stored(episodes: Episodes) -> None:
    own = episodes.of("a")
    await own.say(said("my secret", "noted"), {}, 0)
    work = await episodes.claim()
    assert work is not None
    await own.erase()
    assert await episodes.finish(work, None, episode("my secret", "noted"), LINKING) is None
    assert await own.page() == []


@pytest.mark.parametrize("everything", [True, False])
async def test_erased_is_gone_from_the_file(episodes: Episodes, everything: bool) -> None:
    own = episodes.of("a")
    await own.say(said("XYZZYPLUGH", "noted"), {}, 0)
    made = await write(episodes, episode("XYZZYPLUGH", "noted"))
    await own.add([episode("red boat")], LINKING)
    assert made is not None
    assert [file.name for file in stored(episodes) if b"XYZZYPLUGH" in file.read_bytes()]
    if everything:
        assert await own.erase() == 2
        assert await own.index() is EMPTY
    else:
        assert await own.forget(made)
        assert await texts(own) == ["red boat"]
        assert (await own.index()).links.tolist() == []
    assert [file.name for file in stored(episodes) if b"XYZZYPLUGH" in file.read_bytes()] == []


def stored(episodes: Episodes) -> list[Path]:
    return list(episodes.file.path.parent.glob("episodes.sqlite3*"))


async def test_a_stretch_of_time(episodes: Episodes, clock: Clock) -> None:
    own = episodes.of("a")
    await own.add([episode("old")], LINKING)
    clock.now += 100
    await own.add([episode("new")], LINKING)
    middle = Span(clock.now - 50, None)
    assert [each.episode.turns[0].text for each in await own.page(middle)] == ["new"]
    assert await own.erase(middle) == 1
    assert await texts(own) == ["old"]


async def test_limits(tmp_path: Path, clock: Clock) -> None:
    episodes = opened(tmp_path, clock, max_episodes=2, max_days=2)
    own = episodes.of("a")
    await own.add([episode("one"), episode("two"), episode("three")], LINKING)
    assert await texts(own) == ["two", "three"]
    clock.now += 86_400 * 1.5
    await own.add([episode("four")], LINKING)
    clock.now += 86_400
    await episodes.expire()
    assert await texts(own) == ["four"]
    episodes.close()


async def test_vectors_of_other_weights_are_made_anew(tmp_path: Path, clock: Clock) -> None:
    before = opened(tmp_path, clock, "a")
    await before.of("a").add([episode("red boat", "nice"), episode("red boats", "nice")], LINKING)
    links = (await before.of("a").index()).links
    before.close()
    after = opened(tmp_path, clock, "b")
    index = await after.of("a").index()
    wanted = grains([each.episode for each in index.episodes], Hashed("b").embed)  # type: ignore[arg-type]
    assert index.vectors == pytest.approx(wanted)
    assert np.array_equal(index.links, links)
    with sqlite3.connect(after.file.path) as db:
        assert db.execute("SELECT DISTINCT embedder FROM episodes").fetchall() == [("b",)]
    db.close()
    after.close()


async def test_searches_see_what_another_process_writes(episodes: Episodes, tmp_path: Path, clock: Clock) -> None:
    own = episodes.of("a")
    await own.add([episode("one")], LINKING)
    assert await own.index() is await own.index()
    other = opened(tmp_path, clock)
    await other.of("a").add([episode("two")], LINKING)
    other.close()
    assert len((await own.index()).episodes) == 2


async def test_an_export_is_read_again(episodes: Episodes) -> None:
    whole = episode("red boat", "nice", time=datetime(2026, 5, 1, tzinfo=UTC))
    await episodes.of("a").add([whole], LINKING)
    (line,) = [each.as_dict() for each in await episodes.of("a").page()]
    assert (line["object"], line["format"]) == ("episode", 1)
    again = read_episode(line)
    assert again == whole
    assert len(await episodes.of("b").add([again, again], LINKING)) == 1
    for wrong in ({"object": "memory", "content": "x"}, {"object": "episode"}, {"object": "episode", "turns": []},
                  line | {"format": 2}, line | {"turns": [{"speaker": "a", "text": "\ud800"}]}, 3):  # fmt: skip
        with pytest.raises(BadDocument):
            read_episode(wrong)


def test_the_vectors_of_the_grains() -> None:
    embed: Any = Hashed().embed
    conversation = episode("red boat", "nice", "it is old", summary="", keywords="red; boat")
    (vectors,) = grains([conversation], embed)
    exchanges = embed(["user: red boat\nassistant: nice", "user: it is old"])
    assert vectors[1] == pytest.approx(exchanges.mean(axis=0))
    assert np.linalg.norm(vectors[1]) < 0.999  # a mean, as in the paper
    assert not vectors[2].any()
    assert vectors[3] == pytest.approx(embed(["red; boat"])[0])
    long = episode("a " * PIECE)
    assert np.linalg.norm(grains([long], embed)[0, 0]) == pytest.approx(1.0)
