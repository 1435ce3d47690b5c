"""Measure `scr` on counterfactual facts: reliability, rephrasings, locality and consequences, one memory for all.

Rivals: no facts at all, the nearest fact always in front of the question, and the nearest fact where its cosine passes
a threshold. Locality is agreement with the answer that the model gives without facts, whatever is true; `again` asks
without facts a second time, and shows how far that agreement is broken by batching alone.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from waver import job
from waver.benchmarks import report
from waver.benchmarks.asked import Asked, engine, served, user
from waver.benchmarks.counterfactuals import CHANGED, KEPT, Edit, known, of_the_world
from waver.policies.retrieve.quoting import quoted
from waver.policies.retrieve.scr import INSTRUCTION
from waver.retrieval.config import DEFAULT_EMBEDDER
from waver.retrieval.embedder import Embedder
from waver.stats import wilson

WORK = Path("data/bench/facts")
TOKENS = 16
SHORT = " Answer in a few words."
THRESHOLDS = (0.5, 0.6, 0.7, 0.8)
CANDIDATES = 3
CONFIRMED: Mapping[str, list[dict[str, Any]]] = {
    "scr, listwise": [{"name": "scr", "top_k": CANDIDATES}],
    "scr, pointwise": [{"name": "scr", "top_k": CANDIDATES, "confirm": "pointwise"}],
    "scr, probability": [{"name": "scr", "top_k": CANDIDATES, "confirm": "probability"}],
}
ARTICLES = re.compile(r"\b(?:a|an|the)\b")

app = report.command()


def plain(text: str) -> str:
    """Return a text in lower case, without punctuation and articles."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation.replace("€", "")))
    return " ".join(ARTICLES.sub(" ", bare).split())


def asked_of(edits: Sequence[Edit]) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Yield each question: its key, its kind, its words, and what its answer should contain."""
    for i, edit in enumerate(edits):
        for kind, (text, wanted) in edit.questions.items():
            yield f"{i} {kind}", kind, text, wanted


def bodies(
    edits: Sequence[Edit], embedder: Embedder, short: str, confirmed: Sequence[str]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the requests by way and question, and the cosine of each question's nearest fact.

    Args:
        short: words behind every question. confirmed: ways of `scr`, of `CONFIRMED`.
    """
    facts = [edit.statement for edit in edits]
    vectors = embedder.embed(facts)
    wanted, cosines = {}, {}
    for key, _, text, _ in asked_of(edits):
        question = text + short
        similar = vectors @ embedder.question(question)
        best = int(np.argmax(similar))
        cosines[key] = float(similar[best])
        body = {"max_tokens": TOKENS, "user": "facts"}
        for way in ("never", "again"):
            wanted[f"{way} {key}"] = {**body, "messages": user(question)}
        wanted[f"always {key}"] = {**body, "messages": user(quoted([facts[best]], INSTRUCTION) + question)}
        for way in confirmed:
            wanted[f"{way} {key}"] = {**body, "messages": user(question), "policy": CONFIRMED[way]}
    return wanted, cosines


def scored(
    edits: Sequence[Edit], texts: Mapping[str, str], cosines: Mapping[str, float], confirmed: Sequence[str]
) -> dict[str, Any]:
    """Return the share of right, or unchanged, answers by way and kind, with Wilson's interval."""
    ways: dict[str, Any] = {way: lambda key, way=way: texts[f"{way} {key}"] for way in ("never", "again", "always")}
    for limit in THRESHOLDS:
        ways[f"cosine over {limit:g}"] = lambda key, limit=limit: texts[
            f"{'always' if cosines[key] >= limit else 'never'} {key}"
        ]
    ways |= {way: lambda key, way=way: texts[f"{way} {key}"] for way in confirmed}
    found: dict[str, Any] = {}
    for way, answer in ways.items():
        right: dict[str, list[bool]] = {}
        for key, kind, _, wanted in asked_of(edits):
            said = plain(answer(key))
            same = said == plain(texts[f"never {key}"])
            right.setdefault(kind, []).append(any(plain(each) in said for each in wanted) if wanted else same)
        found[way] = {
            kind: {"n": len(each), "share": sum(each) / len(each), "interval": wilson(sum(each), len(each))}
            for kind, each in right.items()
        }
    return found


