"""The benchmark of search: collections in the forms of BEIR and TREC, the measures, and a run from end to end."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

from waver.benchmarks import embedding, round_trip, search
from waver.benchmarks.judged import NotJudged, average_precision, load, ndcg, precision, recall, reciprocal_rank

DOCUMENTS = {"d1": ("Rivers", "The Arn is 412 km long."), "d2": ("", "Osk has cheese."), "d3": ("", "A mill is old.")}
QUESTIONS = {"q1": "How long is the river Arn?", "q2": "famous cheese"}


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "Towns-1"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": name, "title": title, "text": text} for name, (title, text) in DOCUMENTS.items()]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = [{"_id": name, "text": text} for name, text in (QUESTIONS | {"q9": "not judged"}).items()]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    for split in ("test", "train"):
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq2\td2\t1\nq2\td3\t0\n")
    return folder


def test_both_forms_read_alike(beir: Path, tmp_path: Path) -> None:
    trec = tmp_path / "trec"
    trec.mkdir()
    docs = [
        f"<DOC>\n<DOCNO> {name} </DOCNO>\n<TITLE>{title}</TITLE>\n<TEXT>\n{text}\n</TEXT>\n</DOC>"
        for name, (title, text) in DOCUMENTS.items()
    ]
    (trec / "docs.xml.gz").write_bytes(gzip.compress("\n".join(docs).encode()))
    topics = [
        f"<top>\n<num> Number: {name}\n<title> {text}\n<desc> Description:\nx\n</top>"
        for name, text in QUESTIONS.items()
    ]
    (trec / "topics").write_text("\n".join(topics))
    (trec / "qrels").write_text("q1 0 d1 2\nq2 0 d2 1\nq2 0 d3 0\n")
    (trec / "README").write_text("A collection.\n")
    one, other = load(beir, "test"), load(trec, "test")
    assert one == other
    assert one.asked() == ["q1", "q2"]
    assert [(each.title, each.text) for each in other.documents.values()] == list(DOCUMENTS.values())


def test_what_is_no_collection(beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotJudged, match=r"qrels/dev\.tsv"):
        load(beir, "dev")
    with pytest.raises(NotJudged, match="no documents"):
        load(tmp_path / "Towns-1" / "qrels", "test")
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t0\n")
    with pytest.raises(NotJudged, match="No question"):
        load(beir, "test")
    with pytest.raises(SystemExit):
        search.app(args=[str(beir)])


def test_measures() -> None:
    relevance = {"a": 2, "b": 1, "c": 0, "d": -1}
    assert ndcg(["a", "b"], relevance) == pytest.approx(1)
    assert ndcg(["c", "b", "a"], relevance) == pytest.approx((1 / math.log2(3) + 2 / 2) / (2 + 1 / math.log2(3)))
    assert ndcg(["x"] * 10 + ["a"], relevance) == 0
    assert (recall(["x", "b"], relevance, 2), recall(["x", "b"], relevance, 1)) == (0.5, 0)
    assert (reciprocal_rank(["c", "b"], relevance), reciprocal_rank(["c", "d"], relevance)) == (0.5, 0)
    assert average_precision(["c", "b", "x", "a"], relevance) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert average_precision(["x", "b"], relevance) == pytest.approx(1 / 2 / 2)  # the one that is not found counts as 0
    assert (average_precision(["a", "b"], relevance), average_precision(["c", "d"], relevance)) == (1, 0)
    assert (precision(["b", "x", "c", "a"], relevance, 3), precision(["a", "b"], relevance, 4)) == (1 / 3, 2 / 4)


def run(app: Any, name: str, out: Path, *options: object) -> dict[str, Any]:
    app.app(args=[*map(str, options), "--out", str(out)], standalone_mode=False)
    assert (out / f"{name}.md").read_text().startswith("# ")
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return found


def test_a_run(beir: Path, tmp_path: Path, cross_encoder: Path) -> None:
    options = (beir, "--tune", "train", "--chunk-tokens", "64,128", "--work", tmp_path / "work")
    found = run(search, "search_towns_1", tmp_path, *options, "--reranker", cross_encoder)
    assert found["command"].startswith("waver bench search Towns-1 ")
    assert (found["documents"], found["questions"]) == (3, 2)
    for size in ("64", "128"):
        here = found["sizes"][size]
        assert (here["chunks"], here["filled"]["documents"]) == (3, 3)
        assert list(here["modes"]) == ["lexical", "dense", "hybrid", "reranked"]
        for way in ("lexical", "dense", "hybrid"):
            assert here["modes"][way]["nDCG@10"] == {"mean": 1.0, "interval": [1.0, 1.0]}
            assert here["modes"][way]["milliseconds"][0] > 0
        assert here["modes"]["reranked"]["recall@100"]["mean"] == 1
        assert list(here["fusions"]) == ["scores", "ranks"]
        assert all(set(each.values()) == {1.0} for each in here["fusions"].values())
    words = run(search, "search_towns_1", tmp_path, *options, "--ways", "lexical")
    assert [list(each["modes"]) for each in words["sizes"].values()] == [["lexical"], ["lexical"]]
    assert words["sizes"]["64"]["modes"]["lexical"]["nDCG@10"]["mean"] == 1.0
    again = run(search, "search_towns_1", tmp_path, *options, "--n", 1)
    assert again["sizes"]["64"]["filled"]["documents"] == 0
    assert again["questions"] == 1
    assert "reranked" not in again["sizes"]["64"]["modes"]


def test_words_that_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tmp_path / "files"
    (files / "deep").mkdir(parents=True)
    (files / "a.md").write_text("# Ri\u00advers\n\nThe ﬁle of Osk: 10<sup>6</sup>.")
    (files / "deep" / "b.html").write_text("<p>The Arn flows.</p>")
    (files / "twin.html").write_text("<p>The Arn flows.</p>")
    (files / "c.html").write_text("<p>Cheese.</p>")
    (files / "d.html").write_text("<p>unread</p>")
    (files / "e.txt").write_text("not compared")

    def theirs(file: Path, kind: str) -> str:
        if file.name == "d.html":
            raise OSError
        return {"a.md": "Rivers the file of OSK 10 6", "c.html": "cheese cheese bread"}.get(file.name, "The Arn flows")

    monkeypatch.setattr(round_trip, "pandoc", theirs)
    monkeypatch.setattr(round_trip.shutil, "which", lambda name: name)
    monkeypatch.setattr(round_trip, "pandoc_version", lambda: "3.0")
    found = run(round_trip, "round_trip", tmp_path, "--folder", files, "--work", tmp_path / "rows")
    assert found["kinds"] == {
        "markdown": {"files": 1, "whole": 1, "words": 7, "lost": 0},
        "html": {"files": 2, "whole": 1, "words": 6, "lost": 2},
    }
    (loss,) = found["losses"]
    assert (loss["file"], sorted(loss["examples"])) == ("files/c.html", ["bread", "cheese"])
    assert [each["file"] for each in found["unread"]] == ["files/d.html"]
    monkeypatch.setattr(round_trip, "pandoc", None)  # a second run asks for no file again
    again = run(round_trip, "round_trip", tmp_path, "--folder", files, "--work", tmp_path / "rows")
    assert [again[part] for part in ("kinds", "losses", "unread")] == [
        found[part] for part in ("kinds", "losses", "unread")
    ]


def test_pandocs_tree() -> None:
    tree = [
        {"t": "Header", "c": [1, ["id", [], []], [{"t": "Str", "c": "Title"}]]},
        {
            "t": "Para",
            "c": [{"t": "Str", "c": "foo"}, {"t": "Strong", "c": [{"t": "Str", "c": "bar"}]}, {"t": "Space"}],
        },
        {"t": "Para", "c": [{"t": "Link", "c": [["", [], []], [{"t": "Str", "c": "text"}], ["http://x", "shown"]]}]},
        {"t": "RawBlock", "c": ["html", "<b>hidden</b>"]},
        {"t": "CodeBlock", "c": [["", ["python"], []], "x = 1"]},
    ]
    assert "".join(round_trip.pieces(tree)).split() == ["Title", "foobar", "text", "x", "=", "1"]


def test_ways_to_embed(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.md").write_text(f"# Town {i}\n\nThe mill is old. Its river is {i} km long.")
    found = run(embedding, "embedding", tmp_path, folder, "--n", 2, "--rounds", 1, "--group", 1)
    assert (found["documents"], found["chunks"]) == (2, 2)
    cosines = [way["cosine"]["lowest"] for way in found["ways"].values()]
    assert cosines[:2] == pytest.approx([1, 1], abs=1e-5)
    assert all(0.9 < each < 1.0001 for each in cosines[2:4])
    profile = found["profile"]
    assert 0 < profile["share"] <= 1
    assert 0 < profile["operations"] < 2 * profile["alone"]
