"""Train recipes on real text: the bundled small model, on sums that it often gets wrong.

What `waver train rl` does, one recipe after the other, all from the same weights, on the same questions, for as many
steps. Every checkpoint answers held-out sums greedily. The model that is best on these takes the small one's place in
the pair, to see whether `ead` gains (`benchmarks/rl_frontier.py`). A case that has been run is not run again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from waver.benchmarks import report, rl_frontier
from waver.benchmarks.answers import AT_ONCE, LARGE, SMALL, InProcess, Setup, ask_all, closed_book
from waver.benchmarks.stats import Array, percentiles, resamples
from waver.engines import TransformersConfig, load_engine
from waver.job import read_lines
from waver.resources import MODELS
from waver.stats import wilson
from waver.training.options import RlRun
from waver.training.pair.world import Item, draw, score_text
from waver.training.rl.run import train

TASK = "arithmetic"


@dataclass(frozen=True)
class Case:
    """One recipe, and why it is tried. `seed` is added to the run's own."""

    why: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


def on(base: str, method: str, **parameters: Any) -> dict[str, Any]:
    return {"base": base, "methods": [{"name": method, **parameters}]}


PLAIN = "grpo"
CASES: dict[str, Case] = {
    PLAIN: Case("the base"),
    "earl": Case("most tokens of a sum are forced", on("grpo", "earl")),
    "attention_entropy": Case("the toy's policy has no attention", on("grpo", "attention_entropy")),
    "siren": Case("to keep entropy where it is highest", on("grpo", "siren", coefficient=0.05)),
    "aepo": Case("to hold entropy at a number", on("grpo", "aepo", alpha=0.5)),
    "ares": Case("answers differ in length, as the toy's do not", on("grpo", "ares", beta=0.0)),
    "clip_cov": Case("to keep entropy", on("grpo", "clip_cov", share=0.01, low=0.5)),
    "grpo, other questions": Case("how far two runs of the same lie apart", seed=1),
    "dapo": Case("a higher clip, and mixed groups only", {"base": "dapo"}),
}
"""In the order in which they run."""

app = report.command()


