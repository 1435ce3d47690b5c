"""Choose the comparison that the page opens with, and record it: the cheapest question that the small model gets wrong
and `frugal` does not; and questions that suit the bundled pair."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from waver import __version__
from waver.benchmarks import report
from waver.training.pair.world import Item, draw, score_text

WAYS = {"small alone": "small", "frugal": "waver/frugal", "large alone": "large"}
STEPS = (4, 7)
"""Operations in the sums: long enough to go wrong, short enough to read."""

app = report.command()


@dataclass(frozen=True)
class Recorded:
    """One way's answer to a question."""

    way: str
    right: bool
    body: dict[str, Any]
    seconds: float

    @property
    def cost(self) -> float:
        return float(self.body["waver"]["cost"]["full"])

    def as_column(self) -> dict[str, Any]:
        """Return it as the page shows it."""
        (choice,) = self.body["choices"]
        listed = choice["logprobs"]["content"]
        found = dict(self.body["waver"])
        trace = found.pop("trace")
        for token, entry in zip(trace, listed, strict=False):
            token["alternatives"] = [
                {"token": each["token"], "logprob": round(each["logprob"], 4)} for each in entry["top_logprobs"]
            ]
        column = {"name": self.way, "right": self.right, "text": choice["message"]["content"], "trace": trace}
        return column | {"report": found, "seconds": round(self.seconds, 3), "reason": choice["finish_reason"]}


def ask(client: httpx.Client, way: str, item: Item) -> Recorded:
    body = {
        "model": WAYS[way],
        "messages": [{"role": "user", "content": item.prompt}],
        "temperature": 0,
        "max_tokens": 160,
        "trace": True,
        "logprobs": True,
        "top_logprobs": 4,
    }
    began = time.perf_counter()
    response = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    took = time.perf_counter() - began
    text = response["choices"][0]["message"]["content"]
    return Recorded(way, score_text(item.task, item.prompt, item.answer, text), response, took)


def rescues(client: httpx.Client, items: Sequence[Item]) -> list[tuple[Item, list[Recorded]]]:
    """Return the questions that only the small model alone gets wrong, the cheapest first."""
    found = []
    for item in items:
        small = ask(client, "small alone", item)
        if small.right:
            continue
        answers = [small, ask(client, "frugal", item), ask(client, "large alone", item)]
        if [each.right for each in answers] == [False, True, True]:
            found.append((item, answers))
    return sorted(found, key=lambda each: each[1][1].cost)


@app.command()
def main(
    url: Annotated[str, typer.Option(help="A server of the bundled pair, as `waver serve` starts it.")] = (
        "http://127.0.0.1:8000"
    ),
    out: Annotated[Path, typer.Option(help="The file.")] = Path("server/static/examples.json"),
    n: Annotated[int, typer.Option(min=1, help="Sums to choose from.")] = 60,
    seed: report.Seed = 31,
) -> None:
    """Choose and record the example of the page. Takes a minute or two."""
    sums = draw("arithmetic", seed, n, steps=STEPS)
    others = [*draw("frequent_facts", seed, 2), *draw("rare_facts", seed, 1)]
    with httpx.Client(base_url=url, timeout=120) as client:
        ask(client, "large alone", sums[0])  # so that its steps have been measured
        found = rescues(client, sums)
        if not found:
            raise typer.Exit(1)
        item, _ = found[0]
        columns = [ask(client, way, item).as_column() for way in WAYS]
    chosen = f"the cheapest of {len(found)} rescues in {n} sums"
    example = {
        "question": item.prompt,
        "expected": item.answer,
        "recorded": f"Waver {__version__}, {datetime.now(UTC):%Y-%m-%d}; {chosen}",
        "columns": columns,
    }
    questions = [each.prompt for each in (item, *(each for each, _ in found[1:3]), *others)]
    written = json.dumps({"example": example, "questions": questions})
    rounded = json.loads(written, parse_float=lambda text: round(float(text), 5))
    out.write_text(json.dumps(rounded, ensure_ascii=False, separators=(",", ":")) + "\n")
    report.console.print(f"{len(found)} rescues in {n} sums; {item.prompt} = {item.answer}; written to {out}")


if __name__ == "__main__":
    app()
