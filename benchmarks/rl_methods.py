"""Compare training methods with their plain base on the toy task: accuracy, entropy, ways to be right, tokens used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import typer

from waver.benchmarks import report
from waver.benchmarks.stats import mean_interval
from waver.training.rl import make_recipe, names
from waver.training.rl.methods.spine import majority_reward
from waver.training.rl.toy import PLAIN, History, Reward, Task, train


@dataclass(frozen=True)
class Baseline:
    """The base that a method runs on and is compared with.

    Args:
        voted: there are no labels: the reward is the vote of a question's own rows (TTRL), on a task that the policy
            gets right more often than any one wrong way.
    """

    base: str = "grpo"
    voted: bool = False

    @property
    def task(self) -> Task:
        return Task(rule="second", hint=0.45) if self.voted else PLAIN

    @property
    def reward(self) -> Reward | None:
        return self._vote if self.voted else None

    def _vote(self, tokens: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        right, answers = self.task.followers_right(tokens, prompts), self.task.answer(tokens)
        return majority_reward([str(int(a)) if r else None for a, r in zip(answers, right, strict=True)], prompts)

    def __str__(self) -> str:
        return f"`{self.base}`{', by vote' if self.voted else ''}"


GROUNDS = {"hapo": Baseline("dapo"), "ares": Baseline("dapo"), "spine": Baseline(voted=True)}
"""Baselines of methods whose baseline is not `grpo`."""
VALUES: dict[str, tuple[Mapping[str, Any], ...]] = {
    "aepo": ({}, {"target": 0.3, "alpha": 0.5}, {"target": 0.3, "alpha": 0.5, "hot": 2.0}),
    "ares": ({"window": 2}, {"window": 2, "beta": 0.0}),
    "clip_cov": ({}, {"share": 0.1, "low": 0.5}),
    "earl": ({}, {"share": 0.25, "anneal": 0.5}),
    "empg": ({}, {"sharpness": 0.5}),
    "entrocraft": ({}, {"low": 0.3, "high": 0.5, "low_end": 0.1, "high_end": 0.2}),
    "entropy_dynamics": (
        {},
        {"threshold": 1.5},
        {"rule": "vocabulary"},
        {"rule": "vocabulary", "threshold": 2.0, "max_share": 1.0},
    ),
    "hapo": ({}, {"span": 0}),
    "kl_cov": ({}, {"share": 0.2, "penalty": 1.0}),
    "siren": ({}, {"coefficient": 0.05, "quantile": 0.75}),
    "spine": (
        {"selection": "top", "share": 0.25, "band_low": 0.1, "band_high": 0.1, "kl": 0},
        {"band_low": 0.1, "band_high": 0.1, "kl": 0},
    ),
    "steer": ({}, {"smallest": 0.1}, {"smallest": 0.1, "estimator": "exact"}),
}
"""Parameters to try. A step of the toy has 384 tokens, so that the papers' shares choose a single one or none, and its
answers have eight, too few for windows of four: after the defaults come values that act here, or in their place. A
method that is not listed runs at its defaults."""
MEASURES: dict[str, Callable[[History], float]] = {
    "accuracy": lambda run: run.end.accuracy,
    "entropy": lambda run: run.end.entropy,
    "fork_entropy": lambda run: run.end.fork_entropy,
    "pairs": lambda run: run.end.pairs,
    "tokens_updated": lambda run: run.tokens_updated,
}

app = report.command()


def can_run(method: str) -> bool:
    """Tell whether the toy's policy has what the method measures: it has no attention."""
    return all(measure.source == "logits" for measure in make_recipe("grpo", [method]).measures)


