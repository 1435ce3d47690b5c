"""The store on disk: what goes in is found, one state at a time; what was tampered with is refused with a sentence."""

from __future__ import annotations

import math
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.retrieval.conftest import new_store, prepared, unit
from waver.retrieval.base import Busy, Damaged, NoCollection
from waver.retrieval.database import Database
from waver.retrieval.faiss_store import DATABASE, FaissStore


def ids(store: FaissStore, seed: int, count: int = 3, **where: object) -> list[str]:
    """Documents nearest to the first chunk of a document made with this seed."""
    return [p.document for p in store.find(unit(seed)[0], None, count, where)[0]]  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> FaissStore:
    made = new_store(tmp_path)
    with made.writing() as writer:
        writer.add([prepared(f"d{i}", i, lang="en" if i % 2 else "de", n=i) for i in range(20)])
    return made


def test_what_goes_in_is_found_by_meaning_and_by_words(store: FaissStore) -> None:
    dense, lexical = store.find(unit(7)[0], "seed7 part1", 3, {})
    assert (dense[0].document, dense[0].chunk, dense[0].text) == ("d7", 0, "d7 seed7 part0")
    assert dense[0].score == pytest.approx(1, abs=1e-5)
    assert [p.score for p in dense] == sorted((p.score for p in dense), reverse=True)
    assert (lexical[0].document, lexical[0].chunk) == ("d7", 1)
    assert (store.info().documents, store.info().chunks, store.info().index) == (20, 40, "flat")


def test_filters(store: FaissStore) -> None:
    assert ids(store, 7, 1, lang="en") == ["d7"]
    assert "d7" not in ids(store, 7, 20, lang="de")
    assert ids(store, 7, 1, n=[6, 8]) in (["d6"], ["d8"])
    assert ids(store, 7, 1, lang="en", n=7.0) == ["d7"]
    assert ids(store, 7, 1, lang="fr") == ids(store, 7, 1, n=[]) == ids(store, 7, 1, other=None) == []
    lexical = store.find(None, "seed7", 5, {"lang": "de"})[1]
    assert lexical == []


def test_words_that_are_syntax_elsewhere_are_words(store: FaissStore) -> None:
    for question in (
        'seed7" OR "',
        "seed7 AND NOT (",
        "text:seed7*",
        "'; DROP TABLE chunks; --",
        "^ NEAR(",
        "",
        "\0",
        "?",
    ):
        found = store.find(None, question, 5, {})[1]
        assert not found or found[0].document == "d7"
    assert store.info().chunks == 40


def test_bm25_is_the_formula(store: FaissStore) -> None:
    (first, *_) = store.find(None, "seed3", 5, {})[1]
    n, df, tf, length, average = 40, 2, 1, 3, 3
    idf = math.log((n - df + 0.5) / (df + 0.5))
    assert first.score == pytest.approx(idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / average)), rel=1e-6)


def test_the_same_id_replaces_and_removed_is_gone(store: FaissStore) -> None:
    with store.writing() as writer:
        writer.add([prepared("d3", 103, chunks=1)])
        assert writer.remove("d4")
        assert not writer.remove("d4")
    assert ids(store, 103, 1) == ["d3"]
    texts = {p.text for p in store.find(unit(3)[0], None, 40, {})[0]}
    assert len(texts) == 37
    assert not any("seed3 " in text or "seed4 " in text for text in texts)
    assert store.find(None, "seed3", 5, {})[1] == store.find(None, "seed4", 5, {})[1] == []
    assert (store.info().documents, store.info().chunks) == (19, 37)


def test_small_segments_are_merged_and_compaction_drops_the_dead(store: FaissStore) -> None:
    for i in range(100, 160):
        with store.writing() as writer:
            writer.add([prepared(f"x{i}", i)])
    assert len(list(store.folder.glob("*.faiss"))) <= 8
    assert all(ids(store, i, 1) == [f"x{i}"] for i in range(100, 160))
    with store.writing() as writer:
        for i in range(100, 150):
            writer.remove(f"x{i}")
        writer.compact()
    assert len(list(store.folder.glob("*.faiss"))) == 1
    assert all(ids(store, i, 1) == [f"x{i}"] for i in range(150, 160))
    with store.database.reading() as db:
        assert db.execute("SELECT COUNT(*) FROM dead").fetchone() == (0,)
        assert db.execute("SELECT SUM(rows) FROM segments").fetchone() == (60,)
        db.execute("INSERT INTO words (words) VALUES ('integrity-check')")
    with store.writing() as writer:
        for i in range(20):
            writer.remove(f"d{i}")
        for i in range(150, 160):
            writer.remove(f"x{i}")
        writer.compact()
    assert (store.info().chunks, list(store.folder.glob("*.faiss")), ids(store, 1)) == (0, [], [])


