"""Measure how well memories find what was said: LoCoMo's long conversations, brought to a server over HTTP.

Every question has the turns that answer it (its evidence). No language model takes part: turns are kept as they are
(`extraction: turns`), notes of episodes are words of the conversation itself (`extraction: words`), and questions are
planned by their words. Two tables:

- turns: recall at k is the share of a question's evidence among the first k turns found;
- conversations: a session is what `memgas` recalls. A ranking of turns ranks sessions by their first turn in it. As in
  the paper's code, recall of all asks for every session with evidence among the first k, and nDCG is its old form, in
  which the first two places weigh the same.

What a conversation has given is kept in a file, so that a stopped run goes on.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer

from waver.benchmarks import report
from waver.benchmarks.asked import server
from waver.benchmarks.locomo_data import CATEGORIES, Conversation, Question, load, session_of, sessions_of
from waver.benchmarks.locomo_server import DEPTH, Remembered
from waver.benchmarks.ranks import old_ndcg, recall, recall_all, recall_any
from waver.benchmarks.stats import percentiles, resamples
from waver.policies.job import Caller
from waver.policies.remember.memgas import MemGAS
from waver.resources import MODELS
from waver.retrieval.base import Vectors
from waver.retrieval.config import DEFAULT_EMBEDDER, RetrievalConfig
from waver.retrieval.embedder import Embedder
from waver.retrieval.fusion import blend
from waver.retrieval.memory.config import MemoryConfig
from waver.retrieval.memory.episode import GRAINS
from waver.retrieval.memory.episodes import EpisodeIndex, Episodes
from waver.retrieval.memory.lexical import BM25
from waver.retrieval.words import search_terms, words

KS, SESSION_KS = (5, 10), (1, 3, 5)
QUOTED = 3
"""Sessions whose turns are ranked for the table of turns: as many as `memgas` recalls."""
GATES: dict[str, dict[str, Any]] = {"simplemem": {}, "simplemem without safety net": {"safety_net": False},
         "simplemem without a gate": {"threshold": 0.0}}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "memgas, the paper's weights": {"weighting": "paper"},
    "memgas, no links": {"damping": 0.0},
    "memgas, damping 0.5": {"damping": 0.5},
    "memgas, damping 0.5, the paper's weights": {"damping": 0.5, "weighting": "paper"},
}

app = report.command()


def rivals(conversation: Conversation, embedder: Embedder) -> dict[str, list[list[str]]]:
    """Return what each rival finds for every question, best first; those by one ranking order all turns."""
    ids = [turn.id for turn in conversation.turns]
    texts = [f"{turn.speaker}: {turn.text}" for turn in conversation.turns]
    vectors, bm25 = embedder.embed(texts), BM25([words(text) for text in texts])
    weight = RetrievalConfig().dense_weight
    out: dict[str, list[list[str]]] = {"dense": [], "BM25": [], "hybrid": []}
    for question in conversation.questions:
        rankings = [
            [(ids[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]
            for scores in (vectors @ embedder.question(question.text), bm25.scores(search_terms(question.text)))
        ]
        for name, ranking in zip(("dense", "BM25"), rankings, strict=True):
            out[name].append([each for each, _ in ranking])
        out["hybrid"].append([each for each, _ in blend([each[:DEPTH] for each in rankings], (weight, 1 - weight))])
    return out


def routed(index: EpisodeIndex, asked: Sequence[Vectors]) -> dict[str, list[list[int]]]:
    """Return what variants of `memgas`, and each grain alone, find for the vectors of questions, as sessions."""
    sessions = [session_of(each.episode.turns[0].source) for each in index.episodes]
    out: dict[str, list[list[int]]] = {}
    for name, options in VARIANTS.items():
        policy = MemGAS(episodes=DEPTH, **options)
        found = [policy.best(index, vector)[0] for vector in asked]
        out[name] = [[session_of(each.kept.episode.turns[0].source) for each in some] for some in found]
    for grain, name in enumerate(GRAINS):
        scores = [index.vectors[:, grain] @ vector for vector in asked]
        out[f"grain {name} alone"] = [[sessions[i] for i in np.argsort(-each, kind="stable")] for each in scores]
    return out


def measure_one(
    conversation: Conversation, http: httpx.Client, embedder: Embedder, state: Path, advance: Callable[[], None]
) -> dict[str, Any]:
    """Return how well every way does for each question of a conversation, and what writing it took.

    Args:
        state: the server's folder, in which `memgas` left what its variants read.
    """
    remembered, asked = Remembered(http), conversation.questions
    turns, written = rivals(conversation, embedder), {}
    advance()
    for name, options in GATES.items():
        user = f"{conversation.name}/{name}"
        policy = {"extraction": "turns", "consolidate": False, **options}
        written[name] = remembered.bring(conversation, user, policy)
        turns[name] = [remembered.turns(question.text, user) for question in asked]
        advance()
    user = f"{conversation.name}/memgas"
    written["memgas"] = remembered.bring(conversation, user, {"name": "memgas", "extraction": "words"})
    sessions = {name: [sessions_of(each) for each in found] for name, found in turns.items()}
    sessions["memgas"] = [remembered.sessions(question.text, user) for question in asked]
    episodes = Episodes(state, MemoryConfig(), lambda: embedder)
    try:
        index = episodes.index(Caller(None, user).owner)
        sessions |= routed(index, [embedder.question(question.text) for question in asked])
    finally:
        episodes.close()
    turns["memgas, turns of its 3 sessions by meaning"] = [
        [turn for turn in dense if session_of(turn) in found[:QUOTED]]
        for dense, found in zip(turns["dense"], sessions["memgas"], strict=True)
    ]
    advance()
    return {
        "turns": len(conversation.turns),
        "sessions": len({turn.session for turn in conversation.turns}),
        "categories": [question.category for question in asked],
        "written": written,
        "recall": {name: _of_turns(found, asked) for name, found in turns.items()},
        "recall_sessions": {name: _of_sessions(found, asked) for name, found in sessions.items()},
    }


def _of_turns(found: Sequence[Sequence[str]], asked: Sequence[Question]) -> dict[str, list[float]]:
    pairs = list(zip(found, asked, strict=True))
    return {f"recall at {k}": [recall(each, question.evidence, k) for each, question in pairs] for k in KS}


def _of_sessions(found: Sequence[Sequence[int]], asked: Sequence[Question]) -> dict[str, list[float]]:
    pairs = [(each, sessions_of(question.evidence)) for each, question in zip(found, asked, strict=True)]
    out = {f"all at {k}": [recall_all(each, gold, k) for each, gold in pairs] for k in SESSION_KS}
    out["any at 1"] = [recall_any(each, gold, 1) for each, gold in pairs]
    out["nDCG at 5"] = [old_ndcg(each, gold, 5) for each, gold in pairs]
    return out


def summary(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return means with 95 % intervals (bootstrap over questions), by way and measure, and by category."""
    categories = np.array([c for each in found.values() for c in each["categories"]])
    weights, first = resamples(len(categories)), next(iter(found.values()))
    tables: dict[str, Any] = {}
    for part in ("recall", "recall_sessions"):
        tables[part] = {}
        for name, measures in first[part].items():
            tables[part][name] = {}
            for measure in measures:
                values = np.array([v for each in found.values() for v in each[part][name][measure]])
                tables[part][name][measure] = {
                    "mean": float(values.mean()),
                    "interval": percentiles(weights @ values),
                    "categories": {
                        title: float(values[categories == c].mean())
                        for c, title in CATEGORIES.items()
                        if c in categories
                    },
                }
    turns = sum(each["turns"] for each in found.values())
    written = {
        name: {
            "kept": sum(each["written"][name]["kept"] for each in found.values()),
            "milliseconds": 1000 * float(np.mean([each["written"][name]["seconds"] for each in found.values()])),
        }
        for name in first["written"]
    }
    sessions = sum(each["sessions"] for each in found.values())
    counted = {"turns": turns, "sessions": sessions, "questions": len(categories)}
    return {"conversations": list(found), **counted, **tables, "written": written}


