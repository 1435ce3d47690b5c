"""The nouns of retrieval: `Document`, `Prepared`, `Passage`, `Spec`; what a store must do; what can go wrong."""

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
"""What a passage's document must carry as metadata: each key with this value, or with one of these values."""
Mode = Literal["hybrid", "dense", "lexical"]
"""Passages by meaning (`dense`), by words (`lexical`), or by both rankings fused."""
Vectors = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class RetrievalError(ValueError):
    """Something a user can put right; the message is one sentence for them."""


class BadDocument(RetrievalError):
    """A document that cannot be read."""


class TooLarge(RetrievalError):
    """A document beyond the limits."""


class NoCollection(RetrievalError):
    """No collection has this name."""


class Exists(RetrievalError):
    """A collection has this name already."""


class Busy(RetrievalError):
    """Another process or request is writing to the collection."""


class Damaged(RetrievalError):
    """The files on disk are not what was written."""


class StorageError(RetrievalError):
    """The files cannot be read or written now; what was stored is as it was."""


class NoSpace(StorageError):
    """The disk is full."""


class Unavailable(RetrievalError):
    """An optional package is not installed, or a model is not there or not to be loaded."""


class Unreachable(RetrievalError):
    """A database elsewhere does not answer."""


@dataclass(frozen=True)
class Document:
    """A text with a name. `digest` says whether it has changed: of the file it came from, or else of all it holds."""

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    digest: str = ""

    def __post_init__(self) -> None:
        if not self.digest:
            content = json.dumps([self.text, self.title, dict(self.metadata)], sort_keys=True)
            object.__setattr__(self, "digest", hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest())


@dataclass(frozen=True)
class Prepared:
    """A document ready to be stored: chunks and their unit vectors `[chunks, dimension]`, and its lead sentences."""

    document: Document
    chunks: tuple[str, ...]
    vectors: Vectors
    summary: str


@dataclass(frozen=True)
class Passage:
    """A chunk that was found. `score` grows with relevance: a cosine (`dense`), BM25 (`lexical`), or the fused
    reciprocal rank between 0 and 1 (`hybrid`)."""

    document: str
    chunk: int
    score: float
    text: str
    title: str = ""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """What a collection is made with and keeps for life. Sizes in tokens of the embedder's tokenizer.

    `fingerprint` is the SHA-256 of the embedder's weights: vectors of other weights do not compare.
    """

    name: str
    embedder: str
    fingerprint: str
    dimension: int
    chunk_tokens: int = 128
    chunk_overlap: int = 32


@dataclass(frozen=True)
class Info:
    """A collection as others see it; `bytes` on disk."""

    name: str
    documents: int
    chunks: int
    dimension: int
    embedder: str
    chunk_tokens: int
    chunk_overlap: int
    index: str
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Writer(Protocol):
    """The one writer of a store, as long as it is held. What is staged is kept but seen by nobody until `publish`."""

    def add(self, documents: Sequence[Prepared]) -> None:
        """Store documents and make them searchable, all or none; the same id replaces."""

    def stage(self, documents: Sequence[Prepared]) -> None:
        """Keep documents for a later `publish`, which may come from another process after this one died."""

    def publish(self, keep: Iterable[str]) -> None:
        """Make what is staged under these ids searchable, all at once, and drop what is staged beside them."""

    def remove(self, document: str) -> bool:
        """Forget a document; whether there was one."""

    def staged(self, document: str) -> tuple[str, int] | None:
        """The digest and the number of chunks of a document that is staged."""

    def summarise(self, summaries: Mapping[str, str], kind: str) -> None:
        """Keep summaries of another kind, by document."""

    def compact(self) -> None:
        """Rebuild the index where that pays."""


class Store(Protocol):
    """Where a collection's chunks, vectors and texts are kept. Every method may be called from any thread."""

    spec: Spec

    @property
    def current(self) -> bool:
        """Whether the collection is still the one that was opened, neither deleted nor made anew."""

    def writing(self, wait: float | None = None, token: CancelToken | None = None) -> AbstractContextManager[Writer]:
        """Become the writer.

        Args:
            wait: seconds for which this thread may wait for another writer; as the store is configured if None.
            token: asked before every commit.

        Raises:
            Busy: another one is writing.
        """

    def digest(self, document: str) -> tuple[str, int] | None:
        """The digest and the number of chunks of a document that is searchable."""

    def find(
        self, vector: Vectors | None, words: str | None, count: int, where: Filter
    ) -> tuple[list[Passage], list[Passage]]:
        """The `count` nearest passages to a unit vector `[dimension]`, and the `count` best ones for words; both
        best first, from one state of the collection."""

    def summaries(self, documents: Sequence[str], kind: str) -> dict[str, str]:
        """The summaries that are there, by document."""

    def openings(self, documents: Sequence[str], chunks: int) -> list[tuple[str, str]]:
        """The first so many chunks of documents, in order: a document's id and a text each."""

    def info(self) -> Info:
        """Counts and sizes now."""

    def close(self) -> None:
        """Let go of files and connections."""
