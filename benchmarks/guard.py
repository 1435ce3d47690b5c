"""Measure the gate of `safeharbor` on labelled requests: which pass at once, and which are put before the engine.

The requests are those of the starter set: forbidden ones of ten families, harmless ones that look alike, harmless ones
of all kinds, and four families that no rule is about. A guard is grown from a part of the known ones, its thresholds
are set by a second part, and all is reported on a third, and on the unseen families. What the engine then makes of a
request that is put before it is not measured here: that takes a language model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import typer

from waver.benchmarks import report
from waver.engines.projector import Projector
from waver.policies.guard import gate
from waver.policies.guard.building import Example, built, harms, read_examples, read_rules
from waver.policies.guard.memory import Floats, Guard
from waver.resources import STARTER_GUARD
from waver.retrieval.config import DEFAULT_EMBEDDER
from waver.retrieval.embedder import Embedder
from waver.stats import wilson
from waver.training.guard.fit import fit
from waver.training.guard.options import GuardFit

TESTED, HELD_OUT = 0.4, 0.25
"""Share of the known requests that is reported on, and share of the others that sets the thresholds."""
KINDS = ("harmless", "harmless, alike", "forbidden", "forbidden, unseen family", "harmless, unseen family")
WAYS = ("both", "S_harm alone", "S_benign alone")
TIMED = 200
"""Requests whose time on the fast path is taken."""

app = report.command()


def kind(row: Mapping[str, Any]) -> str:
    """Return the kind of a labelled request."""
    if row.get("unseen"):
        return KINDS[3] if row["label"] == "harmful" else KINDS[4]
    if row["label"] == "harmful":
        return KINDS[2]
    return KINDS[1] if row.get("neighbour") else KINDS[0]


def passes(way: str, guard: Guard, harmful: float, benign: float) -> bool:
    """Return whether a request passes at once by both conditions, or by one of them."""
    low, high = guard.record.low, guard.record.high
    match way:
        case "both":
            return gate.verdict(harmful, benign, low, high)
        case "S_harm alone":
            return harmful < low
        case _:
            return benign > high


def known_and_tested(seed: int) -> tuple[list[Example], list[dict[str, Any]]]:
    """Return the requests of the starter set that a guard is grown from, and the labelled rows of those it is tested
    on: a share of the known ones, and all of unseen families."""
    file = STARTER_GUARD / "examples.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    unseen = np.array([bool(row.get("unseen")) for row in rows])
    out = unseen | (np.random.default_rng(seed).random(len(rows)) < TESTED)
    known = [each for each, tested in zip(read_examples(file), out, strict=True) if not tested]
    return known, [row for row, tested in zip(rows, out, strict=True) if tested]


def new_guard(embedder: Embedder, known: Sequence[Example], seed: int) -> Guard:
    """Grow a guard from the starter set's rules and some of its requests."""

    def fitted(vectors: Floats, harmful: Floats) -> Projector:
        return fit(torch.from_numpy(vectors), torch.from_numpy(harmful), GuardFit(seed=seed))

    return built(embedder, read_rules(STARTER_GUARD / "starter.jsonl"), known, fitted, 0.6, HELD_OUT, seed)


def measure(seed: int) -> dict[str, Any]:
    """Grow a guard from the requests that are not tested, and return shares and times."""
    embedder = Embedder(DEFAULT_EMBEDDER)
    known, tested = known_and_tested(seed)
    guard = new_guard(embedder, known, seed)
    kinds = [kind(row) for row in tested]
    vectors = embedder.embed([row["text"] for row in tested])
    scores = list(zip(harms(guard, vectors), gate.similarity(vectors, guard.vectors["benign"]), strict=True))
    found: dict[str, Any] = {way: {} for way in WAYS}
    for way in WAYS:
        for name in KINDS:
            places = [i for i, k in enumerate(kinds) if k == name]
            passed = sum(passes(way, guard, *scores[i]) for i in places)
            found[way][name] = {
                "n": len(places),
                "passed": passed / len(places),
                "interval": wilson(passed, len(places)),
            }
    return {
        "shares": found,
        "low": guard.record.low,
        "high": guard.record.high,
        "known": len(known),
        "clusters": len(guard.vectors["centres"]),
        "milliseconds": latency(guard, embedder, [row["text"] for row in tested][:TIMED]),
    }


def latency(guard: Guard, embedder: Embedder, texts: Sequence[str]) -> dict[str, float]:
    """Return the time of the fast path of a request on one core, in milliseconds: its vector and both scores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken = []
    for text in texts:
        began = time.perf_counter()
        guard.scores(embedder.embed([text]))
        taken.append(1000 * (time.perf_counter() - began))
    torch.set_num_threads(threads)
    return {"median": float(np.median(taken)), "p95": float(np.quantile(taken, 0.95))}


def page(numbers: Mapping[str, Any]) -> list[str]:
    """Return the page of results."""
    rows = [
        [name, str(numbers["shares"]["both"][name]["n"]),
         *(report.percent(numbers["shares"][way][name]["passed"], numbers["shares"][way][name]["interval"])
           for way in WAYS)]
        for name in KINDS
    ]  # fmt: skip
    times = numbers["milliseconds"]
    return [
        "# The gate of a guard",
        "Share of requests that pass at once; the others are put before the engine with the nearest rules. The guard "
        f"was grown from {numbers['known']} requests of the starter set ({numbers['clusters']} clusters of rules), and "
        f"its thresholds (S_harm below {numbers['low']:.3f}, S_benign above {numbers['high']:.3f}) were set by a part "
        "of these; what is reported on was not among them. Forbidden requests should not pass, harmless ones should.",
        report.table(["requests", "n", *WAYS], rows),
        f"The fast path takes {times['median']:.1f} ms a request on one core (95 %: {times['p95']:.1f} ms), the "
        "request's vector included.",
    ]


@app.command()
def main(
    context: typer.Context,
    seed: Annotated[int, typer.Option(help="Seed of the split and of the projector.")] = 1,
    out: report.Out = report.RESULTS,
) -> None:
    """Measure the gate of `safeharbor` on the starter set's requests, against single thresholds.

    Writes guard.json and .md. Half a minute on one core.
    """
    settings = dict(context.params)
    conditions = report.conditions("guard", settings)
    found = conditions | measure(seed)
    report.write(out, "guard", found, page(found))


if __name__ == "__main__":
    app()
