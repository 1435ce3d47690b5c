"""Train on sums whose plain groups are all wrong: GRPO with plain rows, and with groups by search.

Search is that of BES (arXiv 2605.28814).

The bundled small model draws a group for each of some long sums; those of which no row is right are kept, some to train
on and some to judge by. Plain groups have nothing to learn from there until a row is right by chance.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import torch
import typer

from waver.benchmarks import report
from waver.benchmarks.rl_text import right
from waver.benchmarks.stats import Array
from waver.goals import sum_task
from waver.job import read_lines
from waver.resources import MODELS
from waver.training.options import RlRun
from waver.training.pair.world import Item, draw
from waver.training.rl import make_recipe
from waver.training.rl.run import make_trainer, save
from waver.training.tasks.rewards import Verifiable, same_number

NAME = "rl_search"
START = MODELS / "small"
WAYS = ("plain", "search")
GROUP = 8

app = report.command()


def drawn(model: Path, items: Sequence[Item], length: int) -> Array:
    """Return which of a group of rows for each sum are right, `[sums, rows]`."""
    every = [item for item in items for _ in range(GROUP)]
    return asyncio.run(right(model, every, length, temperature=1.0)).reshape(len(items), GROUP)


def hard(seed: int, settings: Mapping[str, Any]) -> list[Item]:
    """Draw sums until there are enough of which a whole group of the start model is wrong."""
    wanted, found = settings["prompts"] * settings["questions"] + settings["held_out"], list[Item]()
    for part in range(10):
        items = draw("arithmetic", 9000 + 100 * seed + part, wanted, steps=settings["chain"])
        wrong = drawn(START, items, settings["length"]).sum(1) == 0
        found += [item for item, kept in zip(items, wrong, strict=True) if kept]
        if len(found) >= wanted:
            return found[:wanted]
    raise ValueError("too few of these sums are all wrong: make them longer with --chain")


def train(way: str, items: Sequence[Item], seed: int, settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Train on these sums, again and again; returns the curve and what it took."""
    steps, prompts = settings["steps"], settings["prompts"]
    rows = [{"question": item.prompt, "answer": item.answer} for item in items]
    again = [rows[i % len(rows)] for i in range(steps * prompts)]
    task = Verifiable(again, [], same_number, correct=1.0, goals=sum_task)
    run = RlRun(
        model=str(START), rollouts=way, steps=steps, prompts=prompts, group=GROUP, updates=1, held_out=0, every=steps,
        length=settings["length"], learning_rate=settings["learning_rate"], seed=seed, report_to="none", keep=1,
    )  # fmt: skip
    torch.set_num_threads(1)
    began = time.monotonic()
    trainer = make_trainer(run, make_recipe("grpo", max_length=run.length), task, out, resumed=False)
    trainer.train()
    save(trainer, out)
    lines = read_lines(out / "metrics.jsonl")
    named = ("reward", "search/groups", "search/solved", "search/tokens")
    curve = [{name: line[name] for name in named if name in line} for line in lines if "reward" in line]
    return {"curve": curve, "seconds": time.monotonic() - began}


def one(seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Run both ways from the same weights on the same sums, and judge them by others."""
    items = hard(seed, settings)
    taught, held = items[: -settings["held_out"]], items[-settings["held_out"] :]
    found: dict[str, Any] = {"start": _judged(START, held, settings)}
    for way in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            made = train(way, taught, seed, settings, Path(folder))
            found[way] = made | _judged(Path(folder) / "model", held, settings)
    return found


def _judged(model: Path, held: Sequence[Item], settings: Mapping[str, Any]) -> dict[str, float]:
    rows = drawn(model, held, settings["length"])
    return {"rows": float(rows.mean()), "groups": float((rows.sum(1) > 0).mean())}


def page(found: Mapping[str, Any]) -> list[str]:
    settings, seeds = found["settings"], found["seeds"]
    rows = []
    for name in ("start", *WAYS):
        each = [seed[name] for seed in seeds.values()]
        cells = [" / ".join(report.percent(own[key]) for own in each) for key in ("rows", "groups")]
        mean = report.percent(fmean(own["rows"] for own in each))
        rows.append((name, mean, *cells, *(_taken(each) if name != "start" else ("", ""))))
    solved = [step["search/solved"] for seed in seeds.values() for step in seed["search"]["curve"]]
    tokens = [step["search/tokens"] for seed in seeds.values() for step in seed["search"]["curve"]]
    return [
        "# Groups by search where plain ones are all wrong",
        f"The bundled small model, sums of {settings['chain'][0]} to {settings['chain'][1]} operations of which it "
        f"gets none of {GROUP} rows right at temperature 1. GRPO, {settings['steps']} steps of {settings['prompts']} "
        f"of {settings['prompts'] * settings['questions']} sums, from the same weights; judged by "
        f"{settings['held_out']} other sums of the kind, {GROUP} rows each. Values of {len(seeds)} seeds.",
        report.table(
            ("rollouts", "right rows, mean", "right rows", "with a right row", "reward, last step", "s"), rows
        ),
        f"Where a group was searched for, the search found a right answer in {report.percent(float(np.mean(solved)))} "
        f"and drew {np.mean(tokens):.0f} tokens a group. It goes by the running totals, which are the solution: the "
        "paper, too, makes goals from it in training.",
    ]


def _taken(each: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    rewards = " / ".join(f"{own['curve'][-1]['reward']:.2f}" for own in each)
    return rewards, f"{fmean(own['seconds'] for own in each):.0f}"


@app.command()
def main(
    context: typer.Context,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, each with its own sums.")] = 3,
    chain: Annotated[tuple[int, int], typer.Option(help="Shortest and longest sums, in operations.")] = (9, 10),
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 10,
    prompts: Annotated[int, typer.Option(min=1, help="Sums in a step.")] = 4,
    questions: Annotated[int, typer.Option(min=1, help="Steps until the sums come again.")] = 5,
    held_out: Annotated[int, typer.Option(min=1, help="Sums to judge by.")] = 32,
    length: report.MaxTokens = 160,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 1e-4,
    out: report.Out = report.RESULTS,
) -> None:
    """Compare plain rollouts with groups by search, on sums that plain groups never get right."""
    settings = dict(context.params)
    found = report.conditions(NAME.replace("_", "-"), settings) | {"seeds": {}}
    try:
        for seed in range(1, seeds + 1):
            found["seeds"][str(seed)] = one(seed, settings)
    except ValueError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    report.write(out, NAME, found, page(found))


if __name__ == "__main__":
    app()
