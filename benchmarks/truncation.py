"""Compare truncations: accuracy, kept tokens and diversity at five temperatures, on fresh sums."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from waver.benchmarks import report
from waver.benchmarks.answers import (
    AT_ONCE,
    LARGE,
    MAX_TOKENS,
    SMALL,
    Answer,
    PairInterface,
    Setup,
    ask_all,
    closed_book,
    reach,
)
from waver.benchmarks.stats import Array, percentiles, resamples
from waver.stats import wilson
from waver.training.pair.world import Item, draw, score_text

TASK = "arithmetic"
TEMPERATURES = (0.7, 1.0, 1.5, 2.0, 2.5)
GREEDY, OURS = "greedy", "top_w"
METHODS: dict[str, tuple[Mapping[str, Any], ...]] = {
    "no truncation": (),
    "top_p 0.9": ({"name": "top_p", "p": 0.9},),
    "min_p 0.1": ({"name": "min_p", "p": 0.1},),
    "typical 0.95": ({"name": "typical", "p": 0.95},),
    "eta 0.0002": ({"name": "eta", "epsilon": 2e-4},),
    "epsilon 0.0003": ({"name": "epsilon", "epsilon": 3e-4},),
    "top_n_sigma 1": ({"name": "top_n_sigma", "n": 1.0},),
    "top_h 0.4, running": ({"name": "top_h", "alpha": 0.4},),
    "top_h 0.4, renormalised": ({"name": "top_h", "alpha": 0.4, "form": "renormalised"},),
    OURS: ({"name": "top_w"},),
    "top_w, warm_mass 0.05": ({"name": "top_w", "warm_mass": 0.05},),
    "top_w, k-NN": ({"name": "top_w", "potential": "knn"},),
    "top_w, mass_weight 5": ({"name": "top_w", "mass_weight": 5.0},),
}
"""Compared settings, at each method's usual values; the last three let Top-W's geometry act, or make it keep more."""
SAMPLES = 8
"""Answers to one question, of which the different ones are counted."""

app = report.command()


@dataclass(frozen=True, eq=False)
class Cell:
    """One method at one temperature. Arrays have one entry a question."""

    right: Array
    texts: Array
    """Different texts among `SAMPLES`, of the questions that were asked so often."""
    results: Array
    """Different last words among them: for a sum, different results."""
    kept: float
    """Tokens left to draw from, a mean over draws."""
    most: float
    crop_entropy: float
    length: float


def read(items: Sequence[Item], answers: Sequence[Answer], repeated: int) -> Cell:
    """Score the first answer to every item, and compare the `SAMPLES` answers to each of the first `repeated`."""
    first, more = answers[: len(items)], answers[len(items) :]
    told = [[first[i], *more[i::repeated]] for i in range(repeated)]
    cut = [(a.truncation, a.length) for a in answers if a.truncation]
    weights = [length for _, length in cut]

    def mean(key: str) -> float:
        return float(np.average([t[key] for t, _ in cut], weights=weights)) if cut else float("nan")

    return Cell(
        np.array([score_text(TASK, i.prompt, i.answer, a.text) for i, a in zip(items, first, strict=True)], float),
        np.array([len({a.text for a in same}) for same in told], float),
        np.array([len({(a.text.split() or [""])[-1] for a in same}) for same in told], float),
        mean("kept_mean"),
        max((t["kept_max"] for t, _ in cut), default=float("nan")),
        mean("crop_entropy_mean"),
        float(np.mean([a.length for a in first])),
    )


async def cells(
    asked: PairInterface, model: str, items: Sequence[Item], settings: Mapping[str, Any], advance: Callable[[], None]
) -> dict[str, dict[float, Cell]]:
    """Return every method at every temperature; greedy decoding has none, and is measured once."""
    repeated = min(settings["repeated"], len(items))
    questions = closed_book([*items, *(list(items[:repeated]) * (SAMPLES - 1))])

    async def one(policy: tuple[Mapping[str, Any], ...], temperature: float) -> Cell:
        how = Setup(model, policy, temperature, settings["max_tokens"])
        answers = await ask_all(asked, questions, how, settings["at_once"], lambda: None)
        advance()
        return read(items, answers, repeated)

    greedy = await one((), 0.0)
    found: dict[str, dict[float, Cell]] = {GREEDY: dict.fromkeys(TEMPERATURES, greedy)}
    for (name, policy), temperature in product(METHODS.items(), TEMPERATURES):
        found.setdefault(name, {})[temperature] = await one(policy, temperature)
    return found


def numbers(found: Mapping[str, Mapping[float, Cell]]) -> list[dict[str, Any]]:
    """Return a row for each cell, with intervals; `over` is its accuracy less that of `top_w`, from a paired
    bootstrap."""
    rows = []
    for name, by_temperature in found.items():
        for temperature, cell in by_temperature.items():
            n = len(cell.right)
            ours = found[OURS][temperature]
            gap = cell.right - ours.right
            rows.append(
                {
                    "method": name,
                    "temperature": temperature,
                    "accuracy": float(cell.right.mean()),
                    "accuracy_interval": wilson(int(cell.right.sum()), n),
                    "over": float(gap.mean()),
                    "over_interval": percentiles(resamples(n) @ gap),
                    "texts": float(cell.texts.mean()),
                    "results": float(cell.results.mean()),
                    "kept": cell.kept,
                    "kept_max": cell.most,
                    "crop_entropy": cell.crop_entropy,
                    "tokens": cell.length,
                }
            )
    return rows


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each temperature what `top_w` is more accurate than, what is more accurate, and of what cannot be told
    from it, what it is only sharper than (it draws from less entropy) and what it is not sharper than."""
    out = []
    for temperature in dict.fromkeys(row["temperature"] for row in rows):
        here = [row for row in rows if row["temperature"] == temperature]
        ours = next(row for row in here if row["method"] == OURS)
        rivals = [row for row in here if not row["method"].startswith(OURS)]
        same = [row for row in rivals if row["over_interval"][0] <= 0 <= row["over_interval"][1]]
        out.append(
            {
                "temperature": temperature,
                "above": [row["method"] for row in rivals if row["over_interval"][1] < 0],
                "sharper": [row["method"] for row in same if _entropy(row) > ours["crop_entropy"]],
                "no_sharper": [row["method"] for row in same if _entropy(row) <= ours["crop_entropy"]],
                "below": [row["method"] for row in rivals if row["over_interval"][0] > 0],
            }
        )
    return out


