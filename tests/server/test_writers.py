"""Waiting writers block nobody else: other collections, and readers of the same, go on; abandoned work is not done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.conftest import until
from waver.retrieval.collection import Collection
from waver.retrieval.embedder import Embedder

COLLECTIONS = "/v1/collections"
SOON = 10.0
"""Far below the 50 s for which a writer waits here; without a wait it is some 10 ms."""


@pytest.fixture(scope="module")
def library(start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("data") / "collections"
    return start(config={"retrieval": {"path": str(path), "lock_seconds": 50.0}})


@pytest.fixture
def http(library: Any) -> Iterator[httpx.Client]:
    with library.http() as client:
        for name in ("a", "b"):
            assert client.post(COLLECTIONS, json={"name": name}).status_code == 200
            assert add(client, name, "old", "The Arn is a river.") == 200
        until(lambda: not library.runtime.jobs._tokens, "the index to be tidied")
        yield client
        for name in ("a", "b"):
            client.delete(f"{COLLECTIONS}/{name}")


def add(http: httpx.Client, name: str, document: str, text: str) -> int:
    body = {"documents": [{"id": document, "text": text}]}
    return http.post(f"{COLLECTIONS}/{name}/documents", json=body).status_code


def soon(response: httpx.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    assert response.elapsed.total_seconds() < SOON
    return response.json()


@contextmanager
def slow(monkeypatch: pytest.MonkeyPatch, word: str) -> Iterator[threading.Event]:
    """Embedding of texts with this word waits for the event, which comes at the context's end at the latest."""
    embed, going_on, reached = Embedder.embed, threading.Event(), threading.Event()

    def held(self: Embedder, texts: Any, *arguments: Any) -> Any:
        if any(word in text for text in texts):
            reached.set()
            going_on.wait(30)
        return embed(self, texts, *arguments)

    monkeypatch.setattr(Embedder, "embed", held)
    try:
        yield going_on
    finally:
        going_on.set()


def test_a_delete_of_what_is_not_there_waits_for_nobody(library: Any, http: httpx.Client) -> None:
    with library.runtime.library.open("a").store.writing():
        for document in ("none", "none/at/all"):
            answer = http.delete(f"{COLLECTIONS}/a/documents/{document}")
            assert soon(answer, 404)["error"]["code"] == "document_not_found"


def test_waiting_writers_hold_up_nobody_else(library: Any, http: httpx.Client) -> None:
    with ThreadPoolExecutor(7) as pool:
        with library.runtime.library.open("a").store.writing():
            waiting = [pool.submit(add, http, "a", f"new{i}", f"Mill {i} is old.") for i in range(6)]
            waiting.append(pool.submit(lambda: http.delete(f"{COLLECTIONS}/a/documents/old").status_code))
            until(lambda: library.runtime.ingests.running == 6, "six ingestions")
            time.sleep(0.2)
            for name in ("a", "b"):
                found = soon(http.post(f"{COLLECTIONS}/{name}/search", json={"query": "Which river?"}))
                assert found["passages"][0]["document"] == "old"
                assert soon(http.get(f"{COLLECTIONS}/{name}"))["documents"] == 1
            soon(http.get(COLLECTIONS))
            soon(http.post("/v1/embeddings", json={"input": ["one"] * 20}))
            body = {"documents": [{"id": "more", "text": "The Osk is a river."}]}
            soon(http.post(f"{COLLECTIONS}/b/documents", json=body))
            soon(http.delete(f"{COLLECTIONS}/b/documents/more"))
            assert not any(each.done() for each in waiting)
        assert [each.result() for each in waiting] == [200] * 7
    assert http.get(f"{COLLECTIONS}/a").json()["documents"] == 6


def test_documents_come_into_several_collections_at_a_time(
    library: Any, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(1) as pool, slow(monkeypatch, "glacier") as going_on:
        first = pool.submit(add, http, "a", "slow", "A glacier is slow.")
        until(lambda: library.runtime.ingests.running == 1, "the slow one")
        body = {"documents": [{"id": "quick", "text": "A brook is quick."}]}
        for name in ("a", "b"):
            soon(http.post(f"{COLLECTIONS}/{name}/documents", json=body))
        soon(http.delete(f"{COLLECTIONS}/a/documents/quick"))
        going_on.set()
        assert first.result() == 200


@pytest.fixture
def hurried(library: Any, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that gives requests 2 s."""
    monkeypatch.setattr(library.runtime.config.server, "timeout", 2.0)


@pytest.mark.usefixtures("hurried")
def test_what_was_answered_504_while_it_waited_is_not_done(library: Any, http: httpx.Client) -> None:
    with ThreadPoolExecutor(3) as pool, library.runtime.library.open("a").store.writing():
        given_up = [
            pool.submit(add, http, "a", "new", "It came too late."),
            pool.submit(lambda: http.delete(f"{COLLECTIONS}/a/documents/old").status_code),
            pool.submit(lambda: http.delete(f"{COLLECTIONS}/a").status_code),
        ]
        assert [each.result() for each in given_up] == [504] * 3
    until(lambda: not library.runtime.jobs._tokens, "what was given up")
    assert library.runtime.ingests.running == 0
    (found,) = http.post(f"{COLLECTIONS}/a/search", json={"query": "late river"}).json()["passages"]
    assert found["document"] == "old"


def test_a_place_is_free_when_the_work_has_ended(
    library: Any, http: httpx.Client, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow(monkeypatch, "glacier") as going_on:
        assert add(http, "a", "slow", "A glacier is slow.") == 504
        assert library.runtime.ingests.running == 1
        going_on.set()
        until(lambda: library.runtime.ingests.running == 0, "the end of the work")
    assert http.get(f"{COLLECTIONS}/a").json()["documents"] == 1
    monkeypatch.undo()
    # A body that came at once is not told to have been late.
    assert add(http, "a", "next", "A brook is quick.") == 200


def test_a_failure_behind_the_answer_does_not_cost_the_connection(
    library: Any, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("waver.retrieval.faiss_writer.FaissWriter.compact", fail)
        with httpx.Client(base_url=library.url, limits=httpx.Limits(max_connections=1)) as client:
            assert add(client, "a", "x", "One more.") == 200
            until(lambda: not library.runtime.jobs._tokens, "the failure")
            connection = client._transport._pool.connections[0]  # type: ignore[attr-defined]
            assert client.get("/health").status_code == 200
            assert client._transport._pool.connections == [connection]  # type: ignore[attr-defined]
    assert Collection.info(library.runtime.library.open("a")).documents == 2
