"""A collection of documents: add documents, search for passages."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from waver.retrieval.base import (
    BadDocument,
    CollectionInfo,
    CollectionSpec,
    Document,
    EmbeddedDocument,
    Filter,
    Mode,
    Passage,
    RetrievalError,
    Store,
    Unavailable,
    Writer,
)
from waver.retrieval.cancellation import CancelToken, in_thread
from waver.retrieval.chunking import chunks, headed, lead, shortened
from waver.retrieval.embedder import Embedder
from waver.retrieval.fusion import blend
from waver.retrieval.reranker import Reranker
from waver.retrieval.words import MOST as MOST_TERMS
from waver.retrieval.words import wanted

DEPTH, AT_LEAST = 4, 100
"""Each ranking is read so many times deeper than passages are wanted before they are fused, and at least so deep. Of
20 passages each the best ten have an nDCG 1 point lower (Cranfield's collection), of 1,000 the same."""
RERANKED = 50
"""Passages that a reranker reads of a search, unless more are wanted."""
MOST_ID, MOST_METADATA = 512, 64
UNNAMEABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that no id has: they do not pass through addresses, logs and terminals."""
MOST_VALUES = 1000
"""Of a filter, all its keys together."""


@dataclass(frozen=True)
class Stored:
    """A document that is searchable now; `changed` is false if it already was, with the same content."""

    id: str
    chunks: int
    changed: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Addition:
    """Documents to be added: all of them, and those that have changed, chunked and embedded."""

    documents: tuple[Document, ...]
    prepared: Mapping[str, EmbeddedDocument]


@dataclass(frozen=True)
class CutDocument:
    """A document in chunks, and what the embedder reads of each: its document's title before it."""

    document: Document
    chunks: tuple[str, ...]
    read: tuple[str, ...]


class Progress:
    """Counts of an addition that is under way; written by the thread that does it, read by any."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.documents = self.chunks = self.embedded = 0

    def embed(self, count: int) -> None:
        """Count chunks that were embedded."""
        self.embedded += count

    def as_dict(self) -> dict[str, float]:
        """Return documents and chunks that were read so far, chunks that were embedded, and seconds since it began."""
        return {
            "documents": self.documents,
            "chunks": self.chunks,
            "embedded": self.embedded,
            "seconds": round(time.monotonic() - self._began, 1),
        }


class Collection:
    """Documents under one name, embedded by one model. Every method may be called from any thread.

    `search` is for coroutines: it runs in a thread and does not block the event loop. Methods that write block their
    thread while another writer is at work; coroutines write through `Library.add` and `Library.write`.
    """

    def __init__(
        self,
        store: Store,
        embedder: Embedder,
        threads: ThreadPoolExecutor,
        reranker: Reranker | None = None,
        dense_weight: float = 0.4,
    ) -> None:
        self.store, self.embedder, self._threads, self.reranker = store, embedder, threads, reranker
        self._weights = (dense_weight, 1 - dense_weight)

    @property
    def spec(self) -> CollectionSpec:
        return self.store.spec

    async def search(
        self, query: str, top_k: int = 5, filter: Filter | None = None, mode: Mode = "hybrid", rerank: bool = True
    ) -> list[Passage]:
        """Return the passages for a question, best first.

        Args:
            filter: metadata that their documents must carry; a sequence of values means any of them.
            rerank: let the collection's reranker, if it has one, order the `RERANKED` best.

        Raises:
            RetrievalError: the filter is too large, the collection cannot be read, or a model not be loaded.
        """
        return await in_thread(self._threads, self.search_now, query, top_k, filter, mode, rerank)

    def search_now(
        self, query: str, top_k: int = 5, filter: Filter | None = None, mode: Mode = "hybrid", rerank: bool = True
    ) -> list[Passage]:
        """Search in the calling thread; blocks. See `search`."""
        where = filter or {}
        check_filter(where)
        if self.reranker is None or not rerank:
            return self._ranked(query, top_k, where, mode)
        found = self._ranked(query, max(top_k, RERANKED), where, mode)
        scores = self.reranker.score([(query, headed(each.title, each.text)) for each in found]).scores
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [replace(found[i], score=float(scores[i])) for i in order]

    def _ranked(self, query: str, top_k: int, where: Filter, mode: Mode) -> list[Passage]:
        vector = None if mode == "lexical" else self._checked.question(query)
        words = None if mode == "dense" else query
        depth = max(AT_LEAST, DEPTH * top_k) if mode == "hybrid" else top_k
        dense, lexical = self.store.find(vector, words, depth, where)
        if mode != "hybrid":
            return lexical if mode == "lexical" else dense
        passages = {(each.document, each.chunk): each for each in (*dense, *lexical)}
        scored = [[((each.document, each.chunk), each.score) for each in ranking] for ranking in (dense, lexical)]
        ranked = blend(scored, self._weights)
        return [replace(passages[key], score=score) for key, score in ranked[:top_k]]

    def unread(self, query: str, mode: Mode = "hybrid") -> tuple[str, ...]:
        """Return a sentence for each part of a question that a search leaves out."""
        said = []
        if mode != "lexical" and (beyond := self._checked.unread(query)):
            most = self.embedder.most_tokens
            said.append(f"The question has {most + beyond} tokens; '{self.embedder.name}' reads the first {most}.")
        if mode != "dense" and (count := len(wanted(query))) > MOST_TERMS:
            said.append(f"The question has {count} different words; passages are looked for by the first {MOST_TERMS}.")
        return tuple(said)

    def add(self, documents: Sequence[Document]) -> list[Stored]:
        """Make documents searchable, all or none; a document with the same id is replaced, an unchanged one is left
        alone.

        Raises:
            BadDocument: one of them cannot be kept.
            Busy: somebody else is writing.
        """
        addition = self.prepared(documents)
        with self.store.writing() as writer:
            return self.commit(addition, writer)

    def prepared(
        self, documents: Sequence[Document], token: CancelToken | None = None, progress: Progress | None = None
    ) -> Addition:
        """Chunk and embed the documents that have changed, without waiting for a writer.

        Raises:
            BadDocument: one of them cannot be kept, or two have one id.
            Cancelled: `token` was.
        """
        names: set[str] = set()
        for document in documents:
            check(document)
            if document.id in names:
                raise BadDocument(f"Two documents are called '{document.id[:80]}': one would replace the other.")
            names.add(document.id)
        new = [each for each in documents if (self.store.digest(each.id) or ("",))[0] != each.digest]
        return Addition(tuple(documents), {each.document.id: each for each in self.prepare_all(new, token, progress)})

    def commit(self, addition: Addition, writer: Writer) -> list[Stored]:
        """Make an addition searchable, all or none. Documents that were written since it was prepared are compared
        anew."""
        known = {each.id: self.store.digest(each.id) for each in addition.documents}
        new = {
            each.id: addition.prepared.get(each.id) or self.prepare(each)
            for each in addition.documents
            if (known[each.id] or ("",))[0] != each.digest
        }
        if new:
            writer.add(list(new.values()))
        out = []
        for each in addition.documents:
            before, now = known[each.id], new.get(each.id)
            out.append(
                Stored(each.id, len(now.chunks) if now else before[1] if before else 0, now is not None, each.warnings)
            )
        return out

    def remove(self, document: str) -> bool:
        """Delete a document; return whether there was one."""
        with self.store.writing() as writer:
            return writer.remove(document)

    def compact(self) -> None:
        """Rebuild the index if enough vectors lie outside of it or are deleted. Searches go on meanwhile."""
        with self.store.writing() as writer:
            writer.compact()

    def prepare(self, document: Document, token: CancelToken | None = None) -> EmbeddedDocument:
        """Chunk and embed a document, and take its lead sentences.

        Raises:
            BadDocument: there is no text in it.
        """
        (prepared,) = self.prepare_all([document], token)
        return prepared

    def prepare_all(
        self, documents: Sequence[Document], token: CancelToken | None = None, progress: Progress | None = None
    ) -> list[EmbeddedDocument]:
        """Chunk and embed documents together, as `prepare` does one.

        Raises:
            BadDocument: there is no text in one of them.
            Cancelled: `token` was.
        """
        progress = progress or Progress()
        cut = []
        for document in documents:
            if token is not None:
                token.check()
            cut.append(self.cut(document))
            progress.documents += 1
            progress.chunks += len(cut[-1].chunks)
        return self.embedded(cut, token, progress)

    def cut(self, document: Document) -> CutDocument:
        """Return a document in chunks that the embedder can read after the document's title.

        Raises:
            BadDocument: there is no text in it.
        """
        embedder, spec = self._checked, self.spec
        title = shortened(document.title, embedder, embedder.most_tokens // 4)
        most = min(spec.chunk_tokens, embedder.most_tokens - embedder.count([title])[0])
        found = tuple(chunks(document.text, embedder, most, min(spec.chunk_overlap, most // 2)))
        if not found:
            raise BadDocument(f"The document '{document.id[:80]}' holds no text.")
        return CutDocument(document, found, tuple(headed(title, chunk) for chunk in found))

    def embedded(
        self, documents: Sequence[CutDocument], token: CancelToken | None = None, progress: Progress | None = None
    ) -> list[EmbeddedDocument]:
        """Embed the chunks of documents together: fewer batches, and less padding in them."""
        if not documents:
            return []
        texts = [text for each in documents for text in each.read]
        vectors = self._checked.embed(texts, token, "document", None if progress is None else progress.embed)
        parts = np.split(vectors, np.cumsum([len(each.chunks) for each in documents])[:-1])
        return [
            EmbeddedDocument(each.document, each.chunks, part, lead(each.document.text, self.embedder))
            for each, part in zip(documents, parts, strict=True)
        ]

    def summaries(self, documents: Sequence[str], kind: str = "lead") -> dict[str, str]:
        """Return summaries by document: the lead sentences, or those stored under another kind."""
        return self.store.summaries(documents, kind)

    def openings(self, documents: Sequence[str], chunks: int) -> dict[str, str]:
        """Return the text of the first `chunks` chunks by document, as input for a summary."""
        found: dict[str, str] = {}
        for document, text in self.store.openings(documents, chunks):
            found[document] = f"{found[document]} {text}" if document in found else text
        return found

    def summarise(self, summaries: Mapping[str, str], kind: str) -> None:
        """Store summaries that were written elsewhere, by an engine for example, until their documents change."""
        with self.store.writing() as writer:
            writer.summarise(summaries, kind)

    def info(self) -> CollectionInfo:
        return self.store.info()

    @cached_property
    def _checked(self) -> Embedder:
        """Return the embedder after checking that it is the one that made the vectors.

        Raises:
            Unavailable: it is another one.
        """
        made_by = (self.spec.fingerprint, self.spec.dimension)
        if (self.embedder.fingerprint, self.embedder.dimension) != made_by:
            raise Unavailable(
                f"The collection '{self.spec.name}' was made with other weights of '{self.spec.embedder}' than are "
                "installed now: bring those back, or ingest its documents anew."
            )
        return self.embedder


def check(document: Document) -> None:
    """Raises:
    BadDocument: its id or metadata cannot be kept."""
    check_id(document.id)
    if len(document.metadata) > MOST_METADATA:
        raise BadDocument(f"The document '{document.id[:80]}' has more than {MOST_METADATA} keys of metadata.")
    for value in document.metadata.values():
        if not isinstance(value, str | int | float | None):
            raise BadDocument(f"The metadata of '{document.id[:80]}' should be strings, numbers, true, false or null.")
        if isinstance(value, float) and not math.isfinite(value):
            raise BadDocument(f"The metadata of '{document.id[:80]}' should be numbers that JSON knows, not {value}.")


def check_id(name: str) -> None:
    """Raises:
    BadDocument: no document can be called so."""
    if not name.strip() or len(name) > MOST_ID:
        raise BadDocument(f"A document's id has 1 to {MOST_ID} characters.")
    if found := UNNAMEABLE.search(name):
        what = "is not UTF-8" if "\ud800" <= found[0] <= "\udfff" else "has a line break or another control character"
        shown = name[:80].encode("unicode_escape").decode()
        raise BadDocument(f"The id '{shown}' {what}: such a document could not be asked for.")


def check_filter(where: Filter) -> None:
    """Check the size of a filter.

    Raises:
        RetrievalError: it has too many values.
    """
    count = sum(1 if isinstance(each, str | int | float | None) else len(each) for each in where.values())
    if count > MOST_VALUES:
        raise RetrievalError(f"filter should have at most {MOST_VALUES} values, all keys together; it has {count}.")
