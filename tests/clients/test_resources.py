"""Collections, memories and facts through both kinds of clients, against a real server."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from waver.clients import AsyncWaver, Waver
from waver.clients.calls import Call
from waver.clients.resources import AsyncCollections, AsyncFacts, AsyncMemories, Collections, Facts, Memories

if TYPE_CHECKING:
    from tests.conftest import Running

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def url(start: Callable[..., Running], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("stores")
    config: dict[str, Any] = {
        "engines": {"small": {"model": str(ROOT / "models" / "small")}},
        "presets": {},
        "default_preset": None,
        "retrieval": {"path": str(folder / "collections")},
        "state": str(folder / "state"),
    }
    return start(config=config).v1


def test_collections(url: str, tmp_path: Path) -> None:
    file = tmp_path / "a page.md"
    file.write_text("# Elness\n\nThe river of Elness is the Aure.")
    with Waver(base_url=url) as client:
        made = client.collections.create("towns", chunk_tokens=64)
        assert (made.name, made.documents) == ("towns", 0)
        (uploaded,) = client.collections.upload("towns", [file], metadata={"kind": "town"})
        assert (uploaded.id, uploaded.unchanged) == ("a page.md", False)
        assert client.collections.upload("towns", [file], metadata={"kind": "town"})[0].unchanged
        rows = [{"id": "deep/b ü.md", "text": "The mayor of Farmir is Agnes."}]
        assert client.collections.add("towns", rows)[0].chunks == 1
        assert client.collections.get("towns").documents == 2
        assert [each.name for each in client.collections.list()] == ["towns"]
        found = client.collections.search("towns", "Who is the mayor of Farmir?", top_k=1, mode="lexical")
        assert [each.document for each in found] == ["deep/b ü.md"]
        (only,) = client.collections.search("towns", "mayor", filter={"kind": "town"})
        assert only.metadata == {"kind": "town"}
        first, second = client.collections.documents("towns")
        assert (first.id, first.title, first.metadata) == ("a page.md", "Elness", {"kind": "town"})
        assert [each.id for each in client.collections.documents("towns", limit=1, after=first.id)] == [second.id]
        assert client.collections.documents("towns", after=second.id) == []
        client.collections.remove("towns", "deep/b ü.md")
        assert client.collections.get("towns").documents == 1
        client.collections.delete("towns")
        with pytest.raises(openai.NotFoundError):
            client.collections.get("towns")


async def test_memories_and_facts_awaited(url: str) -> None:
    async with AsyncWaver(base_url=url) as client:
        count = await client.memories.add([{"content": "The dog is called Rex."}, {"content": "It rains."}], user="a")
        assert (count.added, count.known) == (2, 0)
        best, *_ = await client.memories.search("What is the dog called?", user="a")
        assert best.content == "The dog is called Rex."
        assert best.score is not None
        assert (await client.memories.get(best.id, user="a")).content == best.content
        assert await client.memories.export(user="b") == []
        await client.memories.forget(best.id, user="a")
        assert [each["content"] for each in await client.memories.export(user="a")] == ["It rains."]
        assert (await client.memories.erase(user="a", before="2001-01-01")).deleted == 0
        assert (await client.memories.erase(user="a")).deleted == 1
        said = [{"speaker": "Ada", "text": "I live in Elness."}]
        assert (await client.memories.say(said, user="c", conversation="one")).added == 1

        statement = {"subject": "Farmir", "relation": "mayor"}
        for name in ("Agnes", "Bruno"):
            await client.facts.add([{**statement, "text": f"The mayor of Farmir is {name}."}])
        (now,) = await client.facts.export()
        assert now.text.endswith("Bruno.")
        assert len(await client.facts.export(history=True)) == 2
        await client.facts.forget(now.id)
        assert (await client.facts.erase()).deleted == 1


@pytest.mark.parametrize(
    ("one", "other"), [(Collections, AsyncCollections), (Memories, AsyncMemories), (Facts, AsyncFacts)]
)
def test_both_kinds_of_clients_have_the_same_methods(one: type, other: type) -> None:
    mine, theirs = (
        {name: each for name, each in vars(kind).items() if not name.startswith("_")} for kind in (one, other)
    )
    assert mine.keys() == theirs.keys()
    for name, method in mine.items():
        assert method.__doc__ == theirs[name].__doc__
        assert not inspect.iscoroutinefunction(method)
        assert inspect.iscoroutinefunction(theirs[name])


def test_what_is_not_set_is_not_sent() -> None:
    call = Call("post", "/x", lambda found: found, query={"user": None}, body={"a": None, "b": False, "c": 0, "d": []})
    assert call.arguments() == {"cast_to": object, "options": {"params": {}}, "body": {"b": False, "c": 0}}
