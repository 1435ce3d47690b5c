"""A collection: documents in, passages out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

from waver.retrieval.base import BadDocument, Damaged, Document, Filter, Info, Mode, Passage, Prepared, Spec, Store
from waver.retrieval.chunking import chunks, lead
from waver.retrieval.embedder import Embedder
from waver.retrieval.fusion import fuse

DEPTH = 4
"""Each ranking is read so many times deeper than passages are wanted before they are fused."""
AT_LEAST = 20
MOST_ID, MOST_METADATA = 512, 64


@dataclass(frozen=True)
class Stored:
    """A document that is searchable now; `changed` is false where it was so already."""

    id: str
    chunks: int
    changed: bool


class Collection:
    """Documents under one name, embedded by one model. Every method may be called from any thread.

    `search` is for coroutines: it works in a thread and never holds up the event loop.
    """

    def __init__(self, store: Store, embedder: Embedder, threads: ThreadPoolExecutor) -> None:
        self.store, self.embedder, self._threads = store, embedder, threads

    @property
    def spec(self) -> Spec:
        return self.store.spec

    async def search(
        self, query: str, top_k: int = 5, filter: Filter | None = None, mode: Mode = "hybrid"
    ) -> list[Passage]:
        """The passages for a question, best first.

        Args:
            filter: metadata that their documents must carry; a sequence of values means any of them.

        Raises:
            RetrievalError: the collection cannot be read, or the embedder not be loaded.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.search_now, query, top_k, filter, mode)

    def search_now(
        self, query: str, top_k: int = 5, filter: Filter | None = None, mode: Mode = "hybrid"
    ) -> list[Passage]:
        """`search` for those who may wait."""
        where = filter or {}
        vector = None if mode == "lexical" else self._checked.question(query)
        words = None if mode == "dense" else query
        depth = max(AT_LEAST, DEPTH * top_k) if mode == "hybrid" else top_k
        dense, lexical = self.store.find(vector, words, depth, where)
        if mode != "hybrid":
            return lexical if mode == "lexical" else dense
        passages = {(each.document, each.chunk): each for each in (*dense, *lexical)}
        ranked = fuse([[(each.document, each.chunk) for each in ranking] for ranking in (dense, lexical)])
        return [replace(passages[key], score=score) for key, score in ranked[:top_k]]

    def add(self, documents: Sequence[Document]) -> list[Stored]:
        """Make documents searchable, all or none; the same id replaces. What has not changed is left alone.

        Raises:
            BadDocument: one of them cannot be kept.
            Busy: somebody else is writing.
        """
        documents = list({each.id: each for each in documents}.values())
        for document in documents:
            check(document)
        prepared: dict[str, Prepared] = {}
        with self.store.writing() as writer:
            known = {each.id: writer.digest(each.id) for each in documents}
            for each in documents:
                if (known[each.id] or ("",))[0] != each.digest:
                    prepared[each.id] = self.prepare(each)
            if prepared:
                writer.add(list(prepared.values()))
        out = []
        for each in documents:
            before, new = known[each.id], prepared.get(each.id)
            out.append(Stored(each.id, len(new.chunks) if new else before[1] if before else 0, new is not None))
        return out

    def remove(self, document: str) -> bool:
        """Forget a document; whether there was one."""
        with self.store.writing() as writer:
            return writer.remove(document)

    def compact(self) -> None:
        """Rebuild the index where that pays. Readers and their searches go on meanwhile."""
        with self.store.writing() as writer:
            writer.compact()

    def prepare(self, document: Document) -> Prepared:
        """Chunks, vectors and lead sentences of a document.

        Raises:
            BadDocument: there is no text in it.
        """
        embedder, spec = self._checked, self.spec
        found = tuple(chunks(document.text, embedder, spec.chunk_tokens, spec.chunk_overlap))
        if not found:
            raise BadDocument(f"The document '{document.id[:80]}' holds no text.")
        return Prepared(document, found, embedder.embed(found), lead(document.text, embedder))

    def summaries(self, documents: Sequence[str], kind: str = "lead") -> dict[str, str]:
        """Summaries by document: its lead sentences, or whatever was kept under another kind."""
        return self.store.summaries(documents, kind)

    def openings(self, documents: Sequence[str], chunks: int) -> dict[str, str]:
        """The text of the first so many chunks, by document: what a summary can be written from."""
        found: dict[str, str] = {}
        for document, text in self.store.openings(documents, chunks):
            found[document] = f"{found[document]} {text}" if document in found else text
        return found

    def summarise(self, summaries: Mapping[str, str], kind: str) -> None:
        """Keep summaries that somebody wrote, an engine for example, until their documents change."""
        with self.store.writing() as writer:
            writer.summarise(summaries, kind)

    def info(self) -> Info:
        return self.store.info()

    @cached_property
    def _checked(self) -> Embedder:
        """The embedder, once it is known to be the one that made the vectors.

        Raises:
            Damaged: it is another one.
        """
        made_by = (self.spec.fingerprint, self.spec.dimension)
        if (self.embedder.fingerprint, self.embedder.dimension) != made_by:
            raise Damaged(
                f"The collection '{self.spec.name}' was made with other weights of '{self.spec.embedder}' than are "
                "installed now: bring those back, or ingest its documents anew."
            )
        return self.embedder


def check(document: Document) -> None:
    """Raises:
    BadDocument: its id or metadata cannot be kept."""
    if not document.id.strip() or len(document.id) > MOST_ID:
        raise BadDocument(f"A document's id has 1 to {MOST_ID} characters.")
    if len(document.metadata) > MOST_METADATA:
        raise BadDocument(f"The document '{document.id[:80]}' has more than {MOST_METADATA} keys of metadata.")
    for value in document.metadata.values():
        if not isinstance(value, str | int | float | None):
            raise BadDocument(f"The metadata of '{document.id[:80]}' should be strings, numbers, true, false or null.")
