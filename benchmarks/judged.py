"""Collections with judgements, in the forms of BEIR and TREC: documents, questions, and which document answers which.

BEIR: `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`. TREC: files of `<DOC>`, of `<top>`, and of four columns
(question, iteration, document, relevance); they are told apart by what is in them, and may be gzipped.
"""

from __future__ import annotations

import gzip
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from waver.retrieval.base import Document

Judgements = Mapping[str, Mapping[str, int]]
"""Relevance by question and document."""
_DOC = re.compile(r"<doc>(.*?)</doc>", re.I | re.S)
_TOPIC = re.compile(r"<top>(.*?)(?=<top>|</top>|\Z)", re.I | re.S)
_FIELD = re.compile(r"<(\w+)>\s*([^<]*)")
_MARKUP = re.compile(r"<[^<>]*>")
_LABEL = re.compile(r"^(?:number|topic|description|narrative):\s*", re.I)
TITLES = ("title", "headline", "head", "hl")


class NotJudged(ValueError):
    """A folder that is no collection with judgements; the message says what is missing."""


@dataclass(frozen=True)
class Judged:
    """A collection with judgements."""

    documents: Mapping[str, Document]
    questions: Mapping[str, str]
    judgements: Judgements

    def asked(self) -> list[str]:
        """Return the questions that have a relevant document, in order."""
        return [q for q in self.questions if any(each > 0 for each in self.judgements.get(q, {}).values())]


def load(folder: Path, split: str) -> Judged:
    """Read a folder.

    Args:
        split: of the judgements, in BEIR's form.

    Raises:
        NotJudged: documents, questions or judgements are missing.
    """
    found = _beir(folder, split) if (folder / "corpus.jsonl").exists() else _trec(folder)
    for what, there in (("documents", found.documents), ("questions", found.questions)):
        if not there:
            raise NotJudged(f"There are no {what} in {folder}: it should be in the form of BEIR or TREC.")
    if not found.asked():
        raise NotJudged(f"No question in {folder} has a relevant document.")
    return found


def _beir(folder: Path, split: str) -> Judged:
    documents = {}
    for row in _rows(folder / "corpus.jsonl"):
        documents[row["_id"]] = Document(row["_id"], row["text"], row.get("title") or "")
    file = folder / "qrels" / f"{split}.tsv"
    if not file.exists() or not (folder / "queries.jsonl").exists():
        raise NotJudged(f"{folder} should have queries.jsonl and qrels/{split}.tsv.")
    judgements: dict[str, dict[str, int]] = {}
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        question, document, relevance = line.split("\t")
        judgements.setdefault(question, {})[document] = int(relevance)
    questions = {row["_id"]: row["text"] for row in _rows(folder / "queries.jsonl")}
    return Judged(documents, {q: text for q, text in questions.items() if q in judgements}, judgements)


def _rows(file: Path) -> Iterator[dict[str, str]]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _trec(folder: Path) -> Judged:
    documents: dict[str, Document] = {}
    questions: dict[str, str] = {}
    judgements: dict[str, dict[str, int]] = {}
    for file in sorted(folder.rglob("*")):
        if not file.is_file():
            continue
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = data.decode("utf-8", "replace")
        if _DOC.search(text):
            documents |= {each.id: each for each in map(_document, _DOC.findall(text)) if each.id and each.text}
        elif _TOPIC.search(text):
            for topic in _TOPIC.findall(text):
                fields = {name.lower(): _LABEL.sub("", _plain(value)) for name, value in _FIELD.findall(topic)}
                questions[fields.get("num", "")] = fields.get("title") or fields.get("desc", "")
        else:
            rows = [line.split() for line in text.splitlines() if line.strip()]
            if not all(len(row) == 4 and row[3].lstrip("-").isdigit() for row in rows):
                continue
            for question, _, document, relevance in rows:
                judgements.setdefault(question, {})[document] = int(relevance)
    return Judged(documents, questions, judgements)


def _document(content: str) -> Document:
    fields = {name.lower(): _plain(value) for name, value in _FIELD.findall(content)}
    title = next((fields[name] for name in TITLES if fields.get(name)), "")
    whole = re.search(r"<text>(.*?)</text>", content, re.I | re.S)
    text = _plain(whole[1] if whole else re.sub(r"<docno>.*?</docno>", "", content, flags=re.I | re.S))
    return Document(fields.get("docno", ""), text, title)


def _plain(markup: str) -> str:
    return " ".join(html.unescape(_MARKUP.sub(" ", markup)).split())


def ndcg(ranking: Sequence[str], relevance: Mapping[str, int], depth: int = 10) -> float:
    """Return nDCG of the first `depth` documents, with gains as they are judged, as trec_eval has it."""
    gains = np.array([max(relevance.get(each, 0), 0) for each in ranking[:depth]], float)
    ideal = np.sort([max(each, 0) for each in relevance.values()])[::-1][:depth]
    best = float((ideal / np.log2(np.arange(2, len(ideal) + 2))).sum())
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum()) / best


def recall(ranking: Sequence[str], relevance: Mapping[str, int], depth: int) -> float:
    """Return the share of relevant documents that are among the first `depth`."""
    relevant = {each for each, grade in relevance.items() if grade > 0}
    return len(relevant.intersection(ranking[:depth])) / len(relevant)


def average_precision(ranking: Sequence[str], relevance: Mapping[str, int]) -> float:
    """Return the precision at the place of each relevant document, averaged over all of them; 0 for those that the
    ranking lacks."""
    found, total = 0, 0.0
    for rank, each in enumerate(ranking, 1):
        if relevance.get(each, 0) > 0:
            found += 1
            total += found / rank
    return total / sum(grade > 0 for grade in relevance.values())


def precision(ranking: Sequence[str], relevance: Mapping[str, int], depth: int) -> float:
    """Return the share of relevant documents among the first `depth`; a shorter ranking counts as one of that
    length."""
    return sum(relevance.get(each, 0) > 0 for each in ranking[:depth]) / depth


def reciprocal_rank(ranking: Sequence[str], relevance: Mapping[str, int], depth: int = 10) -> float:
    """Return 1 / rank of the first relevant document, 0 where it is not among the first `depth`."""
    return next((1 / rank for rank, each in enumerate(ranking[:depth], 1) if relevance.get(each, 0) > 0), 0.0)
