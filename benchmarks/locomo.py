"""Measure how well memories find what was said: LoCoMo's long conversations, brought to a server over HTTP.

Every question has the turns that answer it (its evidence). Recall at k is the share of a question's evidence among the
first k turns found, averaged over the questions, without any language model: turns are kept as they are
(`extraction: turns`), and questions are planned by their words. Rivals rank the same turns: by the embedder alone, by
BM25 alone, and by both rankings fused. What a conversation has given is kept in a file, so that a stopped run goes on.

The data is not part of the repository (CC BY-NC 4.0): https://github.com/snap-research/locomo.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
import yaml

from waver.benchmarks import report
from waver.benchmarks.processes import free_port, running
from waver.benchmarks.stats import percentiles, resamples
from waver.resources import MODELS
from waver.retrieval.config import DEFAULT_EMBEDDER
from waver.retrieval.embedder import Embedder
from waver.retrieval.fusion import fuse
from waver.retrieval.memory.lexical import BM25
from waver.retrieval.words import search_terms, words

KS = (5, 10)
DEPTH = 10
START = 600.0
"""Seconds that a server is given to load its libraries and models."""
QUIET = 20.0
"""Seconds without a new memory after which a conversation has been read."""
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
"""The fifth, questions that the conversation does not answer, has no recall."""
EVIDENCE = re.compile(r"D\d{1,4}:\d{1,4}")
SESSION = re.compile(r"session_(\d{1,4})")
GATES: dict[str, dict[str, Any]] = {"simplemem": {}, "simplemem without safety net": {"safety_net": False},
         "simplemem without a gate": {"threshold": 0.0}}  # fmt: skip
TIME = "%I:%M %p on %d %B, %Y"

app = report.command()


@dataclass(frozen=True)
class Said:
    """A turn: its id in the data, its session, and when the session took place."""

    id: str
    session: int
    speaker: str
    text: str
    time: datetime


@dataclass(frozen=True)
class Question:
    """A question, its category, and the ids of the turns that answer it."""

    text: str
    category: int
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Conversation:
    """One conversation of the data."""

    name: str
    turns: tuple[Said, ...]
    questions: tuple[Question, ...]


def load(data: Path) -> list[Conversation]:
    """Read all conversations of the archive, in the order of their names.

    Raises:
        ValueError: it is not LoCoMo's.
    """
    with zipfile.ZipFile(data) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".json"))
        found = [_conversation(Path(name).stem, json.loads(archive.read(name))) for name in names]
    if not found:
        raise ValueError(f"{data} holds no conversations")
    return found


def _conversation(name: str, data: Mapping[str, Any]) -> Conversation:
    numbers = sorted(int(match[1]) for key in data if (match := SESSION.fullmatch(key)))
    turns = [
        Said(each["dia_id"], number, each["speaker"], each["text"],
             datetime.strptime(data[f"session_{number}_date_time"], TIME).replace(tzinfo=UTC))
        for number in numbers
        for each in data[f"session_{number}"]
        if each["text"].strip()
    ]  # fmt: skip
    known = {turn.id for turn in turns}
    questions = []
    for each in data["qa"]:
        evidence = tuple(dict.fromkeys(e for part in each["evidence"] for e in EVIDENCE.findall(part) if e in known))
        if evidence and each["category"] in CATEGORIES:
            questions.append(Question(each["question"], each["category"], evidence))
    return Conversation(name, tuple(turns), tuple(questions))


def recall(found: Sequence[str], evidence: Sequence[str], k: int) -> float:
    """Return the share of the evidence among the first k turns that were found."""
    return len(set(found[:k]).intersection(evidence)) / len(evidence)


def rivals(conversation: Conversation, embedder: Embedder) -> dict[str, list[list[str]]]:
    """Return what each rival finds for every question, best first."""
    ids = [turn.id for turn in conversation.turns]
    texts = [f"{turn.speaker}: {turn.text}" for turn in conversation.turns]
    vectors, bm25 = embedder.embed(texts), BM25([words(text) for text in texts])
    out: dict[str, list[list[str]]] = {"dense": [], "BM25": [], "hybrid": []}
    for question in conversation.questions:
        dense = [ids[i] for i in np.argsort(-(vectors @ embedder.question(question.text)), kind="stable")[:50]]
        lexical = [ids[i] for i in np.argsort(-bm25.scores(search_terms(question.text)), kind="stable")[:50]]
        out["dense"].append(dense)
        out["BM25"].append(lexical)
        out["hybrid"].append([each for each, _ in fuse([dense, lexical])])
    return out


class Remembered:
    """A server's memories of conversations."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def bring(self, conversation: Conversation, user: str, options: Mapping[str, Any]) -> dict[str, float]:
        """Bring a conversation, session by session, and wait until it has been read.

        Returns:
            `kept`: turns that became memories. `seconds`: time from the first request until then, for each turn.
        """
        policy = {"extraction": "turns", "consolidate": False, "idle": 0.0, **options}
        began = time.perf_counter()
        for number in dict.fromkeys(turn.session for turn in conversation.turns):
            said = [
                {"speaker": turn.speaker, "text": turn.text, "time": turn.time.isoformat(), "source": turn.id}
                for turn in conversation.turns
                if turn.session == number
            ]
            body = {"turns": said, "user": user, "conversation": f"session {number}", "policy": policy}
            self._post("/v1/memories", body)
        kept, ended = self._settled(user)
        return {"kept": kept, "seconds": (ended - began) / len(conversation.turns)}

    def _settled(self, user: str) -> tuple[int, float]:
        """Wait until no memory has come for a while; return how many there are, and when the last one was seen.

        Raises:
            TimeoutError: none has come at all.
        """
        count, since = 0, time.perf_counter()
        while not count or time.perf_counter() - since < QUIET:
            if not count and time.perf_counter() - since > START:
                raise TimeoutError(f"nothing of {user} was remembered within {START:.0f} s")
            lines = self._http.get("/v1/memories", params={"user": user}).raise_for_status().text.splitlines()
            now = sum('"object": "memory"' in line for line in lines)
            if now != count:
                count, since = now, time.perf_counter()
            time.sleep(0.5)
        return count, since

    def find(self, question: str, user: str) -> list[str]:
        """Return the turns that a question recalls, best first."""
        found = self._post("/v1/memories/search", {"query": question, "top_k": DEPTH, "user": user})["memories"]
        return [source for each in found for source in each.get("sources", ())]

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._http.post(path, json=body).raise_for_status().json()