def used(edits: Sequence[Edit], answers: Mapping[str, Any], way: str) -> tuple[float, float]:
    """Return the share of questions that a way of `scr` puts a fact in front of, and of those that are about a fact the
    share that get theirs."""
    some, right = [], []
    for key, kind, *_ in asked_of(edits):
        found = answers[f"{way} {key}"]["waver"]["facts"]
        texts = [each["text"] for each in found["candidates"] if each["id"] in found["confirmed"]]
        some.append(bool(texts))
        if kind in CHANGED:
            right.append(edits[int(key.split()[0])].statement in texts)
    return float(np.mean(some)), float(np.mean(right))


def page(numbers: Mapping[str, Any]) -> list[str]:
    """Return the page of results."""
    shares = numbers["shares"]
    kinds = [kind for kind in (*CHANGED, *KEPT) if kind in shares["never"]]
    rows = [
        [way, *(report.percent(each[kind]["share"], each[kind]["interval"]) for kind in kinds)]
        for way, each in shares.items()
    ]
    return [
        "# Facts that changed",
        f"{numbers['edits']} counterfactual facts in one memory, asked of {numbers['model']} "
        f"({numbers['settings']['dtype']}, greedy, {TOKENS} tokens), with Wilson's 95 % interval. `edit`, `rephrased` "
        "and `hop` (what follows from a fact) are right where the answer contains the new value; `same subject` and "
        "`other` where it is, in words, the answer that the model gives without facts. `again` is that model asked a "
        f"second time. `scr` looks at {CANDIDATES} candidates.",
        report.table(["way", *kinds], rows),
        f"Questions that got a fact, and of those about one ({report.percent(numbers['needed'])}) the share that got "
        "theirs: "
        + ", ".join(
            f"{report.percent(some)} and {report.percent(right)} by `{way}`"
            for way, (some, right) in numbers["used"].items()
        )
        + ".",
    ]


@app.command()
def main(
    context: typer.Context,
    model: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The model that is asked.")],
    facts: Annotated[str, typer.Option("--set", help="known: of the world as it is; bundled: of the bundled one.")] = (
        "known"
    ),
    edits: Annotated[int, typer.Option(min=1, max=47, help="Facts; there are 20 known ones.")] = 20,
    confirm: Annotated[str, typer.Option(help="How `scr` asks, separated by commas.")] = (
        "listwise,pointwise,probability"
    ),
    dtype: Annotated[str, typer.Option(help="Of the weights.")] = "bfloat16",
    seed: Annotated[int, typer.Option(help="Seed of the facts of the bundled world.")] = 1,
    work: Annotated[Path, typer.Option(help="Folder of what is done already; a stopped run goes on.")] = WORK,
    out: report.Out = report.RESULTS,
) -> None:
    """Measure `scr` on counterfactual facts, against always quoting the nearest one, a threshold, and none.

    Writes facts_SET.json and .md. A model of half a billion parameters takes about a quarter of an hour of one core.
    """
    settings = {key: value for key, value in context.params.items() if key not in ("work", "facts")}
    settings |= {"model": model.name, "set": facts}
    conditions = report.conditions("facts", settings)
    job.claim(work, {"model": str(model), "set": facts, "edits": edits, "dtype": dtype, "seed": seed})
    chosen = known()[:edits] if facts == "known" else of_the_world(edits, seed)
    confirmed = [way for way in CONFIRMED if way.removeprefix("scr, ") in confirm.split(",")]
    wanted, cosines = bodies(chosen, Embedder(DEFAULT_EMBEDDER), SHORT if facts == "known" else "", confirmed)
    asked = Asked(work / "answers.jsonl")
    if left := asked.left(wanted):
        with served(engine(model, dtype)) as http, report.progress() as bar:
            told = [{"text": each.statement} for each in chosen]
            http.post("/v1/facts", json={"facts": told, "user": "facts"}).raise_for_status()
            task = bar.add_task("requests", total=len(wanted), completed=len(wanted) - len(left))
            asked.ask(http, wanted, lambda: bar.advance(task))
    answers = asked.answers
    numbers = {
        "model": model.name,
        "edits": len(chosen),
        "shares": scored(chosen, {key: each["text"] for key, each in answers.items()}, cosines, confirmed),
        "used": {way: used(chosen, asked.answers, way) for way in confirmed},
        "needed": float(np.mean([kind in CHANGED for _, kind, *_ in asked_of(chosen)])),
    }
    found = conditions | numbers
    report.write(out, f"facts_{facts}", found, page(found))


if __name__ == "__main__":
    app()
