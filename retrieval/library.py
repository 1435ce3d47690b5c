"""Create, open, list, write to and delete the collections of a configuration.

No thread waits for a writer here: coroutines wait for the write lock (`waver.retrieval.write_locks`)
before they take a thread.
"""

from __future__ import annotations

import asyncio
import errno
import re
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from waver.retrieval.base import (
    CollectionSpec,
    Document,
    Exists,
    NoCollection,
    NoSpace,
    RetrievalError,
    StorageError,
    Store,
    Unavailable,
    Writer,
)
from waver.retrieval.cancellation import CancelToken, in_thread
from waver.retrieval.collection import Collection, Progress, Stored
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.embedder import Embedder
from waver.retrieval.parsing import Parsers
from waver.retrieval.reranker import Reranker
from waver.retrieval.storage import FULL, file_failure, storing
from waver.retrieval.write_locks import WriteLocks

NAME = re.compile(r"[a-z0-9_-]{1,64}")
MOST_OPEN = 64
"""Collections that are kept open, each with a few files; those that were not used for longest are closed."""
SEARCHES, READERS, COMPUTERS, WRITERS = 4, 3, 3, 4
"""Threads for searches, for short reads, for parsing and embedding of documents, and for commits."""
Result = TypeVar("Result")


class Backend(Protocol):
    """Backend that stores collections: folders, or a Qdrant server."""

    def names(self) -> list[str]:
        """Return the names of the collections."""

    def create(self, spec: CollectionSpec) -> None:
        """Create an empty store.

        Raises:
            Exists: there is one of this name.
        """

    def open(self, name: str) -> Store:
        """Open a store.

        Raises:
            NoCollection: there is none.
        """

    def delete(self, name: str, wait: float | None = None, token: CancelToken | None = None) -> None:
        """Delete a collection, waiting at most `wait` seconds for its writer (None: the configured time).

        Raises:
            NoCollection: there is none.
            Busy: somebody is writing to it.
        """

    def close(self) -> None: ...