def _entropy(row: Mapping[str, Any]) -> float:
    """Return the entropy of what a method draws from: greedy decoding from nothing, sampling without truncation from
    everything."""
    return {GREEDY: 0.0, "no truncation": math.inf}.get(row["method"], row["crop_entropy"])


async def measure(settings: Mapping[str, Any], bar: Progress) -> dict[str, Any]:
    items = draw(TASK, settings["seed"], settings["n"])
    out = {}
    async with reach(settings["models"], settings["base_url"], settings["at_once"]) as asked:
        for model in (LARGE, SMALL):
            task = bar.add_task(model, total=1 + len(METHODS) * len(TEMPERATURES))
            rows = numbers(await cells(asked, model, items, settings, lambda t=task: bar.advance(t)))  # type: ignore[misc]
            out[model] = {"cells": rows, "verdicts": verdicts(rows)}
    return out


def page(found: Mapping[str, Any]) -> list[str]:
    settings = found["settings"]
    repeated = min(settings["repeated"], settings["n"])
    parts = [
        "# Truncations at five temperatures",
        f'{settings["n"]} fresh sums in chains of 1 to 8 steps (`draw("{TASK}", seed={settings["seed"]}, '
        f"n={settings['n']})`), one answer each; the first {repeated} are answered {SAMPLES} times to count different "
        "texts and different results. In brackets: 95 % intervals (Wilson); differences are judged by a paired "
        "bootstrap over the questions.",
        "![Accuracy and different texts against temperature](truncation.png)",
    ]
    for model, measured in found["models"].items():
        rows = measured["cells"]
        head = (
            "temperature",
            "more accurate than",
            "alike, sharper than",
            "alike, no sharper than",
            "less accurate than",
        )
        heads = ("", *(f"T = {temperature:g}" for temperature in TEMPERATURES))
        parts += [
            f"## The {model} model",
            _plainly(rows),
            f"What `{OURS}` is, at its defaults (*alike*: accuracies that cannot be told apart):",
            report.table(head, [_verdict(verdict) for verdict in measured["verdicts"]]),
            "Accuracy:",
            report.table(heads, _by_method(rows, lambda r: report.percent(r["accuracy"], r["accuracy_interval"]))),
            "Tokens left to draw from and their entropy in nats, both means over all draws:",
            report.table(heads, _by_method(rows, lambda r: _two(r["kept"], 2, r["crop_entropy"], 3))),
            f"Different texts, and different results, among {SAMPLES} answers to one question:",
            report.table(heads, _by_method(rows, lambda r: _two(r["texts"], 2, r["results"], 2))),
        ]
    return parts