def planned(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, RlRun]:
    """Return the run of each case."""
    same = ("steps", "prompts", "group", "updates", "learning_rate", "length", "every")
    return {
        name: RlRun(
            model=str((settings["models"] or MODELS) / SMALL),
            recipe=dict(CASES[name].recipe),
            chain=settings["chain"],
            held_out=0,  # every checkpoint is judged below, by more questions
            keep=max(1, settings["steps"] // settings["every"]),
            seed=settings["run_seed"] + CASES[name].seed,
            **{key: settings[key] for key in same},
        )
        for name in names
    }


def place(work: Path, name: str) -> Path:
    return work / name.replace(",", "").replace(" ", "-")


def run_once(run: RlRun, out: Path) -> None:
    """Train, unless that has been done; a run that was stopped goes on. The minutes of the last stretch are kept."""
    done = out / "minutes.json"
    if done.exists():
        return
    began = time.monotonic()
    train(run, out)
    done.write_text(json.dumps((time.monotonic() - began) / 60))


def checkpoints(run: RlRun, out: Path) -> dict[int, Path]:
    """Return models by the steps they have taken; 0 is the one that training starts from."""
    taken = range(run.every, run.steps + 1, run.every)
    return {0: Path(run.model)} | {step: out / f"checkpoint-{step * run.updates}" for step in taken}


async def right(model: Path, items: Sequence[Item], length: int, temperature: float = 0.0) -> Array:
    """Return which of the sums the model gets right, `[n]`, 0 or 1."""
    engine = await asyncio.to_thread(load_engine, SMALL, TransformersConfig(model=str(model), max_sequences=AT_ONCE))
    try:
        asked = InProcess({SMALL: engine, LARGE: engine})  # of the pair, one is asked
        how = Setup(temperature=temperature, max_tokens=length)
        answers = await ask_all(asked, closed_book(items), how, AT_ONCE, lambda: None)
    finally:
        await engine.aclose()
    pairs = zip(items, answers, strict=True)
    return np.array([score_text(TASK, item.prompt, item.answer, answer.text) for item, answer in pairs], np.float64)


async def judged(run: RlRun, out: Path, held: Sequence[Item], test: Sequence[Item]) -> dict[str, Any]:
    """Judge a run: its curves, its checkpoints on `held`, and its last model on `test` (arrays `[n]`)."""
    lines = read_lines(out / "metrics.jsonl")
    models = checkpoints(run, out)
    curves = {
        key: [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        for key in ("reward", "entropy", "length")
    }
    return {
        "curves": curves,
        "held_out": [(step, float((await right(model, held, run.length)).mean())) for step, model in models.items()],
        "minutes": json.loads((out / "minutes.json").read_text()),
        "greedy": await right(out / "model", test, run.length),
        "sampled": await right(out / "model", test, run.length, temperature=1.0),
    }


def compare(values: Array, others: Array, weights: Array) -> dict[str, Any]:
    """Return accuracy with Wilson's interval, and the difference to others on the same questions with a bootstrap's."""
    differences = weights @ (values - others)
    return {
        "accuracy": float(values.mean()),
        "interval": wilson(int(values.sum()), len(values)),
        "difference": float((values - others).mean()),
        "difference_interval": percentiles(differences),
    }


def ends(curve: Sequence[tuple[int, float]], steps: int) -> tuple[float, float]:
    """Return the mean of a curve over the first and over the last tenth of the steps."""
    tenth = max(1, steps // 10)
    first = [value for step, value in curve if step <= tenth]
    last = [value for step, value in curve if step > steps - tenth]
    return float(np.mean(first)), float(np.mean(last))


def numbers(found: Mapping[str, Mapping[str, Any]], start: Mapping[str, Array], steps: int) -> dict[str, Any]:
    """Return every case beside plain GRPO, on the same questions."""
    weights = resamples(len(start["greedy"]))
    plain = found[PLAIN]
    rows = {}
    for name, case in found.items():
        rows[name] = {
            "why": CASES[name].why,
            "recipe": dict(CASES[name].recipe) or {"base": "grpo"},
            "curves": case["curves"],
            "held_out": case["held_out"],
            "minutes": case["minutes"],
            "reward": ends(case["curves"]["reward"], steps),
            "entropy": ends(case["curves"]["entropy"], steps),
            "greedy": compare(case["greedy"], plain["greedy"], weights),
            "sampled": compare(case["sampled"], plain["sampled"], weights),
        }
    untrained = {key: compare(values, plain[key], weights) for key, values in start.items()}
    best = max(rows, key=lambda name: rows[name]["held_out"][-1][1])
    return {"cases": rows, "untrained": untrained, "best": best}


def page(found: Mapping[str, Any]) -> list[str]:
    s, rows = found["settings"], found["cases"]
    low, high = s["chain"]
    start = found["untrained"]
    head = ("recipe", "why", "reward", "entropy, nats", "greedy", "to `grpo`, points", "sampled", "minutes")
    lines = [
        ("the model before", "", "", "", report.percent(*_accuracy(start["greedy"])), _points(start["greedy"]),
         report.percent(*_accuracy(start["sampled"])), ""),
    ]  # fmt: skip
    for name, row in rows.items():
        reward, entropy = ("{:.2f} → {:.2f}".format(*row[key]) for key in ("reward", "entropy"))
        lines.append(
            (f"`{name}`", row["why"], reward, entropy, report.percent(*_accuracy(row["greedy"])),
             _points(row["greedy"]) if name != PLAIN else "", report.percent(*_accuracy(row["sampled"])),
             f"{row['minutes']:.1f}")
        )  # fmt: skip
    return [
        "# Reinforcement learning on real text",
        f"`waver train rl` on the bundled small model: sums of {low} to {high} operations, {s['steps']} steps of "
        f"{s['prompts']} questions with {s['group']} answers each at temperature 1, {s['updates']} updates a step, "
        f"AdamW at {s['learning_rate']:g}, one CPU thread. A reward of 1 for a right sum, nothing for its form. "
        "Settings were found on other questions with plain `grpo` alone; what is not its own is the same for all.",
        "![Reward, held-out accuracy and entropy](rl_text.png)",
        report.table(head, lines),
        f"*Reward* and *entropy*: of the rows that were trained on, means of the first and the last tenth of the "
        f'steps. *Greedy* and *sampled* (temperature 1): {s["n"]} fresh sums (`draw("{TASK}", seed={s["seed"]}, '
        f"n={s['n']}, steps=({low}, {high}))`), with 95 % intervals (Wilson); *points*: the greedy difference to "
        "`grpo` on the same sums, with a paired bootstrap's interval. The intervals know of the questions, not of the "
        "luck of a run: the second run of `grpo` shows what that is worth. *Minutes*: with other work on the machine.",
        *_statements(found),
        *rl_frontier.page(found["frontier"], found["best"]),
    ]


def _statements(found: Mapping[str, Any]) -> list[str]:
    plain, before = found["cases"][PLAIN], found["untrained"]["greedy"]
    low, high = (-x for x in reversed(before["difference_interval"]))
    first, last = plain["reward"]
    other = [name for name, row in found["cases"].items() if row["greedy"]["difference_interval"][0] > 0]
    return [
        f"**`grpo`**: reward {first:.2f} → {last:.2f}; greedy accuracy "
        f"{report.points(-before['difference'], (low, high))} points over the model that it started from. Above "
        f"`grpo` by the questions' interval: {', '.join(f'`{name}`' for name in other) or 'none'}."
    ]


def _accuracy(row: Mapping[str, Any]) -> tuple[float, Sequence[float]]:
    return row["accuracy"], row["interval"]


def _points(row: Mapping[str, Any]) -> str:
    return report.points(row["difference"], row["difference_interval"])


async def measured(
    settings: Mapping[str, Any], runs: Mapping[str, RlRun], conditions: Mapping[str, Any], bar: Progress
) -> dict[str, Any]:
    """Return all numbers, once the runs are done."""
    work, chain, length = settings["work"], settings["chain"], settings["length"]
    held = draw(TASK, settings["held_out_seed"], settings["held_out_n"], steps=chain)
    test = draw(TASK, settings["seed"], settings["n"], steps=chain)
    task = bar.add_task("judging", total=len(runs))
    found = {}
    for name, run in runs.items():
        found[name] = await judged(run, place(work, name), held, test)
        bar.advance(task)
    model = Path(next(iter(runs.values())).model)
    start = {"greedy": await right(model, test, length), "sampled": await right(model, test, length, 1.0)}
    rows = numbers(found, start, settings["steps"])
    frontier = await rl_frontier.measure(settings, place(work, rows["best"]) / "model", bar)
    return {**conditions, **rows, "frontier": frontier}


@app.command()
def main(
    context: typer.Context,
    work: Annotated[Path, typer.Option(help="Folder for the runs; what is there is not trained again.")] = Path(
        "runs/rl-text"
    ),
    only: Annotated[str | None, typer.Option(help="Cases, with commas; `grpo` first.", show_default="all")] = None,
    chain: Annotated[tuple[int, int], typer.Option(min=1, help="Shortest and longest sums, in operations.")] = (3, 6),
    steps: Annotated[int, typer.Option(min=1, help="Generations of a run.")] = 80,
    prompts: Annotated[int, typer.Option(min=1, help="Questions a step.")] = 16,
    group: Annotated[int, typer.Option(min=2, help="Answers to each.")] = 8,
    updates: Annotated[int, typer.Option(min=1, help="Optimizer steps on the rows of a step.")] = 1,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Of AdamW, constant.")] = 1.5e-4,
    length: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 96,
    every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 20,
    run_seed: Annotated[int, typer.Option(help="Seed of the runs.")] = 11,
    held_out_seed: Annotated[int, typer.Option(help="Seed of the sums that checkpoints answer.")] = 20271,
    held_out_n: Annotated[int, typer.Option(min=1, help="How many.")] = 300,
    seed: report.Seed = 20270,
    n: Annotated[int, typer.Option(min=2, help="Questions of the test draw.")] = 1000,
    frontier_seed: Annotated[int, typer.Option(help="Seed of the sums for the pair, of 1 to 8 steps.")] = 20272,
    frontier_n: Annotated[int, typer.Option(min=2, help="How many.")] = 500,
    models: report.Models = None,
    out: report.Out = report.RESULTS,
) -> None:
    """Train recipes on the bundled small model: reward, held-out accuracy, and what the best model does for `ead`.

    Writes rl_text.json, .md, .png and .svg. One CPU thread, some minutes for each case.
    """
    report.need_extra()
    names = list(CASES) if only is None else [name.strip() for name in only.split(",")]
    if unknown := sorted(set(names) - set(CASES)):
        raise typer.BadParameter(f"there is no {', '.join(unknown)}; there are {'; '.join(CASES)}")
    if PLAIN not in names:
        raise typer.BadParameter(f"everything is compared with {PLAIN}: it must be among the cases")
    from waver.benchmarks.figures import rl_text as plot

    settings = dict(context.params)
    conditions = report.conditions("rl-text", settings)
    runs = planned(settings, names)
    for name, run in runs.items():
        report.console.print(f"{name}: {CASES[name].why}", highlight=False)
        run_once(run, place(work, name))
    with report.progress() as bar:
        found = asyncio.run(measured(settings, runs, conditions, bar))
    plot(found, out)
    report.write(out, "rl_text", found, page(found))


if __name__ == "__main__":
    app()