class Library:
    """The collections of a configuration. Every method may be called from any thread."""

    def __init__(self, config: RetrievalConfig) -> None:
        """Set up without loading, reading or writing anything."""
        self.config = config
        self.embedders = {
            name: Embedder(name, config.device, config.precision) for name in (config.embedder, *config.embedders)
        }
        self.rerankers = {name: Reranker(name, config.device) for name in config.rerankers}
        self.parsers = Parsers(
            config.max_file_bytes,
            config.max_text_bytes,
            config.parse_seconds,
            config.parse_memory,
            max_kind=config.max_kind_bytes,
        )
        self._searches = ThreadPoolExecutor(SEARCHES, thread_name_prefix="search")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._computers = ThreadPoolExecutor(COMPUTERS, thread_name_prefix="ingest")
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
        self._tidier = ThreadPoolExecutor(1, thread_name_prefix="tidy")
        self._write_locks = WriteLocks(config.lock_seconds)
        self._untidy: set[str] = set()
        self._under_way: dict[str, list[Progress]] = {}
        self._open: OrderedDict[str, Collection] = OrderedDict()
        self._lock = threading.Lock()
        self._backend: Backend | None = None

    @property
    def backend(self) -> Backend:
        """Return the configured backend.

        Raises:
            Unavailable: the store's packages are not installed, or it cannot be reached.
        """
        with self._lock:
            if self._backend is None:
                if self.config.store == "qdrant":
                    from waver.retrieval.qdrant_store import QdrantBackend

                    self._backend = QdrantBackend(self.config)
                else:
                    self._backend = FaissBackend(self.config)
            return self._backend

    async def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run a short read in a thread: nothing that waits for a writer or computes for long."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work, *arguments)

    async def compute(self, work: Callable[..., Result], *arguments: object, quick: bool = False) -> Result:
        """Parse or embed in a thread. A caller that is cancelled waits for the work to end. `quick`: it takes no longer
        than a search."""
        return await in_thread(self._searches if quick else self._computers, work, *arguments)

    async def add(
        self, collection: Collection, read: Callable[[], Sequence[Document]], token: CancelToken
    ) -> list[Stored]:
        """Parse documents and make them searchable, all or none; a document with the same id is replaced.

        Args:
            token: once it is cancelled, nothing is committed.

        Raises:
            BadDocument: one of them cannot be kept.
            Busy: others wrote for longer than `lock_seconds`.
            Cancelled: `token` was.
        """
        progress = Progress()
        here = self._under_way.setdefault(collection.spec.name, [])
        here.append(progress)
        try:
            addition = await self.compute(lambda: collection.prepared(read(), token, progress))
            return await self.write(collection, lambda writer: collection.commit(addition, writer), token)
        finally:
            here.remove(progress)
            if not here:
                self._under_way.pop(collection.spec.name, None)

    def under_way(self, name: str) -> list[dict[str, float]]:
        """Return how far each addition to a collection has come that is under way in this process."""
        return [each.as_dict() for each in self._under_way.get(name, ())]

    async def write(
        self, collection: Collection, work: Callable[[Writer], Result], token: CancelToken | None = None
    ) -> Result:
        """Do `work` with a collection's writer, in a thread that is taken once the write lock is free.

        Raises:
            Busy: others wrote for longer than `lock_seconds`.
            Cancelled: `token` was, before the commit.
        """

        def attempt() -> Result:
            with collection.store.writing(0.0, token) as writer:
                return work(writer)

        return await self._write_locks.take(collection.spec.name, attempt, self._writers)

    async def tidy(self, collection: Collection, token: CancelToken) -> None:
        """Rebuild a collection's index if that is worthwhile, one at a time, in a thread of its own.

        Nothing is done where the same already waits for its turn.
        """
        name = collection.spec.name

        def attempt() -> None:
            with collection.store.writing(0.0, token) as writer:
                writer.compact()

        if name in self._untidy:
            return
        self._untidy.add(name)
        try:
            await self._write_locks.take(name, attempt, self._tidier)
        finally:
            self._untidy.discard(name)

    async def discard(self, name: str, token: CancelToken) -> None:
        """Delete a collection once the write lock is free.

        Raises:
            NoCollection: there is none.
            Busy: others wrote for longer than `lock_seconds`.
            Cancelled: `token` was.
        """
        await self._write_locks.take(name, lambda: self.delete(name, 0.0, token), self._writers)

    @property
    def names_embedder(self) -> bool:
        """Return whether the configuration names an embedder."""
        return not self.config.model_fields_set.isdisjoint({"embedder", "embedders", "rerankers"})

    def check_embedders(self) -> None:
        """Load the embedders that the configuration names, or the default one if it has collections here.

        Raises:
            Unavailable: one of them cannot be loaded.
        """
        if self.names_embedder or (self.config.store == "faiss" and self.names()):
            for embedder in self.embedders.values():
                assert embedder.model
        for reranker in self.rerankers.values():
            assert reranker.model

    def embedder(self, name: str | None = None) -> Embedder:
        """Return a configured embedder, the first if no name is given.

        Raises:
            RetrievalError: it is not configured.
        """
        found = self.embedders.get(name or self.config.embedder)
        if found is None:
            raise RetrievalError(f"There is no embedder '{(name or '')[:80]}'; there are: {', '.join(self.embedders)}.")
        return found

    def reranker(self, name: str | None = None) -> Reranker:
        """Return a configured reranker, the first if no name is given.

        Raises:
            RetrievalError: it is not configured, or none is.
        """
        found = self.rerankers.get(name or next(iter(self.rerankers), ""))
        if found is None and not self.rerankers:
            raise RetrievalError("There is no reranker: name a cross-encoder in retrieval.rerankers.")
        if found is None:
            raise RetrievalError(f"There is no reranker '{(name or '')[:80]}'; there are: {', '.join(self.rerankers)}.")
        return found

    def create(
        self,
        name: str,
        embedder: str | None = None,
        chunk_tokens: int = 128,
        chunk_overlap: int = 32,
        rerank: str | None = None,
    ) -> Collection:
        """Create an empty collection.

        Args:
            rerank: the reranker that orders what searches find.

        Raises:
            RetrievalError: the name, the embedder or the sizes will not do, or there are too many collections.
            Exists: there is one of this name.
        """
        check_name(name)
        model = self.embedder(embedder)
        reranker = self.reranker(rerank).name if rerank else ""
        there = self.names()
        if name in there:
            raise Exists(f"There is a collection '{name}' already.")
        if len(there) >= self.config.max_collections:
            raise RetrievalError(
                f"There are {len(there)} collections, which is all there is room for: delete one, or raise "
                "retrieval.max_collections in the configuration."
            )
        if not 8 <= chunk_tokens <= model.most_tokens:
            raise RetrievalError(f"chunk_tokens should be 8 to {model.most_tokens}, which is all '{model.name}' reads.")
        if not 0 <= chunk_overlap <= chunk_tokens // 2:
            raise RetrievalError(f"chunk_overlap should be 0 to {chunk_tokens // 2}, half of chunk_tokens.")
        self.backend.create(
            CollectionSpec(name, model.name, model.fingerprint, model.dimension, chunk_tokens, chunk_overlap, reranker)
        )
        return self.open(name)

    def open(self, name: str) -> Collection:
        """Open an existing collection.

        Raises:
            NoCollection: it is not.
            RetrievalError: it is damaged, or its embedder is not configured.
        """
        if not NAME.fullmatch(name):
            raise NoCollection(f"There is no collection '{name[:80]}'.")
        backend = self.backend
        with self._lock:
            found = self._open.get(name)
            if found is not None:
                self._open.move_to_end(name)
        if found is not None:
            if found.store.current:
                return found
            self.forget(name)
        store = backend.open(name)
        try:
            embedder = self.embedder(store.spec.embedder)
        except RetrievalError as error:
            store.close()
            raise Unavailable(
                f"The collection '{name}' was made by the embedder '{store.spec.embedder}': add it to "
                "retrieval.embedders in the configuration."
            ) from error
        try:
            reranker = self.reranker(store.spec.rerank) if store.spec.rerank else None
        except RetrievalError as error:
            store.close()
            raise Unavailable(
                f"Searches of the collection '{name}' are reranked by '{store.spec.rerank}': add it to "
                "retrieval.rerankers in the configuration."
            ) from error
        collection = Collection(store, embedder, self._searches, reranker, self.config.dense_weight)
        with self._lock:
            kept = self._open.setdefault(name, collection)
            closing = [self._open.popitem(last=False)[1] for _ in range(len(self._open) - MOST_OPEN)]
        if kept is not collection:
            closing.append(collection)
        for each in closing:
            each.store.close()
        return kept

    def forget(self, name: str) -> None:
        """Drop the open handle of a collection that another process deleted or replaced; the next use opens it anew."""
        with self._lock:
            found = self._open.pop(name, None)
        if found is not None:
            found.store.close()

    def names(self) -> list[str]:
        return sorted(self.backend.names())

    def delete(self, name: str, wait: float | None = None, token: CancelToken | None = None) -> None:
        """Delete a collection, waiting at most `wait` seconds for its writer (None: `lock_seconds`).

        Raises:
            NoCollection: there is none.
            Busy: somebody is writing to it.
        """
        if not NAME.fullmatch(name):
            raise NoCollection(f"There is no collection '{name[:80]}'.")
        self.backend.delete(name, wait, token)
        self.forget(name)

    def close(self) -> None:
        """Wait for running work, and close all collections."""
        for threads in (self._searches, self._readers, self._computers, self._writers, self._tidier):
            threads.shutdown(cancel_futures=True)
        for name in list(self._open):
            self.forget(name)
        if self._backend is not None:
            self._backend.close()
        self.parsers.close()


