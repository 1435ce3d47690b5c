"""Cross-encoders: the scores of sentence-transformers, in a collection's searches, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder

from tests.retrieval.test_collection import FACTS
from waver.retrieval.base import RetrievalError, Unavailable
from waver.retrieval.cancellation import Cancelled, CancelToken
from waver.retrieval.chunking import headed
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.embedder import Embedder
from waver.retrieval.library import Library
from waver.retrieval.reranker import Reranker

QUESTION = "how long is the river?"
TEXTS = ["the arn is 412 km long", "cheese", "a river " * 40, "osk is a town", "cheese"]


def test_scores_are_those_of_the_library(cross_encoder: Path) -> None:
    reranker = Reranker(str(cross_encoder))
    assert not reranker.loaded
    scored = reranker.score([(QUESTION, text) for text in TEXTS])
    alone = CrossEncoder(str(cross_encoder)).predict([(QUESTION, TEXTS[i]) for i in range(5)], batch_size=1)
    assert np.allclose(scored.scores, alone, atol=1e-5)
    assert scored.scores[1] == pytest.approx(scored.scores[4], abs=1e-6)
    assert len(set(np.round(scored.scores, 4))) == 4
    assert (scored.cut, scored.tokens) == (1, 64 + sum(3 + letters(QUESTION) + letters(TEXTS[i]) for i in (0, 1, 3, 4)))
    assert reranker.score([]).tokens == 0
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        reranker.score([("a", "b")], token)


def letters(text: str) -> int:
    return len(text.replace(" ", ""))


@pytest.fixture
def library(tmp_path: Path, embedder: Embedder, cross_encoder: Path) -> Iterator[Library]:
    made = Library(RetrievalConfig(path=tmp_path / "collections", rerankers=(str(cross_encoder),)))
    made.embedders["all-MiniLM-L6-v2"] = embedder
    yield made
    made.close()


def test_a_collection_that_is_reranked(library: Library, cross_encoder: Path, tmp_path: Path) -> None:
    made = library.create("facts", rerank=str(cross_encoder))
    made.add(FACTS)
    assert made.info().as_dict()["rerank"] == str(cross_encoder)
    scores = Reranker(str(cross_encoder)).score([(QUESTION, headed(each.title, each.text)) for each in FACTS]).scores
    wanted = [FACTS[i].id for i in np.argsort(-scores)]
    for mode in ("hybrid", "dense"):
        found = made.search_now(QUESTION, 3, mode=mode)
        assert [each.document for each in found] == wanted
        assert [each.score for each in found] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
        assert [each.document for each in made.search_now(QUESTION, 1, mode=mode)] == wanted[:1]  # of all, not of one
    other = "famous cheese of a town"
    plain = made.search_now(other, 3, rerank=False)
    assert plain[0].document == "osk"
    assert plain[0].score <= 1
    reranked = made.search_now(other, 3)
    by_pairs = Reranker(str(cross_encoder)).score([(other, headed(each.title, each.text)) for each in FACTS]).scores
    assert [each.score for each in reranked] == pytest.approx(sorted(by_pairs, reverse=True), abs=1e-5)
    assert [each.score for each in plain] != [each.score for each in reranked]
    without = Library(RetrievalConfig(path=tmp_path / "collections"))
    with pytest.raises(Unavailable, match=r"retrieval\.rerankers"):
        without.open("facts")
    without.close()


def test_what_is_not_configured(library: Library, tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match="There is no reranker 'other'; there are"):
        library.create("x", rerank="other")
    assert library.names() == []
    empty = Library(RetrievalConfig(path=tmp_path / "none"))
    with pytest.raises(RetrievalError, match=r"name a cross-encoder in retrieval\.rerankers"):
        empty.reranker()
    empty.close()


def test_what_is_no_cross_encoder(cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    shutil.copytree(cross_encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"auto_map": {"AutoModel": "own.Model"}}, "code of its own"),
        ({"architectures": ["BertModel"]}, "classifies no sequences"),
        ({"architectures": None}, "classifies no sequences"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}, "cannot be loaded|2 numbers"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(Unavailable, match=said):
            _ = Reranker(str(folder)).model
    (folder / "config.json").write_text("[]")
    with pytest.raises(Unavailable, match="missing or broken"):
        _ = Reranker(str(folder)).model
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Unavailable, match="not safetensors"):
        _ = Reranker(str(folder)).model
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unavailable, match="neither a folder"):
        _ = Reranker("none-such").model
