"""Measure the bundled pair: accuracy by task, the entropy of wrong answers, and the three ways to answer a sum."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    InProcess,
    PairInterface,
    Prompt,
    Setup,
    ask_all,
    load_pair,
)
from waver.resources import MODELS
from waver.stats import wilson
from waver.training.pair.data import STRATEGIES
from waver.training.pair.world import Item, draw, score_text

LENGTHS = range(1, 9)
TWICE = 2.0
"""Mean entropy of the small model's wrong answers, against its right ones: at least so many times."""

app = report.command()


@dataclass(frozen=True)
class Cell:
    """One kind of question, and the accuracies each model has to lie between."""

    name: str
    task: str
    small: tuple[float, float]
    large: tuple[float, float]
    steps: int | None = None
    open_book: bool = False

    def draw(self, seed: int, n: int) -> list[Item]:
        return draw(self.task, seed, n) if self.steps is None else draw(self.task, seed, n, steps=self.steps)

    def questions(self, items: Sequence[Item]) -> list[Prompt]:
        return [Prompt(item.open_book if self.open_book else item.prompt) for item in items]


CHAINS = "arithmetic, chains of 1 to 8 steps"
CELLS = (
    Cell("arithmetic, 1 step", "arithmetic", (0.95, 1.0), (0.98, 1.0), steps=1),
    Cell(CHAINS, "arithmetic", (0.55, 0.80), (0.95, 1.0)),
    Cell("frequent facts, closed book", "frequent_facts", (0.95, 1.0), (0.98, 1.0)),
    Cell("rare facts, closed book", "rare_facts", (0.0, 0.40), (0.85, 1.0)),
    Cell("tail facts, closed book", "tail_facts", (0.0, 0.10), (0.0, 0.15)),
    Cell("tail facts, with the passage", "tail_facts", (0.80, 1.0), (0.95, 1.0), open_book=True),
)


def score(items: Sequence[Item], answers: Sequence[Answer]) -> list[bool]:
    return [score_text(i.task, i.prompt, i.answer, a.text) for i, a in zip(items, answers, strict=True)]


def contrast(right: Sequence[bool], answers: Sequence[Answer]) -> dict[str, float]:
    """Return mean over wrong and over right answers of the mean next-token entropy (nats), and their ratio; NaN where
    there are none."""
    means = {
        name: [a.mean_entropy for a, ok in zip(answers, right, strict=True) if ok == kind]
        for name, kind in (("wrong", False), ("right", True))
    }
    found = {name: float(np.mean(values)) if values else math.nan for name, values in means.items()}
    return found | {"ratio": found["wrong"] / found["right"] if found["right"] else math.nan}


async def cells(asked: PairInterface, how: Setup, seed: int, n: int, bar: Progress) -> dict[str, Any]:
    """Return accuracy and entropies of one model in every cell, and its entropies over all cells."""
    found: dict[str, Any] = {}
    all_right: list[bool] = []
    all_answers: list[Answer] = []
    task = bar.add_task(f"{how.engine}: tasks", total=n * len(CELLS))
    for cell in CELLS:
        items = cell.draw(seed, n)
        answers = await ask_all(asked, cell.questions(items), how, AT_ONCE, lambda: bar.advance(task))
        right = score(items, answers)
        low, high = getattr(cell, how.engine)
        accuracy = sum(right) / n
        found[cell.name] = {
            "accuracy": accuracy,
            "interval": wilson(sum(right), n),
            "wanted": (low, high),
            "met": low <= accuracy <= high,
            "tokens": float(np.mean([a.length for a in answers])),
            "entropy": contrast(right, answers),
        }
        all_right += right
        all_answers += answers
    return {"cells": found, "entropy": contrast(all_right, all_answers)}


async def strategies(asked: PairInterface, how: Setup, seed: int, n: int, bar: Progress) -> dict[str, Any]:
    """Return accuracy and mean tokens of one model by the words its answer opens with, and by the length of the
    chain."""
    found: dict[str, Any] = {}
    task = bar.add_task(f"{how.engine}: ways to answer", total=n * len(LENGTHS) * len(STRATEGIES))
    for name, opening in STRATEGIES.items():
        found[name] = {}
        for steps in LENGTHS:
            items = draw("arithmetic", seed, n, steps=steps)
            questions = [Prompt(item.prompt, opening) for item in items]
            answers = await ask_all(asked, questions, how, AT_ONCE, lambda: bar.advance(task))
            right = sum(score(items, answers))
            tokens = float(np.mean([a.length for a in answers]))
            found[name][steps] = {"accuracy": right / n, "interval": wilson(right, n), "tokens": tokens}
    return found