def page(numbers: Mapping[str, Any]) -> list[str]:
    """Return the page of results."""
    last = f"recall at {KS[-1]}"
    rows = [
        [name, *(report.percent(each["mean"], each["interval"]) for each in found.values()),
         *(report.percent(found[last]["categories"].get(title, math.nan)) for title in CATEGORIES.values())]
        for name, found in numbers["recall"].items()
    ]  # fmt: skip
    sessions = [
        [name, *(report.percent(each["mean"], each["interval"]) for each in found.values())]
        for name, found in numbers["recall_sessions"].items()
    ]
    written = [
        [name, f"{each['kept']:,}", f"{each['milliseconds']:.1f} ms"] for name, each in numbers["written"].items()
    ]
    heads = [next(iter(numbers[part].values())) for part in ("recall", "recall_sessions")]
    return [
        "# Memories of long conversations",
        f"LoCoMo, conversations {', '.join(numbers['conversations'])}: {numbers['turns']} turns in "
        f"{numbers['sessions']} sessions, {numbers['questions']} questions with evidence. No language model takes "
        "part: turns are kept as they are, notes of episodes are words of the conversation, and questions are planned "
        "by their words. Intervals are 95 %, by bootstrap over the questions.",
        "## Turns",
        f"Share of a question's evidence among the first turns found; the last columns are {last} by category.",
        report.table(["way", *heads[0], *CATEGORIES.values()], rows),
        "## Sessions",
        "`all at k`: every session with evidence is among the first k. A ranking of turns ranks sessions by their "
        "first turn in it. nDCG is the old form of MemGAS' code, with which it can be compared alone. `memgas` takes "
        "its defaults, and was asked over HTTP; its variants and the grains read the same episodes.",
        report.table(["way", *heads[1]], sessions),
        "## Writing",
        "Memories, or episodes, that a server made, and the time for each turn from the first request until the last "
        "one was searchable (read to half a second for a whole conversation, on a machine that had other work, so that "
        "the times compare with each other at most).",
        report.table(["way", "kept", "time a turn"], written),
    ]


