"""Store collections in a Qdrant server, through its own client.

Qdrant has no transactions over several points. A document's new chunks are written before its old ones are deleted, so
nothing is lost; but a reader may see both for a moment, and an `add` that is interrupted leaves some of its documents
new and others old: repeat it. Where several processes write one document at a time, the one that began last wins, by
their clocks.
"""

from __future__ import annotations

import threading
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from waver.extras import how_to_install
from waver.retrieval.base import (
    Busy,
    CollectionInfo,
    CollectionSpec,
    EmbeddedDocument,
    Exists,
    Filter,
    Listed,
    NoCollection,
    NoDocument,
    Passage,
    Store,
    Unavailable,
    Unreachable,
    Vectors,
)
from waver.retrieval.cancellation import CancelToken
from waver.retrieval.chunking import headed
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.database import tag
from waver.retrieval.words import repeated_terms, words
from waver.secret import read_secret

try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.http.exceptions import ApiException, UnexpectedResponse
except ImportError as error:
    raise Unavailable(f"The package {error.name} is not installed: {how_to_install('qdrant')}") from error

DENSE, WORDS = "dense", "words"
K1, B = 1.2, 0.75
WORDS_A_TOKEN = 0.75
BATCH = 256


class QdrantBackend:
    """Backend that stores collections in a Qdrant server; ours carry a mark in their metadata."""

    def __init__(self, config: RetrievalConfig) -> None:
        key = read_secret(config.api_key_env, config.api_key_file)
        self._lock_seconds = config.lock_seconds
        self._client = QdrantClient(location=config.url, api_key=key, timeout=60, check_compatibility=False)

    def names(self) -> list[str]:
        with reachable():
            return [c.name for c in self._client.get_collections().collections if self._spec(c.name) is not None]

    def _spec(self, name: str) -> CollectionSpec | None:
        found = (self._client.get_collection(name).config.metadata or {}).get("waver")
        return None if found is None else CollectionSpec(**found)

    def create(self, spec: CollectionSpec) -> None:
        with reachable():
            if self._client.collection_exists(spec.name):
                raise Exists(f"Qdrant has a collection '{spec.name}' already.")
            self._client.create_collection(
                spec.name,
                vectors_config={DENSE: models.VectorParams(size=spec.dimension, distance=models.Distance.COSINE)},
                sparse_vectors_config={WORDS: models.SparseVectorParams(modifier=models.Modifier.IDF)},
                metadata={"waver": asdict(spec)},
            )
            if self._client.init_options.get("location") != ":memory:":
                for field in ("document", "tags"):
                    self._client.create_payload_index(spec.name, field, models.PayloadSchemaType.KEYWORD)
                self._client.create_payload_index(spec.name, "staged", models.PayloadSchemaType.BOOL)

    def open(self, name: str) -> Store:
        with reachable():
            spec = self._spec(name) if self._client.collection_exists(name) else None
        if spec is None:
            raise NoCollection(f"There is no collection '{name}'.")
        return QdrantStore(self._client, spec, self._lock_seconds)

    def delete(self, name: str, wait: float | None = None, token: CancelToken | None = None) -> None:
        self.open(name)
        if token is not None:
            token.commit()
        with reachable():
            self._client.delete_collection(name)

    def close(self) -> None:
        self._client.close()