def test_the_configured_kind_is_built(tmp_path: Path) -> None:
    made = new_store(tmp_path)
    made.kind = "hnsw"
    with made.writing() as writer:
        writer.add([prepared(f"d{i}", i, chunks=10) for i in range(30)])
        writer.compact()
    assert made.info().index == "hnsw"
    assert ids(FaissStore(made.folder), 9, 1) == ["d9"]


def test_staged_is_unseen_until_published_all_at_once(store: FaissStore) -> None:
    with store.writing() as writer:
        writer.stage([prepared("d1", 201), prepared("new", 202)])
        writer.stage([prepared("old", 203)])
        assert writer.staged("new") is not None
        assert store.digest("new") is None
    assert store.info().documents == 20
    assert "new" not in ids(store, 202, 40)
    assert store.find(None, "seed202", 5, {})[1] == []
    again = FaissStore(store.folder)
    with again.writing() as writer:
        writer.add([prepared("other", 204)])
        writer.publish(["d1", "new"])
        assert writer.staged("old") is None
    for seen in (store, again):
        assert ids(seen, 202, 1) == ["new"]
        assert ids(seen, 201, 1) == ["d1"]
        assert "old" not in ids(seen, 203, 60)
        assert seen.info().documents == 22
    again.close()


def test_documents_are_listed_page_by_page(store: FaissStore) -> None:
    first = store.listed(None, 8)
    assert [each.id for each in first] == sorted(f"d{i}" for i in range(20))[:8]
    assert [first[1].title, first[1].chunks] == ["", 2]
    rest = store.listed(first[-1].id, 100)
    assert len({each.id for each in [*first, *rest]}) == 20
    assert store.listed(rest[-1].id, 5) == []
    with store.writing() as writer:
        writer.stage([prepared("a", 1)])
        writer.remove("d0")
    assert [each.id for each in store.listed(None, 2)] == ["d1", "d10"]


def test_summaries_are_kept_until_their_document_changes(store: FaissStore) -> None:
    with store.writing() as writer:
        writer.summarise({"d1": "Written by an engine.", "none": "x"}, "engine")
    assert store.summaries(["d1", "d2", "none"], "engine") == {"d1": "Written by an engine."}
    assert store.summaries(["d1"], "lead") == {"d1": "d1 seed1 part0"}
    with store.writing() as writer:
        writer.add([prepared("d1", 301)])
    assert store.summaries(["d1"], "engine") == {}


def test_readers_see_whole_states_while_a_writer_writes(tmp_path: Path) -> None:
    """Every write replaces all documents with ones of a new seed: no search may ever see two seeds, or none."""
    store = new_store(tmp_path)

    def write(seed: int) -> None:
        with store.writing() as writer:
            writer.add([prepared(f"d{i}", seed, chunks=3) for i in range(5)])
            if seed % 5 == 0:
                writer.compact()

    write(0)
    over, states, failures = threading.Event(), set(), []

    def read(reader: FaissStore) -> None:
        while not over.is_set():
            dense, lexical = reader.find(unit(0)[0], "part1", 15, {})
            seeds = {p.text.split()[1] for p in dense}
            states.update(seeds)
            if len(seeds) != 1 or len(dense) != 15 or not {p.text.split()[1] for p in lexical} <= seeds:
                failures.append((len(dense), seeds))

    other = FaissStore(store.folder)
    threads = [threading.Thread(target=read, args=(reader,)) for reader in (store, store, other)]
    for thread in threads:
        thread.start()
    for seed in range(1, 31):
        write(seed)
    over.set()
    for thread in threads:
        thread.join()
    other.close()
    assert not failures
    assert len(states) > 3