@contextmanager
def server(scratch: Path) -> Iterator[httpx.Client]:
    """Yield a client of a server with the bundled small model, of which nothing is asked."""
    port = free_port()
    config = {
        "engines": {"small": {"model": str(MODELS / "small")}},
        "state": str(scratch / "state"),
        "retrieval": {"embedder": DEFAULT_EMBEDDER, "path": str(scratch / "collections")},
        "server": {"port": port},
    }
    file = scratch / "waver.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "waver", "serve", "--config", str(file)]
    url = f"http://127.0.0.1:{port}"
    with running(command, scratch / "log", f"{url}/ready", START), httpx.Client(base_url=url, timeout=120) as client:
        yield client


def measure_one(conversation: Conversation, http: httpx.Client, embedder: Embedder) -> dict[str, Any]:
    """Return the recall of every way for each question of a conversation, by k, and what writing it took."""
    remembered = Remembered(http)
    ways, written = rivals(conversation, embedder), {}
    for name, options in GATES.items():
        user = f"{conversation.name}/{name}"
        written[name] = remembered.bring(conversation, user, options)
        ways[name] = [remembered.find(question.text, user) for question in conversation.questions]
    return {
        "turns": len(conversation.turns),
        "categories": [question.category for question in conversation.questions],
        "written": written,
        "recall": {
            name: {
                str(k): [recall(f, q.evidence, k) for f, q in zip(found, conversation.questions, strict=True)]
                for k in KS
            }
            for name, found in ways.items()
        },
    }