class QdrantStore:
    """Store of one collection: a point for each chunk, with a dense vector and the BM25 weights of its words."""

    def __init__(self, client: QdrantClient, spec: CollectionSpec, lock_seconds: float = 30.0) -> None:
        self.client, self.spec, self._lock_seconds = client, spec, lock_seconds
        self._writing = threading.Lock()

    @property
    def current(self) -> bool:
        with reachable():
            return self.client.collection_exists(self.spec.name)

    @contextmanager
    def writing(self, wait: float | None = None, token: CancelToken | None = None) -> Iterator[QdrantWriter]:
        if not self._writing.acquire(timeout=self._lock_seconds if wait is None else wait):
            raise Busy(f"Somebody else is writing to the collection '{self.spec.name}'; try again later.")
        try:
            with reachable():
                yield QdrantWriter(self, token)
        finally:
            self._writing.release()

    def digest(self, document: str) -> tuple[str, int] | None:
        with reachable():
            return self.known(document, False)

    def known(self, document: str, staged: bool) -> tuple[str, int] | None:
        """Return the digest and the number of chunks of a searchable document, or of a staged one."""
        must = [is_staged(staged), any_of("document", [document]), number_is(0)]
        for load in self.scroll(must, ["digest", "chunks"]):
            return load["digest"], load["chunks"]
        return None

    def find(
        self, vector: Vectors | None, words: str | None, count: int, where: Filter
    ) -> tuple[list[Passage], list[Passage]]:
        must = [is_staged(False)]
        for name, wanted in where.items():
            several = [wanted] if isinstance(wanted, str | int | float | None) else wanted
            must.append(any_of("tags", [f"{name}={tag(value)}" for value in several]))
        dense = [] if vector is None else self._ranked(vector.tolist(), DENSE, count, must)
        terms = Counter(map(term_id, [] if words is None else repeated_terms(words)))
        asked = models.SparseVector(indices=sorted(terms), values=[float(terms[each]) for each in sorted(terms)])
        return dense, self._ranked(asked, WORDS, count, must) if terms else []

    def _ranked(self, query: Any, using: str, count: int, must: list[Any]) -> list[Passage]:
        with reachable():
            found = self.client.query_points(
                self.spec.name, query=query, using=using, limit=count, query_filter=models.Filter(must=must)
            )
        out = []
        for point in found.points:
            load = point.payload or {}
            out.append(
                Passage(load["document"], load["number"], point.score, load["text"], load["title"], load["metadata"])
            )
        return out

    def listed(self, after: str | None, count: int) -> list[Listed]:
        """The order is that of the points, which a document keeps until it is replaced."""
        must = [is_staged(False), number_is(0)]
        fields = ["document", "title", "chunks", "metadata"]
        with reachable():
            start = None if after is None else self._first_point(after)
            points, _ = self.client.scroll(
                self.spec.name,
                scroll_filter=models.Filter(must=must),
                limit=count + (start is not None),
                offset=start,
                with_payload=fields,
            )
        loads = [point.payload or {} for point in points if point.id != start]
        return [Listed(*(load[field] for field in fields)) for load in loads]

    def _first_point(self, document: str) -> Any:
        """Return the id of the point of a document's first chunk.

        Raises:
            NoDocument: there is none.
        """
        must = [is_staged(False), any_of("document", [document]), number_is(0)]
        points, _ = self.client.scroll(self.spec.name, scroll_filter=models.Filter(must=must), limit=1)
        if not points:
            raise NoDocument(f"The collection '{self.spec.name}' has no document '{document[:80]}' to go on after.")
        return points[0].id

    def summaries(self, documents: Sequence[str], kind: str) -> dict[str, str]:
        must = [is_staged(False), any_of("document", documents), number_is(0)]
        loads = list(self.scroll(must, ["document", "summaries"]))
        return {load["document"]: load["summaries"][kind] for load in loads if kind in load["summaries"]}

    def openings(self, documents: Sequence[str], chunks: int) -> list[tuple[str, str]]:
        early = models.FieldCondition(key="number", range=models.Range(lt=chunks))
        loads = self.scroll([is_staged(False), any_of("document", documents), early], ["document", "number", "text"])
        found = sorted((load["document"], load["number"], load["text"]) for load in loads)
        return [(document, text) for document, _, text in found]

    def scroll(self, must: list[Any], fields: list[str]) -> Iterator[dict[str, Any]]:
        """Yield the payloads of all points that meet the conditions."""
        offset = None
        while True:
            points, offset = self.client.scroll(
                self.spec.name,
                scroll_filter=models.Filter(must=must),
                limit=BATCH,
                offset=offset,
                with_payload=fields,
            )
            yield from (point.payload or {} for point in points)
            if offset is None:
                return

    def info(self) -> CollectionInfo:
        with reachable():
            documents, chunks = (
                self.client.count(self.spec.name, count_filter=models.Filter(must=must), exact=True).count
                for must in ([is_staged(False), number_is(0)], [is_staged(False)])
            )
        spec = self.spec
        sizes = (spec.chunk_tokens, spec.chunk_overlap)
        # Qdrant does not say what it takes on disk: what the vectors alone do.
        return CollectionInfo(
            spec.name,
            documents,
            chunks,
            spec.dimension,
            spec.embedder,
            *sizes,
            "qdrant",
            4 * chunks * spec.dimension,
            spec.rerank,
        )

    def close(self) -> None: ...


