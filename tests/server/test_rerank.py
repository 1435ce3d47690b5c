"""Reranking over HTTP: the shapes of vLLM, Jina and Cohere, and a collection that is reranked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from waver.retrieval.reranker import Reranker

QUERY = "how long is the river?"
TEXTS = ["osk is a town", "the arn is 412 km long", "cheese", "a mill"]


@pytest.fixture(scope="module")
def server(start: Callable[..., Any], cross_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("data") / "collections"
    return start(config={"retrieval": {"path": str(path), "rerankers": [str(cross_encoder)]}})


@pytest.fixture
def http(server: Any) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


@pytest.fixture(scope="module")
def scores(cross_encoder: Path) -> list[float]:
    return Reranker(str(cross_encoder)).score([(QUERY, text) for text in TEXTS]).scores.tolist()


def test_rerank(http: httpx.Client, cross_encoder: Path, scores: list[float]) -> None:
    wanted = sorted(range(4), key=lambda i: -scores[i])
    for path in ("/v1/rerank", "/rerank", "/v2/rerank"):
        answer = http.post(path, json={"model": str(cross_encoder), "query": QUERY, "documents": TEXTS}).json()
        assert answer["id"].startswith("rerank-")
        assert answer["model"] == str(cross_encoder)
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 4 * 20
        assert [each["index"] for each in answer["results"]] == wanted
        for each in answer["results"]:
            assert each["relevance_score"] == pytest.approx(scores[each["index"]], abs=1e-5)
            assert each["document"] == {"text": TEXTS[each["index"]]}
    objects = {"query": QUERY, "documents": [{"text": each} for each in TEXTS], "top_n": 2, "return_documents": False}
    results = http.post("/v1/rerank", json=objects).json()["results"]
    assert [(each["index"], "document" in each) for each in results] == [(i, False) for i in wanted[:2]]
    assert len(http.post("/v1/rerank", json=objects | {"top_n": 0}).json()["results"]) == 4
    unread = http.post("/v1/rerank", json=objects | {"max_chunks_per_doc": 3})
    assert unread.headers["x-waver-ignored"] == "max_chunks_per_doc"
    assert unread.json()["waver"] == {"ignored": ["max_chunks_per_doc"]}
    cut = http.post("/v1/rerank", json={"query": QUERY, "documents": ["river " * 50, "x"]}).json()
    assert cut["warnings"] == ["1 of the texts were longer than the reranker reads, and were cut."]


def test_score(http: httpx.Client, scores: list[float]) -> None:
    for path, first, second in (
        ("/v1/score", {"text_1": QUERY}, {"text_2": TEXTS}),
        ("/score", {"text_1": [QUERY] * 4}, {"text_2": TEXTS}),
        ("/v1/score", {"queries": QUERY}, {"documents": TEXTS}),
    ):
        answer = http.post(path, json=first | second).json()
        assert (answer["object"], [each["index"] for each in answer["data"]]) == ("list", [0, 1, 2, 3])
        assert [each["score"] for each in answer["data"]] == pytest.approx(scores, abs=1e-5)
        assert all(each["object"] == "score" for each in answer["data"])
    one = http.post("/v1/score", json={"text_1": QUERY, "text_2": TEXTS[1]}).json()
    assert [each["score"] for each in one["data"]] == pytest.approx([scores[1]], abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/rerank", {"query": "x", "documents": []}, 400, "documents"),
        ("/v1/rerank", {"query": "x"}, 400, "documents"),
        ("/v1/rerank", {"query": "x", "documents": ["a", 3]}, 400, "documents[1]"),
        ("/v1/rerank", {"query": "x", "documents": ["a"] * 2049}, 400, "documents"),
        ("/v1/rerank", {"query": "x", "documents": ["a", "b" * 300_000]}, 400, "documents[1]"),
        ("/v1/rerank", {"query": "x", "documents": ["a"], "model": "other"}, 404, "model"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, 400, "text_1"),
        ("/v1/score", {"text_1": "a"}, 400, "text_2"),
    ],
)
def test_bad_requests(http: httpx.Client, path: str, body: dict[str, Any], status: int, param: str) -> None:
    answer = http.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


def test_documents_of_both_kinds_may_stand_together(http: httpx.Client) -> None:
    documents = [{"text": "a", "odd": 1}, "b", {"text": "c"}]
    answer = http.post("/v1/rerank", json={"query": "a", "documents": documents})
    assert (answer.status_code, answer.json()["waver"]["ignored"]) == (200, ["documents[0].odd"])
    assert len(answer.json()["results"]) == 3


def test_without_a_reranker_there_is_a_sentence(running: Any) -> None:
    with running.http() as http:
        answer = http.post("/v1/rerank", json={"query": "x", "documents": ["a"]})
        assert answer.status_code == 404
        assert "retrieval.rerankers" in answer.json()["error"]["message"]


def test_a_collection_that_is_reranked(http: httpx.Client, cross_encoder: Path, scores: list[float]) -> None:
    made = http.post("/v1/collections", json={"name": "facts", "rerank": str(cross_encoder)}).json()
    assert made["rerank"] == str(cross_encoder)
    documents = [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)]
    assert http.post("/v1/collections/facts/documents", json={"documents": documents}).status_code == 200
    body = {"query": QUERY, "top_k": 4}
    found = http.post("/v1/collections/facts/search", json=body).json()["passages"]
    assert [int(each["document"]) for each in found] == sorted(range(4), key=lambda i: -scores[i])
    assert found[0]["score"] == pytest.approx(max(scores), abs=1e-5)
    plain = http.post("/v1/collections/facts/search", json=body | {"rerank": False}).json()["passages"]
    assert plain[0]["document"] == "1"
    answer = http.post("/v1/collections", json={"name": "other", "rerank": "none"})
    assert answer.status_code == 404
    assert http.get("/v1/collections/other").status_code == 404