def summary(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return recall with 95 % intervals (bootstrap over questions), by way, k and category."""
    categories = np.array([c for each in found.values() for c in each["categories"]])
    names = next(iter(found.values()))["recall"]
    weights = resamples(len(categories))
    recalls: dict[str, Any] = {}
    for name in names:
        recalls[name] = {}
        for k in map(str, KS):
            values = np.array([v for each in found.values() for v in each["recall"][name][k]])
            recalls[name][k] = {
                "mean": float(values.mean()),
                "interval": percentiles(weights @ values),
                "categories": {title: float(values[categories == c].mean()) for c, title in CATEGORIES.items()},
            }
    turns = sum(each["turns"] for each in found.values())
    written = {
        name: {
            "kept": sum(each["written"][name]["kept"] for each in found.values()) / turns,
            "milliseconds": 1000 * float(np.mean([each["written"][name]["seconds"] for each in found.values()])),
        }
        for name in GATES
    }
    return {
        "conversations": list(found),
        "turns": turns,
        "questions": len(categories),
        "recalls": recalls,
        "written": written,
    }


def page(numbers: Mapping[str, Any]) -> list[str]:
    """Return the page of results."""
    recalls = numbers["recalls"]
    rows = [
        [name, *(report.percent(found[str(k)]["mean"], found[str(k)]["interval"]) for k in KS),
         *(report.percent(found[str(DEPTH)]["categories"][title]) for title in CATEGORIES.values())]
        for name, found in recalls.items()
    ]  # fmt: skip
    written = [
        [name, report.percent(each["kept"]), f"{each['milliseconds']:.1f} ms"]
        for name, each in numbers["written"].items()
    ]
    head = ["way", *(f"recall at {k}" for k in KS), *CATEGORIES.values()]
    return [
        "# Memories of long conversations",
        f"LoCoMo, conversations {', '.join(numbers['conversations'])}: {numbers['turns']} turns, "
        f"{numbers['questions']} questions with evidence. Recall of the turns that answer a question, without any "
        "language model: turns are kept as they are, and questions are planned by their words. The last columns are "
        "recall at 10 by category.",
        report.table(head, rows),
        "Turns that a server keeps as memories, and the time for each turn from the first request until the last one "
        "was searchable (read to half a second for a whole conversation):",
        report.table(["way", "turns kept", "time a turn"], written),
    ]


@app.command()
def main(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="LoCoMo's ten conversations, as a ZIP of JSON files.", exists=True)],
    conversations: Annotated[int, typer.Option(min=1, max=10, help="Of the data, the first by name.")] = 2,
    out: report.Out = report.RESULTS,
) -> None:
    """Measure the recall of `simplemem` on LoCoMo, against dense, lexical and hybrid search over turns.

    Writes locomo.json and .md. About 2 minutes for each conversation on two cores; a stopped run goes on.
    """
    settings = {"data": data.name, "conversations": conversations, "out": out}
    conditions = report.conditions("locomo", settings)
    parts = Path(tempfile.gettempdir()) / f"waver-locomo-{datetime.now(UTC):%Y%m%d}.json"
    found: dict[str, Any] = json.loads(parts.read_text()) if parts.exists() else {}
    chosen = load(data)[:conversations]
    missing = [each for each in chosen if each.name not in found]
    if missing:
        embedder = Embedder(DEFAULT_EMBEDDER)
        with tempfile.TemporaryDirectory() as scratch, server(Path(scratch)) as http, report.progress() as bar:
            task = bar.add_task("conversations", total=len(missing))
            for each in missing:
                found[each.name] = measure_one(each, http, embedder)
                _keep(parts, found)
                bar.advance(task)
    numbers = summary({each.name: found[each.name] for each in chosen})
    report.write(out, "locomo", conditions | numbers, page(numbers))
    parts.unlink()


def _keep(file: Path, found: Mapping[str, Any]) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.replace(file)


if __name__ == "__main__":
    app()