def _plainly(rows: Sequence[Mapping[str, Any]]) -> str:
    """Describe the result of `top_w` in words."""
    ours = [row for row in rows if row["method"] == OURS]
    greedy = [row for row in rows if row["method"] == GREEDY]
    ahead = [f"{row['temperature']:g}" for row in greedy if row["over_interval"][1] < 0]
    gaps = [0.0 - 100 * row["over"] for row in greedy]
    kept, texts = [row["kept"] for row in ours], [row["texts"] for row in ours]
    return (
        f"`{OURS}` is more accurate than greedy decoding at {', '.join(ahead) or 'none of the temperatures'} (from "
        f"{min(gaps):+.1f} to {max(gaps):+.1f} points). It draws from {min(kept):.3f} to {max(kept):.3f} tokens on "
        f"average, and says {min(texts):.2f} to {max(texts):.2f} different texts of {SAMPLES}"
        + ("." if ahead else ": what it wins over other truncations, it wins by being close to greedy.")
    )


def _verdict(verdict: Mapping[str, Any]) -> list[str]:
    keys = ("above", "sharper", "no_sharper", "below")
    return [f"{verdict['temperature']:g}", *("; ".join(verdict[key]) or "–" for key in keys)]


def _by_method(
    rows: Sequence[Mapping[str, Any]], shown: Callable[[Mapping[str, Any]], str]
) -> Iterator[tuple[str, ...]]:
    for method in dict.fromkeys(row["method"] for row in rows):
        yield (method, *(shown(row) for row in rows if row["method"] == method))


def _two(first: float, digits: int, second: float, more: int) -> str:
    return "–" if math.isnan(first) else f"{first:.{digits}f}, {second:.{more}f}"


@app.command()
def main(
    context: typer.Context,
    n: Annotated[int, typer.Option(min=1, help="Sums, each answered once by every method.")] = 300,
    repeated: Annotated[int, typer.Option(min=1, help="Sums that are answered 8 times.")] = 50,
    seed: report.Seed = 40260,
    max_tokens: report.MaxTokens = MAX_TOKENS,
    at_once: Annotated[int, typer.Option(min=1, help="Questions in the air at a time.")] = AT_ONCE,
    models: report.Models = None,
    base_url: Annotated[str | None, typer.Option(help="Ask a running server instead, with /v1.")] = None,
    out: report.Out = report.RESULTS,
) -> None:
    """Compare Top-W with its rivals on fresh sums: accuracy, kept tokens, entropy and diversity at five temperatures.

    Writes truncation.json, .md, .png and .svg. With the bundled pair about 40 minutes of one core.
    """
    report.need_extra()
    from waver.benchmarks.figures import truncation as plot

    settings = dict(context.params)
    conditions = report.conditions("truncation", settings)
    with report.progress() as bar:
        found = conditions | {"models": asyncio.run(measure(settings, bar))}
    plot(found, out)
    report.write(out, "truncation", found, page(found))


if __name__ == "__main__":
    app()
