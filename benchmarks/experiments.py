"""Run small experiments over several seeds, and report each measure of each way with its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from waver import job
from waver.benchmarks import report
from waver.benchmarks.stats import mean_interval

Found = dict[str, dict[str, float]]
"""Measures by way."""


@dataclass(frozen=True)
class Experiment:
    """Name what is run with a seed, and say how to read it."""

    run: Callable[[int], Found]
    words: str


def measure(
    name: str, opening: Sequence[str], experiments: Mapping[str, Experiment], settings: Mapping[str, Any]
) -> None:
    """Run experiments that have not been run, and write NAME.json and .md, with those of `only` behind the name.

    Args:
        opening: the page's title and first paragraph. settings: `only`, `seeds`, `work` and `out` of the command line.
    """
    only, seeds, work = settings["only"], settings["seeds"], Path(settings["work"])
    wanted = only.split(",") if only else list(experiments)
    if unknown := sorted(set(wanted) - set(experiments)):
        raise typer.BadParameter(f"there is no {', '.join(unknown)}; there are {', '.join(experiments)}")
    conditions = report.conditions(name, {key: value for key, value in settings.items() if key != "work"})
    torch.set_num_threads(1)
    job.claim(work, {"version": 1})
    done = {(line["experiment"], line["seed"]): line["values"] for line in job.read_lines(work / "runs.jsonl")}
    rows: dict[str, list[Found]] = {each: [] for each in wanted}
    with report.progress() as bar:
        task = bar.add_task("experiments", total=len(wanted) * seeds)
        for each in wanted:
            bar.update(task, description=each)
            for seed in range(seeds):
                if (each, seed) not in done:
                    done[each, seed] = experiments[each].run(seed)
                    line = {"experiment": each, "seed": seed, "values": done[each, seed]}
                    job.append_line(work / "runs.jsonl", line)
                rows[each].append(done[each, seed])
                bar.advance(task)
    words = {each: experiments[each].words for each in wanted}
    file = name if not only else "_".join((name, *wanted))
    report.write(settings["out"], file, conditions | {"rows": rows}, [*opening, *_tables(rows, words)])


def _tables(rows: Mapping[str, Sequence[Found]], words: Mapping[str, str]) -> list[str]:
    parts = []
    for name, found in rows.items():
        measures = list(next(iter(found[0].values())))
        cells = [(f"`{way}`", *(_cell([row[way][each] for row in found]) for each in measures)) for way in found[0]]
        parts += [f"## `{name}`", words[name], report.table(("", *measures), cells)]
    return parts


def _cell(values: Sequence[float]) -> str:
    numbers = np.array(values, float)
    if np.isnan(numbers).any():
        return "–"
    if len(numbers) == 1:
        return f"{numbers[0]:.3f}"
    low, high = mean_interval(numbers)
    return f"{numbers.mean():.3f} ({low:.3f} to {high:.3f})"