class QdrantWriter:
    """Writer of a Qdrant collection. See `waver.retrieval.base.Writer`."""

    def __init__(self, store: QdrantStore, token: CancelToken | None = None) -> None:
        self._store, self._client, self._name = store, store.client, store.spec.name
        self._token = token

    def _commit(self) -> None:
        if self._token is not None:
            self._token.commit()

    def add(self, documents: Sequence[EmbeddedDocument]) -> None:
        self._commit()
        version, ids = self._upsert(documents, staged=False), [each.document.id for each in documents]
        mine = [is_staged(False), any_of("document", ids)]
        # Also those of earlier releases, which do not say when they were written.
        self._delete(mine, [models.FieldCondition(key="written", range=models.Range(gte=version))])
        later = models.FieldCondition(key="written", range=models.Range(gt=version))
        if newer := {load["document"] for load in self._store.scroll([*mine, later], ["document"])}:
            own = models.FieldCondition(key="written", range=models.Range(gte=version, lte=version))
            self._delete([is_staged(False), any_of("document", sorted(newer)), own])

    def stage(self, documents: Sequence[EmbeddedDocument]) -> None:
        self._delete([is_staged(True), any_of("document", [each.document.id for each in documents])])
        self._upsert(documents, staged=True)

    def _upsert(self, documents: Sequence[EmbeddedDocument], staged: bool) -> int:
        """Write documents beside what is there; return the time that their points carry, in microseconds: a number that
        JSON's numbers hold exactly."""
        written = time.time_ns() // 1000
        average = WORDS_A_TOKEN * self._store.spec.chunk_tokens
        points = []
        for prepared in documents:
            it = prepared.document
            load = {
                "document": it.id,
                "title": it.title,
                "metadata": dict(it.metadata),
                "tags": [f"{name}={tag(value)}" for name, value in it.metadata.items()],
                "digest": it.digest,
                "chunks": len(prepared.chunks),
                "written": written,
                "staged": staged,
                "summaries": {"lead": prepared.summary},
            }
            for number, (text, vector) in enumerate(zip(prepared.chunks, prepared.vectors, strict=True)):
                points.append(
                    models.PointStruct(
                        id=uuid.uuid4().hex,
                        vector={DENSE: vector.tolist(), WORDS: weights(headed(it.title, text), average)},
                        payload={**load, "number": number, "text": text},
                    )
                )
        for start in range(0, len(points), BATCH):
            self._client.upsert(self._name, points[start : start + BATCH], wait=True)
        return written

    def _delete(self, must: list[Any], but: list[Any] | None = None) -> None:
        chosen = models.Filter(must=must, must_not=but)
        self._client.delete(self._name, models.FilterSelector(filter=chosen), wait=True)

    def publish(self, keep: Iterable[str]) -> None:
        wanted = set(keep)
        loads = self._store.scroll([is_staged(True), number_is(0)], ["document"])
        staged = [load["document"] for load in loads]
        for document in staged:
            if document in wanted:
                self._delete([is_staged(False), any_of("document", [document])])
                chosen = models.Filter(must=[is_staged(True), any_of("document", [document])])
                self._client.set_payload(self._name, {"staged": False}, points=chosen, wait=True)
            else:
                self._delete([is_staged(True), any_of("document", [document])])

    def remove(self, document: str) -> bool:
        there = self._store.known(document, False) is not None
        self._commit()
        self._delete([is_staged(False), any_of("document", [document])])
        return there

    def staged(self, document: str) -> tuple[str, int] | None:
        return self._store.known(document, True)

    def summarise(self, summaries: Mapping[str, str], kind: str) -> None:
        for document, text in summaries.items():
            chosen = models.Filter(must=[is_staged(False), any_of("document", [document])])
            self._client.set_payload(self._name, {kind: text}, points=chosen, key="summaries", wait=True)

    def compact(self) -> None:
        """Do nothing: Qdrant maintains its indices itself."""


@contextmanager
def reachable() -> Iterator[None]:
    """Convert the client's connection errors.

    Raises:
        Unreachable: Qdrant does not answer, or refuses.
    """
    try:
        yield
    except UnexpectedResponse as error:
        raise Unreachable(f"Qdrant refuses: {error.status_code} {error.reason_phrase}.") from error
    except (ApiException, OSError) as error:
        raise Unreachable("Qdrant cannot be reached.") from error


def is_staged(staged: bool) -> Any:
    return models.FieldCondition(key="staged", match=models.MatchValue(value=staged))


def any_of(field: str, values: Sequence[str]) -> Any:
    return models.FieldCondition(key=field, match=models.MatchAny(any=list(values)))


def number_is(number: int) -> Any:
    return models.FieldCondition(key="number", match=models.MatchValue(value=number))


def term_id(word: str) -> int:
    return zlib.crc32(word.encode())


def weights(text: str, average: float) -> Any:
    """Return the document part of BM25 by word; Qdrant multiplies it by the inverse document frequency."""
    found = words(text)
    counts: Counter[int] = Counter(map(term_id, found))
    norm = K1 * (1 - B + B * len(found) / average)
    ids = sorted(counts)
    return models.SparseVector(indices=ids, values=[counts[i] * (K1 + 1) / (counts[i] + norm) for i in ids])