def test_one_writer_at_a_time(store: FaissStore) -> None:
    with store.writing(), pytest.raises(Busy, match="Somebody else"), FaissStore(store.folder, None, 0.1).writing():
        pass
    with store.writing():
        assert ids(store, 3, 1) == ["d3"]


def test_another_process_is_kept_out_too(store: FaissStore) -> None:
    import subprocess
    import sys

    code = (
        "import sys, pathlib; from waver.retrieval.faiss_store import FaissStore\n"
        "with FaissStore(pathlib.Path(sys.argv[1])).writing(): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Busy), store.writing():
            pass
        other.kill()
    with store.writing() as writer:
        writer.remove("d1")


def damage(store: FaissStore, what: str) -> None:
    (vectors,) = store.folder.glob("*.faiss")
    file = store.folder / DATABASE
    store.close()
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    data = vectors.read_bytes()
    match what:
        case "cut":
            vectors.write_bytes(data[:-100])
        case "flipped":
            vectors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "missing":
            vectors.unlink()
        case "pickle":
            vectors.write_bytes(b"cos\nsystem\n(S'touch /tmp/pwned'\ntR." + bytes(len(data) - 36))
        case "text cut":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        case "text foreign":
            file.unlink()
            with sqlite3.connect(file) as db:
                db.execute("CREATE TABLE chunks (id)")
            db.close()
        case "text garbage":
            file.write_bytes(b"hello" * 1000)
        case "ids cut":
            with sqlite3.connect(file) as db:
                db.execute("UPDATE segments SET ids = x'00'")
            db.close()


@pytest.mark.parametrize(
    "what", ["cut", "flipped", "missing", "pickle", "text cut", "text foreign", "text garbage", "ids cut"]
)
def test_damage_is_one_clear_sentence(store: FaissStore, what: str) -> None:
    damage(store, what)
    with pytest.raises(Damaged) as found:
        FaissStore(store.folder).find(unit(1)[0], "seed1", 3, {})
    assert "notes" in str(found.value)
    assert "\n" not in str(found.value)
    assert str(store.folder) not in str(found.value)


@pytest.mark.parametrize("what", ["cut", "flipped", "missing", "pickle", "text foreign", "text garbage", "ids cut"])
def test_what_is_damaged_is_not_described_as_well(store: FaissStore, what: str) -> None:
    damage(store, what)
    with pytest.raises(Damaged):
        FaissStore(store.folder).info()


def test_a_file_that_goes_while_it_is_open_is_told(store: FaissStore) -> None:
    assert ids(store, 1, 1) == ["d1"]
    (vectors,) = store.folder.glob("*.faiss")
    vectors.rename(store.folder.parent / vectors.name)
    with pytest.raises(Damaged, match=f"'notes' is damaged: {vectors.name} is missing"):
        store.info()
    (store.folder.parent / vectors.name).rename(vectors)
    assert store.info().documents == 20


def test_swapped_files_are_noticed(store: FaissStore, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    other = new_store(tmp_path / "two")
    with other.writing() as writer:
        writer.add([prepared(f"d{i}", i + 50) for i in range(20)])
    (mine,), (theirs,) = store.folder.glob("*.faiss"), other.folder.glob("*.faiss")
    shutil.copy(theirs, mine)
    with pytest.raises(Damaged, match="not the file that was written"):
        ids(FaissStore(store.folder), 1)
    (tmp_path / "three").mkdir()
    shutil.copy(store.folder / DATABASE, tmp_path / "three" / DATABASE)
    with pytest.raises(Damaged, match="holds the collection 'notes'"):
        FaissStore(tmp_path / "three")


def test_a_deleted_collection_is_gone_for_those_who_had_it_open(store: FaissStore) -> None:
    assert store.current
    shutil.rmtree(store.folder)
    assert not store.current
    with pytest.raises(NoCollection):
        ids(store, 1)
    with pytest.raises(NoCollection), store.writing():
        pass
    with pytest.raises(NoCollection):
        Database(store.folder / DATABASE)


def test_opening_does_not_read_the_vectors(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store.writing() as writer:
        writer.add([prepared("d", 1, chunks=50_000)])
    begun = time.perf_counter()
    assert FaissStore(store.folder).info().chunks == 50_000
    assert time.perf_counter() - begun < 10
    with store.reading() as (_, snapshot):
        assert np.shares_memory(snapshot.segments[0].ids, snapshot.segments[0].chunks)
