"""Files and folders into a collection: what is unchanged is left alone, what is cut off is taken up again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.retrieval.conftest import pdf
from waver.retrieval.base import BadDocument, EmbeddedDocument, TooLarge
from waver.retrieval.collection import Collection, CutDocument
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.ingest import Outcome, files, ingest
from waver.retrieval.library import Library
from waver.retrieval.parsing import Parsers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "papers"
    (root / "deep" / ".git").mkdir(parents=True)
    (root / "a.md").write_text("# Arn\n\nThe Arn is 412 km long.")
    (root / "deep" / "b.html").write_text("<p>Osk makes cheese.</p><script>x</script>")
    (root / "deep" / "c.pdf").write_bytes(pdf("The mill is old."))
    (root / "empty.txt").touch()
    (root / "photo.png").write_bytes(b"\x89PNG\r\n" + bytes(100))
    (root / "deep" / ".git" / "config").write_text("hidden")
    with (root / "sparse.txt").open("wb") as file:
        file.truncate(200 * 2**20)
    return root


@pytest.fixture
def collection(library: Library) -> Collection:
    return library.create("papers")


def run(library: Library, collection: Collection, path: Path, **metadata: str) -> dict[str, Outcome]:
    return {each.id: each for each in ingest(collection, library.parsers, path, metadata)}


def test_a_folder(library: Library, collection: Collection, folder: Path) -> None:
    found = run(library, collection, folder)
    assert {name: each.state for name, each in found.items()} == {
        "a.md": "added",
        "deep/b.html": "added",
        "deep/c.pdf": "added",
        "empty.txt": "skipped",
        "photo.png": "skipped",
        "sparse.txt": "skipped",
    }
    assert "empty" in found["empty.txt"].reason
    assert "larger than" in found["sparse.txt"].reason
    assert collection.info().documents == 3
    assert collection.search_now("How long is the Arn?", 1)[0].document == "a.md"
    assert collection.search_now("How long is the Arn?", 1)[0].title == "Arn"


def test_again_only_what_has_changed(library: Library, collection: Collection, folder: Path) -> None:
    run(library, collection, folder)
    (folder / "a.md").write_text("# Arn\n\nThe Arn is 413 km long.")
    states = {name: each.state for name, each in run(library, collection, folder).items()}
    assert states["a.md"] == "added"
    assert states["deep/b.html"] == states["deep/c.pdf"] == "unchanged"
    assert "413" in collection.search_now("How long is the Arn?", 1)[0].text
    assert run(library, collection, folder, lang="en")["a.md"].state == "added"
    assert collection.search_now("Arn", 1, {"lang": "en"})[0].document == "a.md"


def test_cut_off_nothing_shows_and_nothing_is_done_twice(
    library: Library, collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waver.retrieval.ingest.BATCH", 2)
    root = tmp_path / "notes"
    root.mkdir()
    for i in range(6):
        (root / f"{i}.txt").write_text(f"Note number {i} about the Arn.")
    going = ingest(collection, library.parsers, root)
    for _ in range(5):
        next(going)
    going.close()
    assert collection.info().documents == 0
    assert collection.search_now("note", 5) == []
    embedded: list[str] = []
    embed = collection.embedded

    def counted(documents: Sequence[CutDocument]) -> list[EmbeddedDocument]:
        embedded.extend(each.document.id for each in documents)
        return embed(documents)

    monkeypatch.setattr(collection, "embedded", counted)
    assert [each.state for each in ingest(collection, library.parsers, root)] == ["added"] * 6
    assert embedded == ["4.txt", "5.txt"]
    assert collection.info().documents == 6


def test_one_file_or_nothing(folder: Path) -> None:
    assert files(folder / "a.md") == [("a.md", folder / "a.md")]
    for path in (folder / "none", folder / "deep" / ".git" / "hooks"):
        with pytest.raises(BadDocument, match="no file or folder"):
            files(path)
    (folder / "hollow").mkdir()
    with pytest.raises(BadDocument, match="no files"):
        files(folder / "hollow")


def test_names_that_no_document_can_have_are_skipped_with_a_reason(
    library: Library, collection: Collection, tmp_path: Path
) -> None:
    root = tmp_path / "names"
    root.mkdir()
    for name in (b"caf\xe9.txt", b"a\nb.txt", b"tab\t.txt", b"\xff", b"good.txt", "straße.txt".encode()):
        (root / os.fsdecode(name)).write_text("The mill is old.")
    found = {os.fsencode(name): each for name, each in run(library, collection, root).items()}
    assert {name for name, each in found.items() if each.state == "added"} == {b"good.txt", "straße.txt".encode()}
    assert "is not UTF-8" in found[b"caf\xe9.txt"].reason
    assert "is not UTF-8" in found[b"\xff"].reason
    assert "line break" in found[b"a\nb.txt"].reason
    assert "control character" in found[b"tab\t.txt"].reason
    assert collection.info().documents == 2


def test_a_file_beyond_its_kinds_limit_is_skipped(tmp_path: Path) -> None:
    limits = RetrievalConfig(max_kind_bytes={"html": 20, "pdf": 30})
    with Parsers(1000, 1000, 10, 2**30, max_kind=limits.max_kind_bytes) as parsers:
        assert parsers.parse(b"<p>short</p>", "a.html").text == "short"
        assert parsers.parse(b"a text of more than thirty bytes", "a.txt").text
        for data, name in ((b"<p>longer than 20</p>", "a.html"), (pdf("x"), "a.pdf")):
            with pytest.raises(TooLarge, match="the most of its kind"):
                parsers.parse(data, name)
    for wrong in ({"docx": 5}, {"pdf": 0}):
        with pytest.raises(ValueError, match="kind"):
            RetrievalConfig(max_kind_bytes=wrong)
