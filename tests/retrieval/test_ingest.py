"""Files and folders into a collection: what is unchanged is left alone, what is cut off is taken up again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.retrieval.conftest import pdf
from waver.retrieval.base import BadDocument
from waver.retrieval.collection import Collection
from waver.retrieval.ingest import Outcome, files, ingest
from waver.retrieval.library import Library


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
    prepare = collection.prepare
    monkeypatch.setattr(collection, "prepare", lambda document: embedded.append(document.id) or prepare(document))
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