class FaissBackend:
    """Backend that stores each collection in a folder below `config.path`."""

    def __init__(self, config: RetrievalConfig) -> None:
        from waver.retrieval.faiss_store import FaissStore

        self._store = FaissStore
        self._root = Path(config.path)
        self._kind = None if config.index == "auto" else config.index
        self._lock_seconds = config.lock_seconds

    def names(self) -> list[str]:
        if not self._root.is_dir():
            return []
        try:
            return [folder.name for folder in self._root.iterdir() if NAME.fullmatch(folder.name) and folder.is_dir()]
        except OSError as error:
            raise StorageError("The folder of the collections cannot be read.") from error

    def create(self, spec: CollectionSpec) -> None:
        with self._temporary() as folder:
            self._store.create(folder, spec)
            try:
                folder.rename(self._root / spec.name)  # fails where the target is a folder with something in it
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                    raise Exists(f"There is a collection '{spec.name}' already.") from error
                raise file_failure(error, spec.name) from error

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """Make a folder under a name that no collection can have; what is left of it is deleted in the end."""
        folder = self._root / f".{secrets.token_hex(8)}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            kind = NoSpace if error.errno in FULL else StorageError
            raise kind(f"The folder of the collections cannot be written: {error.strerror}.") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def open(self, name: str) -> Store:
        return self._store(self._root / name, self._kind, self._lock_seconds)

    def delete(self, name: str, wait: float | None = None, token: CancelToken | None = None) -> None:
        # Not opened: what is damaged can be deleted too.
        folder = self._root / name
        if not folder.is_dir():
            raise NoCollection(f"There is no collection '{name}'.")
        seconds = self._lock_seconds if wait is None else wait
        with self._store.lock(folder, seconds), self._temporary() as trash, storing(name):
            if token is not None:
                token.commit()
            folder.rename(trash / name)

    def close(self) -> None: ...


def check_name(name: str) -> None:
    """Check the name of a collection.

    Raises:
        RetrievalError: collections cannot be called so.
    """
    if not NAME.fullmatch(name):
        raise RetrievalError("name: lower-case letters, digits, '-' and '_', at most 64.")