async def measure(settings: Mapping[str, Any], bar: Progress) -> dict[str, Any]:
    seed, limit = settings["seed"], settings["max_tokens"]
    async with load_pair(settings["models"]) as engines:
        asked = InProcess(engines)
        folder = settings["models"] or MODELS
        models = {
            name: {"parameters": engine.parameters, "weights": report.weights(folder / name)}
            | await cells(asked, Setup(name, max_tokens=limit), seed, settings["n"], bar)
            for name, engine in engines.items()
        }
        ways = await strategies(asked, Setup(LARGE, max_tokens=limit), seed, settings["strategy_n"], bar)
        return {"models": models, "strategies": ways}


def page(numbers: Mapping[str, Any]) -> list[str]:
    settings, models = numbers["settings"], numbers["models"]
    small = models[SMALL]
    ratio = small["entropy"]["ratio"]
    return [
        "# What the bundled pair knows",
        f"Greedy, {settings['n']} questions a row, drawn with seed {settings['seed']}; in brackets 95 % intervals "
        f"(Wilson). Small: {models[SMALL]['parameters']:,} parameters; large: {models[LARGE]['parameters']:,}.",
        report.table(
            ("task", *(word for name in models for word in (name, "wanted", "tokens"))),
            [
                [cell.name, *(word for name in models for word in _cell(models[name]["cells"][cell.name]))]
                for cell in CELLS
            ],
        ),
        _unmet(models),
        "Mean next-token entropy of the small model's wrong answers against its right ones (nats; the mean over "
        f"answers of each answer's mean). At least {TWICE:g} times, over all rows together: "
        f"{report.verdict(None if math.isnan(ratio) else ratio >= TWICE)}.",
        report.table(
            ("task", "wrong", "right", "ratio"),
            [
                *([cell.name, *_entropy(small["cells"][cell.name]["entropy"])] for cell in CELLS),
                ["all", *_entropy(small["entropy"])],
            ],
        ),
        "## Three ways to answer a sum",
        f"The large model, with each way's words as the opening of its answer ({settings['strategy_n']} sums a cell): "
        "accuracy, and the mean number of tokens after the opening.",
        report.table(
            ("steps", *STRATEGIES),
            [
                [
                    str(steps),
                    *(
                        f"{report.percent(way[steps]['accuracy'])}, {way[steps]['tokens']:.0f} tokens"
                        for way in numbers["strategies"].values()
                    ),
                ]
                for steps in LENGTHS
            ],
        ),
    ]


def _cell(cell: Mapping[str, Any]) -> list[str]:
    low, high = cell["wanted"]
    wanted = f"{100 * low:.0f} to {100 * high:.0f} %" if low and high < 1 else f"≥ {100 * low:.0f} %"
    wanted = wanted if low else f"≤ {100 * high:.0f} %"
    missed = "" if cell["met"] else " **(not met)**"
    return [report.percent(cell["accuracy"], cell["interval"]), wanted + missed, f"{cell['tokens']:.0f}"]


def _unmet(models: Mapping[str, Any]) -> str:
    missed = [
        f"{cell} ({name})" for name in models for cell, found in models[name]["cells"].items() if not found["met"]
    ]
    return f"Not met: {', '.join(missed)}." if missed else "Every row lies where it is wanted."


def _entropy(found: Mapping[str, float]) -> list[str]:
    return [
        *("–" if math.isnan(found[kind]) else f"{found[kind]:.4f}" for kind in ("wrong", "right")),
        "–" if math.isnan(found["ratio"]) else f"{found['ratio']:.1f}",
    ]


@app.command()
def main(
    context: typer.Context,
    seed: report.Seed = 10260,
    n: Annotated[int, typer.Option(min=1, help="Questions of each task.")] = 500,
    strategy_n: Annotated[int, typer.Option(min=1, help="Sums of each length for each way to answer.")] = 100,
    max_tokens: report.MaxTokens = MAX_TOKENS,
    models: report.Models = None,
    out: report.Out = report.RESULTS,
) -> None:
    """Measure the bundled pair: accuracy by task, entropy of wrong and right answers, three ways to answer.

    Writes bundled.json and .md. About 6 minutes on two cores.
    """
    report.need_extra()
    settings = dict(context.params)
    conditions = report.conditions("bundled", settings)
    with report.progress() as bar:
        found = conditions | asyncio.run(measure(settings, bar))
    report.write(out, "bundled", found, page(found))


if __name__ == "__main__":
    app()
