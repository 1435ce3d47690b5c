"""Ingest a file or a folder into a collection: stage it batch by batch, and publish everything at the end.

An ingestion that is interrupted leaves the collection unchanged. Run again, it resumes with what it had staged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from waver.retrieval.base import BadDocument, Document, Parsed, Scalar, TooLarge, Writer
from waver.retrieval.collection import MOST_METADATA, Collection, CutDocument, check, check_id
from waver.retrieval.parsing import Parsers

BATCH = 256
"""Chunks that are embedded and written at a time: what is lost at most when an ingestion is cut off."""
READING = 4
"""Raised when files of some kind are read differently, so that they are read anew when they come again."""


@dataclass(frozen=True)
class Outcome:
    """Result of one file; `reason` says why it was skipped, `warnings` what was lost or guessed."""

    id: str
    state: Literal["added", "unchanged", "skipped"]
    chunks: int = 0
    bytes: int = 0
    reason: str = ""
    warnings: tuple[str, ...] = ()


def files(path: Path) -> list[tuple[str, Path]]:
    """Return the documents below a path as ids (their relative paths, or the one file's name) and files, without hidden
    ones.

    Raises:
        BadDocument: there is nothing there.
    """
    if path.is_file():
        return [(path.name, path)]
    if not path.is_dir():
        raise BadDocument(f"There is no file or folder '{path}'.")
    found = [(file.relative_to(path), file) for file in path.rglob("*") if file.is_file()]
    shown = [(name.as_posix(), file) for name, file in found if not any(part.startswith(".") for part in name.parts)]
    if not shown:
        raise BadDocument(f"There are no files in '{path}'.")
    return sorted(shown)


def file_digest(data: bytes, metadata: Mapping[str, Scalar]) -> str:
    """Return the digest of a document that comes from a file. It changes with the way in which files are read."""
    read = json.dumps([READING, dict(metadata)], sort_keys=True).encode()
    return hashlib.sha256(data + read).hexdigest()


def document_of(name: str, found: Parsed, metadata: Mapping[str, Scalar], digest: str) -> Document:
    """A file's document: what is said of it overrides what it says itself, of which as much is kept as there may be."""
    own = [(key, value) for key, value in found.metadata.items() if key not in metadata]
    kept = own[: max(MOST_METADATA - len(metadata), 0)]
    return Document(name, found.text, found.title, {**dict(kept), **metadata}, digest, found.warnings)


def ingest(
    collection: Collection, parsers: Parsers, path: Path, metadata: Mapping[str, Scalar] | None = None
) -> Iterator[Outcome]:
    """Bring in all files below a path, and say what became of each. What has not changed is left alone; files that
    cannot be read are skipped. Everything becomes searchable when the iterator ends.

    Raises:
        Busy: somebody else is writing to the collection.
    """
    found = files(path)
    tags = dict(metadata or {})
    with collection.store.writing() as writer:
        batch: list[CutDocument] = []
        keep: list[str] = []
        for name, file in found:
            try:
                cut, outcome = _read(collection, writer, parsers, name, file, tags)
            except (BadDocument, TooLarge) as error:
                outcome, cut = Outcome(name, "skipped", reason=str(error)), None
            except OSError as error:
                outcome, cut = Outcome(name, "skipped", reason=error.strerror or "it cannot be read"), None
            if outcome.state == "added":
                keep.append(name)
            if cut is not None:
                batch.append(cut)
            if sum(len(each.chunks) for each in batch) >= BATCH:
                writer.stage(collection.embedded(batch))
                batch = []
            yield outcome
        if batch:
            writer.stage(collection.embedded(batch))
        writer.publish(keep)
        writer.compact()


def _read(
    collection: Collection,
    writer: Writer,
    parsers: Parsers,
    name: str,
    file: Path,
    metadata: Mapping[str, Scalar],
) -> tuple[CutDocument | None, Outcome]:
    check_id(name)
    size = file.stat().st_size
    parsers.check_size(size)
    data = file.read_bytes()
    digest = file_digest(data, metadata)
    searchable, staged = collection.store.digest(name), writer.staged(name)
    if searchable is not None and searchable[0] == digest:
        return None, Outcome(name, "unchanged", searchable[1], size)
    if staged is not None and staged[0] == digest:
        return None, Outcome(name, "added", staged[1], size)
    document = document_of(name, parsers.parse(data, name), metadata, digest)
    check(document)
    cut = collection.cut(document)
    return cut, Outcome(name, "added", len(cut.chunks), size, warnings=document.warnings)
