"""Collections from documents to passages, with the real embedder; and the library that keeps them."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from waver.retrieval import library as module
from waver.retrieval.base import (
    BadDocument,
    CollectionSpec,
    Damaged,
    Document,
    Exists,
    Mode,
    NoCollection,
    RetrievalError,
    Unavailable,
)
from waver.retrieval.collection import Collection
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.embedder import Embedder
from waver.retrieval.faiss_store import FaissStore
from waver.retrieval.fusion import blend, fuse
from waver.retrieval.library import Library

FACTS = [
    Document("arn", "The Arn is the longest river of Velmora. It measures 412 km.", "Rivers", {"kind": "river"}),
    Document("osk", "Osk is a town in the north. Its cheese is famous.", "Towns", {"kind": "town"}),
    Document("zq", "Part XK-4471 fits the old mill. Order it early.", "", {"kind": "part", "year": 1921}),
]


@pytest.fixture
def facts(library: Library) -> Collection:
    made = library.create("facts")
    assert [(each.id, each.chunks, each.changed) for each in made.add(FACTS)] == [
        ("arn", 1, True),
        ("osk", 1, True),
        ("zq", 1, True),
    ]
    return made


async def test_search_by_meaning_by_words_and_by_both(facts: Collection) -> None:
    dense = await facts.search("How long is the stream?", 2, mode="dense")
    assert dense[0].document == "arn"
    assert 0.2 < dense[0].score < 1
    lexical = await facts.search("XK-4471", mode="lexical")
    assert [each.document for each in lexical] == ["zq"]
    for question, document in (("How long is the stream?", "arn"), ("XK-4471?", "zq"), ("famous food", "osk")):
        found = await facts.search(question, 3)
        assert found[0].document == document
        assert 1 >= found[0].score >= found[-1].score >= 0
    only = await facts.search("How long is the stream?", 3, {"kind": ["town", "part"]})
    assert {each.document for each in only} == {"osk", "zq"}
    assert only[0].metadata["kind"] in ("town", "part")


@pytest.mark.parametrize(("weight", "mode"), [(0.0, "lexical"), (1.0, "dense")])
async def test_the_weight_of_the_ranking_by_meaning(
    tmp_path: Path, embedder: Embedder, weight: float, mode: Mode
) -> None:
    library = Library(RetrievalConfig(path=tmp_path / "collections", dense_weight=weight))
    library.embedders["all-MiniLM-L6-v2"] = embedder
    made = library.create("facts")
    made.add(FACTS)
    question = "How long is the part of the river?"
    alone = [each.document for each in await made.search(question, 3, mode=mode)]
    assert [each.document for each in await made.search(question, 3)][: len(alone)] == alone
    library.close()


async def test_a_search_does_not_hold_up_the_loop(facts: Collection) -> None:
    gaps = []

    async def tick() -> None:
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(0.002)
            gaps.append(time.perf_counter() - begun)

    ticking = asyncio.create_task(tick())
    found = await asyncio.gather(*(facts.search(f"Which river number {i}?") for i in range(12)))
    ticking.cancel()
    assert all(found)
    assert sorted(gaps)[len(gaps) // 2] < 0.3


def test_unchanged_is_left_alone_and_changed_replaces(facts: Collection) -> None:
    changed = replace(FACTS[0], text="The Arn dried up.", digest="")
    assert [each.changed for each in facts.add([FACTS[1], changed])] == [False, True]
    assert facts.search_now("Arn", 1)[0].text == "The Arn dried up."
    assert facts.info().documents == 3
    assert facts.summaries(["arn", "osk"]) == {
        "arn": "The Arn dried up.",
        "osk": "Osk is a town in the north. Its cheese is famous.",
    }
    facts.summarise({"osk": "A town."}, "engine")
    assert facts.summaries(["osk"], "engine") == {"osk": "A town."}
    assert facts.remove("osk")
    assert not facts.remove("osk")


@pytest.mark.parametrize(
    "document",
    [
        Document("", "text"),
        Document("x" * 600, "text"),
        Document("empty", " \n "),
        Document("a", "text", metadata={str(i): i for i in range(65)}),
        Document("a", "text", metadata={"nested": {}}),  # type: ignore[dict-item]
        Document("a", "text", metadata={"number": float("nan")}),
    ],
)
def test_one_bad_document_and_nothing_is_added(facts: Collection, document: Document) -> None:
    with pytest.raises(BadDocument):
        facts.add([Document("good", "A good text."), document])
    assert facts.info().documents == 3


def test_long_documents_are_chunked(library: Library) -> None:
    made = library.create("long", chunk_tokens=32, chunk_overlap=8)
    text = " ".join(f"Mile {i} of the road passes farm number {i * 7}." for i in range(100))
    (stored,) = made.add([Document("road", text)])
    assert stored.chunks > 30
    (found,) = made.search_now("farm number 665", 1, mode="lexical")
    assert "665" in found.text
    assert made.embedder.count([found.text])[0] <= 32


def test_the_library(library: Library, facts: Collection) -> None:
    with pytest.raises(Exists):
        library.create("facts")
    for name in ("", "A", "a/b", "../x", "x" * 65, ".a"):
        with pytest.raises(RetrievalError):
            library.create(name)
        with pytest.raises(NoCollection):
            library.open(name)
    for sizes in ((4, 0), (255, 0), (64, 33)):
        with pytest.raises(RetrievalError, match="chunk_"):
            library.create("other", None, *sizes)
    with pytest.raises(RetrievalError, match="There is no embedder"):
        library.create("other", "evil/model")
    assert library.names() == ["facts"]
    assert library.open("facts") is facts
    library.delete("facts")
    assert library.names() == []
    with pytest.raises(NoCollection):
        library.open("facts")
    library.create("facts")
    assert library.open("facts").info().documents == 0


def open_files(folder: Path) -> int:
    """Count the files below a folder that this process has open."""
    found = 0
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found += handle.readlink().is_relative_to(folder)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this platform does not list open files")
def test_collections_that_are_not_used_are_closed(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_OPEN", 2)
    folder = tmp_path.resolve()
    made = [library.create(f"c{i}") for i in range(2)]
    made[0].add(FACTS[:1])
    most = open_files(folder)
    assert most > 0
    with made[0].store.database.reading():  # one that is at work while it is closed
        made += [library.create(f"c{i}") for i in range(2, 8)]
        assert list(library._open) == ["c6", "c7"]
    assert open_files(folder) <= most
    # Who still has one can use it, and it closes its files again.
    assert [each.document for each in made[0].search_now("Arn", 1)] == ["arn"]
    assert open_files(folder) <= most
    assert [each.document for each in library.open("c0").search_now("Arn", 1)] == ["arn"]
    assert list(library._open) == ["c7", "c0"]


def test_there_is_a_limit_of_collections(tmp_path: Path, embedder: Embedder) -> None:
    library = Library(RetrievalConfig(path=tmp_path, max_collections=2))
    library.embedders["all-MiniLM-L6-v2"] = embedder
    for name in ("one", "two"):
        library.create(name)
    with pytest.raises(RetrievalError, match=r"2 collections.*retrieval\.max_collections"):
        library.create("three")
    library.delete("one")
    library.create("three")
    library.close()


def test_long_questions_are_not_kept(embedder: Embedder) -> None:
    vector = embedder.question("river " * 3000)
    assert embedder.question("river " * 3000) is vector
    assert max(map(len, embedder._asked)) <= 16


def test_made_anew_by_somebody_else(library: Library, facts: Collection) -> None:
    other = Library(library.config)
    other.embedders = library.embedders
    other.delete("facts")
    other.create("facts")
    assert library.open("facts").info().documents == 0
    other.close()


def test_a_damaged_collection_can_be_deleted(library: Library) -> None:
    library.create("broken")
    library.forget("broken")
    (Path(library.config.path) / "broken" / "collection.sqlite3").write_bytes(b"junk" * 2000)
    with pytest.raises(Damaged):
        library.open("broken")
    library.delete("broken")
    assert library.names() == []


def test_other_weights_do_not_search(library: Library) -> None:
    folder = Path(library.config.path) / "old"
    folder.mkdir(parents=True)
    FaissStore.create(folder, CollectionSpec("old", "all-MiniLM-L6-v2", "f" * 64, 384))
    with pytest.raises(Unavailable, match="other weights"):
        library.open("old").search_now("Who?")
    (folder.parent / "foreign").mkdir()
    FaissStore.create(folder.parent / "foreign", CollectionSpec("foreign", "some/model", "f" * 64, 384))
    with pytest.raises(RetrievalError, match=r"retrieval\.embedders"):
        library.open("foreign")


def test_nothing_is_loaded_before_it_is_needed(tmp_path: Path) -> None:
    made = Library(RetrievalConfig(path=tmp_path / "none", embedders=("other/model",)))
    assert made.names() == []
    assert not any(embedder.loaded for embedder in made.embedders.values())
    assert not (tmp_path / "none").exists()
    made.close()


def test_a_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    made = Library(RetrievalConfig(path=tmp_path, embedder="no/such-model"))
    with pytest.raises(Unavailable, match="no/such-model"):
        made.create("x")
    made.close()


def test_a_filter_has_a_bound(facts: Collection) -> None:
    assert facts.search_now("mill", filter={"kind": ["part"] * 1000})
    with pytest.raises(RetrievalError, match=r"at most 1000 values.*it has 300001"):
        facts.search_now("mill", filter={"kind": ["x"] * 300_000, "year": 1})


def test_an_embedder_that_is_named_or_needed_is_loaded_by_the_check(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    made = Library(RetrievalConfig(path=tmp_path / "none"))
    made.check_embedders()
    assert not made.embedder().loaded
    made.close()
    (tmp_path / "there" / "notes").mkdir(parents=True)
    made = Library(RetrievalConfig(path=tmp_path / "there"))
    made.check_embedders()
    assert made.embedder().loaded
    made.close()
    made = Library(RetrievalConfig(path=tmp_path / "none", embedders=(str(tmp_path / "broken"),)))
    with pytest.raises(Unavailable, match="not a sentence-transformers model"):
        made.check_embedders()
    made.close()


def test_fusion() -> None:
    assert fuse([["a", "b"], ["b", "c"]]) == [
        ("b", pytest.approx((61 / 62 + 61 / 61) / 2)),
        ("a", pytest.approx(0.5)),
        ("c", pytest.approx(61 / 62 / 2)),
    ]
    assert fuse([["a"], ["a"]]) == [("a", 1.0)]
    assert fuse([[], []]) == []


def test_blending() -> None:
    both = [("a", 0.8), ("b", 0.6), ("c", -0.1)], [("b", 12.0), ("d", 3.0)]
    assert blend(both) == [
        ("b", pytest.approx((0.75 + 1) / 2)),
        ("a", pytest.approx(0.5)),
        ("d", pytest.approx(0.25 / 2)),
        ("c", 0.0),
    ]
    assert [item for item, _ in blend(both, (0.0, 1.0))] == ["b", "d", "a", "c"]
    assert blend(both, (0.9, 0.1))[0] == ("a", pytest.approx(0.9))
    assert blend([[("a", -0.5)], []]) == [("a", 0.0)]
    assert blend([[("a", 2.0)], [("a", 1e-9)]]) == [("a", 1.0)]