@app.command()
def main(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="LoCoMo's ten conversations, as a ZIP of JSON files.", exists=True)],
    conversations: Annotated[int, typer.Option(min=1, max=10, help="Of the data, the first by name.")] = 2,
    out: report.Out = report.RESULTS,
) -> None:
    """Measure the recall of `simplemem` and `memgas` on LoCoMo, against dense, lexical and hybrid search over turns.

    Writes locomo.json and .md. About 3 minutes for each conversation on two cores; a stopped run goes on.
    """
    settings = {"data": data.name, "conversations": conversations, "out": out}
    conditions = report.conditions("locomo", settings)
    parts = Path(tempfile.gettempdir()) / f"waver-locomo-{datetime.now(UTC):%Y%m%d}.json"
    found: dict[str, Any] = json.loads(parts.read_text()) if parts.exists() else {}
    chosen = load(data)[:conversations]
    missing = [each for each in chosen if each.name not in found]
    if missing:
        embedder = Embedder(DEFAULT_EMBEDDER)
        with (
            tempfile.TemporaryDirectory() as scratch,
            server(Path(scratch), {"model": str(MODELS / "small")}) as http,
            report.progress() as bar,
        ):
            task = bar.add_task("ways", total=len(missing) * (len(GATES) + 2))
            for each in missing:
                found[each.name] = measure_one(each, http, embedder, Path(scratch) / "state", lambda: bar.advance(task))
                _keep(parts, found)
    numbers = summary({each.name: found[each.name] for each in chosen})
    report.write(out, "locomo", conditions | numbers, page(numbers))
    parts.unlink()


def _keep(file: Path, found: Mapping[str, Any]) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.replace(file)


if __name__ == "__main__":
    app()
