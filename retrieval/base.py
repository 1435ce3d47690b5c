"""Data types of retrieval, the protocols of a store and its writer, and the errors that users can cause."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from waver.retrieval.cancellation import CancelToken

Scalar = str | int | float | bool | None
Filter = Mapping[str, Scalar | Sequence[Scalar]]
"""Metadata that a passage's document must have: each key with this value, or with one of these values."""
Mode = Literal["hybrid", "dense", "lexical"]
"""Passages by meaning (`dense`), by words (`lexical`), or by both, their scores added up."""
Vectors = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class RetrievalError(ValueError):
    """An error that a user can correct; its message is one sentence for them."""


class BadDocument(RetrievalError):
    """A document that cannot be read."""


class NoDocument(RetrievalError):
    """A collection has no document of this id."""


class TooLarge(RetrievalError):
    """A document beyond the limits."""


class NoCollection(RetrievalError):
    """No collection has this name."""


class Exists(RetrievalError):
    """A collection of this name exists already."""


class Busy(RetrievalError):
    """Another process or request is writing to the collection."""


class Damaged(RetrievalError):
    """The files on disk differ from what was written."""


class StorageError(RetrievalError):
    """The files cannot be read or written now; stored data is unchanged."""


class NoSpace(StorageError):
    """The disk is full."""


class Unavailable(RetrievalError):
    """An optional package is not installed, or a model is missing or must not be loaded."""


class Unreachable(RetrievalError):
    """A remote database does not answer."""


@dataclass(frozen=True)
class Document:
    """A text with a name. `digest` says whether it has changed: of the file it came from, or else of all it holds.
    `warnings` say what was lost or guessed when it was read; they are not stored."""

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    digest: str = ""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.digest:
            content = json.dumps([self.text, self.title, dict(self.metadata)], sort_keys=True)
            object.__setattr__(self, "digest", hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest())


@dataclass(frozen=True)
class Parsed:
    """Content of a file: its title (may be empty), its text, the metadata that it carries itself, and a sentence
    for each thing that was lost or guessed."""

    title: str
    text: str
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class EmbeddedDocument:
    """A document ready to be stored: chunks and their unit vectors `[chunks, dimension]`, and its lead sentences."""

    document: Document
    chunks: tuple[str, ...]
    vectors: Vectors
    summary: str


@dataclass(frozen=True)
class Passage:
    """A chunk that a search found. A higher `score` is better: a cosine (`dense`), BM25 (`lexical`), or both as
    shares of the best, between 0 and 1 (`hybrid`); or the reranker's score."""

    document: str
    chunk: int
    score: float
    text: str
    title: str = ""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Listed:
    """A document as a list of them has it: without its text."""

    id: str
    title: str
    chunks: int
    metadata: Mapping[str, Scalar]


@dataclass(frozen=True)
class CollectionSpec:
    """Properties of a collection that are fixed when it is created. Sizes in tokens of the embedder's tokenizer.

    `fingerprint` is the SHA-256 of the embedder's weights: vectors of other weights do not compare.
    """

    name: str
    embedder: str
    fingerprint: str
    dimension: int
    chunk_tokens: int = 128
    chunk_overlap: int = 32
    rerank: str = ""
    """The reranker that orders what a search found; none if empty."""


@dataclass(frozen=True)
class CollectionInfo:
    """Public description of a collection; `bytes` on disk."""

    name: str
    documents: int
    chunks: int
    dimension: int
    embedder: str
    chunk_tokens: int
    chunk_overlap: int
    index: str
    bytes: int
    rerank: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "rerank" or value}


class Writer(Protocol):
    """The single writer of a store, while it is held. Staged documents are stored, but not searchable until
    `publish`."""

    def add(self, documents: Sequence[EmbeddedDocument]) -> None:
        """Store documents and make them searchable, all or none; a document with the same id is replaced."""

    def stage(self, documents: Sequence[EmbeddedDocument]) -> None:
        """Store documents for a later `publish`, which may come from another process after this one died."""

    def publish(self, keep: Iterable[str]) -> None:
        """Make the staged documents with these ids searchable, all at once, and delete other staged documents."""

    def remove(self, document: str) -> bool:
        """Delete a document; return whether there was one."""

    def staged(self, document: str) -> tuple[str, int] | None:
        """Return the digest and the number of chunks of a staged document."""

    def summarise(self, summaries: Mapping[str, str], kind: str) -> None:
        """Store summaries of another kind, by document."""

    def compact(self) -> None:
        """Rebuild the index if enough vectors lie outside of it or are deleted."""


class Store(Protocol):
    """Storage of a collection's chunks, vectors and texts. Every method may be called from any thread."""

    spec: CollectionSpec

    @property
    def current(self) -> bool:
        """Return whether the opened collection still exists: it was neither deleted nor made anew."""

    def writing(self, wait: float | None = None, token: CancelToken | None = None) -> AbstractContextManager[Writer]:
        """Acquire the writer.

        Args:
            wait: seconds for which this thread may wait for another writer; as the store is configured if None.
            token: asked before every commit.

        Raises:
            Busy: another one is writing.
        """

    def digest(self, document: str) -> tuple[str, int] | None:
        """Return the digest and the number of chunks of a searchable document."""

    def find(
        self, vector: Vectors | None, words: str | None, count: int, where: Filter
    ) -> tuple[list[Passage], list[Passage]]:
        """Return the `count` nearest passages to a unit vector `[dimension]`, and the `count` best ones for words; both
        best first, from one state of the collection."""

    def listed(self, after: str | None, count: int) -> list[Listed]:
        """Return at most `count` searchable documents, in an order that stays: from the first one, or those that come
        after the document `after`.

        Raises:
            NoDocument: the place of `after` is not known, as it is not there.
        """

    def summaries(self, documents: Sequence[str], kind: str) -> dict[str, str]:
        """Return the summaries that exist, by document."""

    def openings(self, documents: Sequence[str], chunks: int) -> list[tuple[str, str]]:
        """Return the first `chunks` chunks of documents, in order: a document's id and a text each."""

    def info(self) -> CollectionInfo:
        """Return counts and sizes as they are now."""

    def close(self) -> None:
        """Close files and connections."""
