"""Training methods against plain GRPO on the toy task: accuracy, entropy, ways to be right and tokens learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import report
from benchmarks.stats import mean_interval
from training.rl import make_recipe, names
from training.rl.toy import History, train

VALUES: dict[str, tuple[Mapping[str, Any], ...]] = {
    "clip_cov": ({}, {"share": 0.1, "low": 0.5}),
    "kl_cov": ({}, {"share": 0.2, "penalty": 1.0}),
    "steer": ({}, {"smallest": 0.1}, {"smallest": 0.1, "estimator": "exact"}),
    "entropy_dynamics": (
        {},
        {"threshold": 1.5},
        {"rule": "vocabulary"},
        {"rule": "vocabulary", "threshold": 2.0, "max_share": 1.0},
    ),
    "earl": ({}, {"share": 0.25, "anneal": 0.5}),
}
"""Parameters to try. A step of the toy has 384 tokens, so that the papers' shares choose a single one or none: after
the defaults come values that act here. A method that is not listed runs at its defaults."""
MEASURES: dict[str, Callable[[History], float]] = {
    "accuracy": lambda run: run.end.accuracy,
    "entropy": lambda run: run.end.entropy,
    "pairs": lambda run: run.end.pairs,
    "tokens_updated": lambda run: run.tokens_updated,
}

app = report.command()


def tries(methods: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """Every method at every set of parameters."""
    return [(name, values) for name in methods for values in VALUES.get(name, ({},))]


def measured(method: str, values: Mapping[str, Any], seed: int, steps: int) -> dict[str, float]:
    """One run of `grpo` with the method, or without any if it is called nothing."""
    made = make_recipe("grpo", [{"name": method, **values}] if method else [])
    run = train(made, seed, steps=steps)
    return {name: of(run) for name, of in MEASURES.items()}


def compare(runs: Sequence[Mapping[str, float]], plain: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """For each measure its mean, the mean difference to plain GRPO over paired seeds, and the interval of that."""
    found = {}
    for name in MEASURES:
        values, others = (np.array([run[name] for run in side], float) for side in (runs, plain))
        low, high = mean_interval(values - others)
        difference = float((values - others).mean())
        found[name] = {"mean": float(values.mean()), "difference": difference, "interval": (low, high)}
    return found


def page(found: Mapping[str, Any]) -> list[str]:
    settings = found["settings"]
    head = ("", "accuracy", "entropy in nats", "ways to be right", "tokens learned from")
    plain = found["plain"]
    rows = [("`grpo` alone", *(_number(name, plain[name]) for name in MEASURES))]
    for row in found["rows"]:
        said = ", ".join(f"{key} {value}" for key, value in row["parameters"].items()) or "defaults"
        rows.append((f"`{row['method']}`, {said}", *(_shown(name, row[name]) for name in MEASURES)))
    return [
        "# Training methods on the toy task",
        f"`training/rl/toy.py`, {settings['steps']} steps, {settings['seeds']} seeds; every method on the base `grpo`. "
        "After training: the mean, and in brackets the mean difference to `grpo` alone on the same seeds with its 95 % "
        "interval (Student's t over paired seeds). **Bold**: the interval leaves 0 out. A right answer can be given in "
        "36 ways for each prompt; *ways* counts those among 64 samples.",
        report.table(head, rows),
        "The task is small: it shows whether a method does what it is for, not what it is worth on a language model.",
    ]


def _number(name: str, value: float) -> str:
    return f"{value:.0f}" if name == "tokens_updated" else f"{value:.3f}" if name != "pairs" else f"{value:.2f}"


def _shown(name: str, row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    difference, ends = _number(name, row["difference"]), [_number(name, end) for end in (low, high)]
    inside = f"{'+' if row['difference'] >= 0 else ''}{difference}; {ends[0]} to {ends[1]}"
    return f"{_number(name, row['mean'])} ({f'**{inside}**' if low > 0 or high < 0 else inside})"


@app.command()
def main(
    context: typer.Context,
    methods: Annotated[str | None, typer.Option(help="Names, with commas.", show_default="all of them")] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Runs of each, on seeds from 0 on.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of a run.")] = 100,
    out: report.Out = report.RESULTS,
) -> None:
    """Methods against plain GRPO on the toy task, as differences over paired seeds.

    Writes rl_methods.json and .md. About 3 seconds of one core for a run.
    """
    report.need_extra()
    wanted = methods.split(",") if methods else list(names())
    if unknown := sorted(set(wanted) - set(names())):
        raise typer.BadParameter(f"there is no {', '.join(unknown)}; there are {', '.join(names())}")
    conditions = report.conditions("rl-methods", dict(context.params))
    runs, rows = [], []
    with report.progress() as bar:
        planned = [("", {}), *tries(wanted)]
        task = bar.add_task("runs", total=len(planned) * seeds)
        for method, values in planned:
            bar.update(task, description=method or "grpo alone")
            of_seeds = []
            for seed in range(seeds):
                of_seeds.append(measured(method, values, seed, steps))
                bar.advance(task)
            runs.append(of_seeds)
    for (method, values), of_seeds in zip(planned[1:], runs[1:], strict=True):
        rows.append({"method": method, "parameters": dict(values), "runs": of_seeds, **compare(of_seeds, runs[0])})
    plain = {name: float(np.mean([run[name] for run in runs[0]])) for name in MEASURES}
    found = conditions | {"plain": plain, "plain_runs": runs[0], "rows": rows}
    report.write(out, "rl_methods", found, page(found))


if __name__ == "__main__":
    app()
