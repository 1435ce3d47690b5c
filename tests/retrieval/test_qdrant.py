"""The Qdrant adapter on Qdrant's own embedded mode: the same behaviour as the store on disk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.retrieval.conftest import prepared, spec, unit
from tests.retrieval.test_collection import FACTS
from waver.retrieval.base import Document, Exists, NoCollection, NoDocument, Unreachable
from waver.retrieval.collection import Collection
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.embedder import Embedder
from waver.retrieval.library import Library

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def library(embedder: Embedder) -> Iterator[Library]:
    made = Library(RetrievalConfig(store="qdrant", url=":memory:"))
    made.embedders["all-MiniLM-L6-v2"] = embedder
    yield made
    made.close()


@pytest.fixture
def facts(library: Library) -> Collection:
    made = library.create("facts")
    made.add(FACTS)
    return made


def test_search_replace_remove(facts: Collection) -> None:
    assert facts.search_now("How long is the stream?", 1, mode="dense")[0].document == "arn"
    assert [each.document for each in facts.search_now("XK 4471", mode="lexical")] == ["zq"]
    assert facts.search_now("How long is the river?", 3)[0].document == "arn"
    assert {p.document for p in facts.search_now("river", 3, {"kind": ["town", "part"]})} == {"osk", "zq"}
    assert [p.document for p in facts.search_now("river", 3, {"year": 1921.0})] == ["zq"]
    assert [each.changed for each in facts.add([FACTS[1], Document("arn", "The Arn dried up.")])] == [False, True]
    assert facts.search_now("Arn", 1)[0].text == "The Arn dried up."
    assert (facts.info().documents, facts.info().chunks) == (3, 3)
    assert facts.remove("osk")
    assert not facts.remove("osk")
    facts.summarise({"arn": "Dry."}, "engine")
    assert facts.summaries(["arn", "zq"], "engine") == {"arn": "Dry."}
    assert facts.summaries(["zq"]) == {"zq": "Part XK-4471 fits the old mill. Order it early."}


def test_documents_are_listed_page_by_page(facts: Collection) -> None:
    found = facts.store.listed(None, 10)
    assert {each.id: (each.chunks, dict(each.metadata)) for each in found} == {
        each.id: (1, dict(each.metadata)) for each in FACTS
    }
    pages = [facts.store.listed(after, 1) for after in [None, *(each.id for each in found)]]
    assert [each.id for page in pages for each in page] == [each.id for each in found]
    with pytest.raises(NoDocument, match="no document 'none'"):
        facts.store.listed("none", 1)


def test_the_library(library: Library, facts: Collection) -> None:
    with pytest.raises(Exists):
        library.create("facts")
    assert library.names() == ["facts"]
    library.delete("facts")
    assert library.names() == []
    with pytest.raises(NoCollection):
        library.open("facts")


def test_staged_is_unseen_until_published(library: Library) -> None:
    library.backend.create(spec("staged"))
    store = library.backend.open("staged")
    with store.writing() as writer:
        writer.add([prepared("d1", 1)])
        writer.stage([prepared("d1", 2), prepared("new", 3)])
        writer.stage([prepared("old", 4)])
        assert writer.staged("new") == (prepared("new", 3).document.digest, 2)
        assert store.info().documents == 1
        writer.publish(["d1", "new"])
        assert writer.staged("old") is None
    assert store.info().documents == 2
    assert store.find(unit(2)[0], None, 1, {})[0][0].document == "d1"


def test_of_two_writers_the_later_one_wins(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes write one document: what was begun later is there alone, whoever ends last."""
    library.backend.create(spec("both"))
    one, other = library.backend.open("both"), library.backend.open("both")
    begun = iter((1_000, 2_000))
    monkeypatch.setattr("time.time_ns", lambda: next(begun) * 1000)
    with one.writing() as earlier, other.writing() as later:
        upsert = earlier._upsert  # type: ignore[attr-defined]

        def interrupted(documents: object, staged: bool) -> int:
            version: int = upsert(documents, staged)
            later.add([prepared("d", 2)])
            return version

        monkeypatch.setattr(earlier, "_upsert", interrupted)
        earlier.add([prepared("d", 1)])
    assert one.info().documents == 1
    assert one.digest("d") == (prepared("d", 2).document.digest, len(prepared("d", 2).chunks))
    begun = iter((1_500, 1_800))
    with one.writing() as stale:
        stale.add([prepared("d", 3)])  # its clock is behind
    assert one.info().documents == 1
    assert one.digest("d") == (prepared("d", 2).document.digest, len(prepared("d", 2).chunks))


def test_a_server_that_does_not_answer() -> None:
    made = Library(RetrievalConfig(store="qdrant", url="http://127.0.0.1:9"))
    with pytest.raises(Unreachable):
        made.names()
    made.close()


def test_the_store_and_its_url_belong_together() -> None:
    for wrong in ({"store": "qdrant"}, {"url": "http://q:6333"}, {"store": "qdrant", "url": "file:///tmp"}):
        with pytest.raises(ValueError, match=r"url|pattern"):
            RetrievalConfig(**wrong)  # type: ignore[arg-type]