def tries(methods: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return every method at every set of parameters."""
    return [(name, values) for name in methods for values in VALUES.get(name, ({},))]


def measured(ground: Baseline, method: str, values: Mapping[str, Any], seed: int, steps: int) -> dict[str, float]:
    """Return one run on that ground with the method, or without any if it is called nothing."""
    made = make_recipe(ground.base, [{"name": method, **values}] if method else [])
    run = train(made, seed, steps=steps, task=ground.task, reward=ground.reward)
    return {name: of(run) for name, of in MEASURES.items()}


def compare(runs: Sequence[Mapping[str, float]], plain: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return for each measure its mean, the mean difference to the plain base over paired seeds, and the interval of
    that."""
    found = {}
    for name in MEASURES:
        values, others = (np.array([run[name] for run in side], float) for side in (runs, plain))
        low, high = mean_interval(values - others)
        difference = float((values - others).mean())
        found[name] = {"mean": float(values.mean()), "difference": difference, "interval": (low, high)}
    return found


def page(found: Mapping[str, Any]) -> list[str]:
    settings = found["settings"]
    head = ("", "accuracy", "entropy in nats", "at the forks", "ways to be right", "tokens learned from")
    rows = [
        (f"{ground} alone", *(_number(name, float(np.mean([run[name] for run in runs]))) for name in MEASURES))
        for ground, runs in found["plain"].items()
    ]
    for row in found["rows"]:
        said = ", ".join(f"{key} {value}" for key, value in row["parameters"].items()) or "defaults"
        on = "" if row["ground"] == str(Baseline()) else f" (on {row['ground']})"
        rows.append((f"`{row['method']}`, {said}{on}", *(_shown(name, row[name]) for name in MEASURES)))
    return [
        "# Training methods on the toy task",
        f"`training/rl/toy.py`, {settings['steps']} steps, {settings['seeds']} seeds; every method on the base `grpo`, "
        "where nothing else is said. After training: the mean, and in brackets the mean difference to the base alone "
        "on the same seeds with its 95 % interval (Student's t over paired seeds). **Bold**: the interval leaves 0 "
        "out. A right answer can be given in 36 ways for each prompt; *ways* counts those among 64 samples. *By vote*: "
        "without labels, the answer of most rows is rewarded (TTRL), on a variant in which the second fork alone "
        "decides.",
        report.table(head, rows),
        "The task is small: it shows whether a method does what it is for, not what it is worth on a language model. "
        "Its policy has no attention, so that `attention_entropy` cannot run here.",
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
    methods: Annotated[str | None, typer.Option(help="Names, with commas.", show_default="all that can run")] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Runs of each, on seeds from 0 on.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of a run.")] = 100,
    out: report.Out = report.RESULTS,
) -> None:
    """Compare methods with their plain base on the toy task, as differences over paired seeds.

    Writes rl_methods.json and .md. About 3 seconds of one core for a run.
    """
    report.need_extra()
    wanted = methods.split(",") if methods else [name for name in names() if can_run(name)]
    if unknown := sorted(set(wanted) - set(names())):
        raise typer.BadParameter(f"there is no {', '.join(unknown)}; there are {', '.join(names())}")
    if blind := [name for name in wanted if not can_run(name)]:
        raise typer.BadParameter(f"{', '.join(blind)} measures attention, and the toy's policy has none")
    conditions = report.conditions("rl-methods", dict(context.params))
    plain: dict[Baseline, list[dict[str, float]]] = {}
    rows = []
    planned = tries(wanted)
    grounds = list(dict.fromkeys([Baseline(), *(GROUNDS.get(method, Baseline()) for method, _ in planned)]))
    with report.progress() as bar:
        task = bar.add_task("runs", total=(len(planned) + len(grounds)) * seeds)

        def run(ground: Baseline, method: str, values: Mapping[str, Any]) -> list[dict[str, float]]:
            bar.update(task, description=method or f"{ground} alone")
            of_seeds = []
            for seed in range(seeds):
                of_seeds.append(measured(ground, method, values, seed, steps))
                bar.advance(task)
            return of_seeds

        for ground in grounds:
            plain[ground] = run(ground, "", {})
        for method, values in planned:
            ground = GROUNDS.get(method, Baseline())
            of_seeds = run(ground, method, values)
            told = {"method": method, "ground": str(ground), "parameters": dict(values), "runs": of_seeds}
            rows.append({**told, **compare(of_seeds, plain[ground])})
    found = conditions | {"plain": {str(ground): runs for ground, runs in plain.items()}, "rows": rows}
    report.write(out, "rl_methods", found, page(found))


if __name__ == "__main__":
    app()
