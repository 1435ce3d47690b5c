"""Measure how much of the small model's drafts the large one accepts, before and after training with several losses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from waver import job
from waver.benchmarks import report
from waver.benchmarks.stats import mean_interval
from waver.training.draft.options import DraftRun
from waver.training.draft.run import train
from waver.training.pair.world import draw

WORK = Path("data/bench/draft")
LOSSES = ("ce", "kl", "tv", "e2e_tv")
TASKS = ("arithmetic", "frequent_facts", "rare_facts")
SHOWN = ("sampled", "greedy", "accepted", "greedy_accepted", "draft_entropy")
HELD_OUT_SEED = 77

app = report.command()


def texts(file: Path, seed: int, count: int) -> Path:
    """Write questions with the answers of the bundled world, equally many of each task."""
    items = [item for task in TASKS for item in draw(task, seed, count // len(TASKS))]
    rows = "".join(json.dumps({"question": item.prompt, "answer": item.answer}) + "\n" for item in items)
    job.replace_file(file, lambda path: path.write_text(rows, encoding="utf-8"))
    return file


def page(found: Mapping[str, Any]) -> list[str]:
    settings, runs = found["settings"], found["runs"]
    rows = [
        ("before", *(_cell([run["before"][key] for run in runs["ce"]]) for key in SHOWN), *_lines(runs["ce"], "before"))
    ]
    for loss, each in runs.items():
        rows.append(
            (f"`{loss}`", *(_cell([run["after"][key] for run in each]) for key in SHOWN), *_lines(each, "after"))
        )
    target = runs["ce"][0]["before"]["target_entropy"]
    return [
        "# Drafts of the bundled small model for the large one",
        f"{settings['questions']} questions of the bundled world with its answers, one pass, {settings['seeds']} seeds "
        "(texts and their order): the mean, and in brackets its 95 % interval (Student's t). All losses see the same "
        f"tokens. Held out are {settings['held_out']} other questions, on whose answers the large model's entropy is "
        f"{target:.3f} nats. Acceptance is computed from both whole distributions at temperature "
        f"{settings['temperature']:g}; nothing is drawn. `sampled` drafts are accepted by rejection sampling, `greedy` "
        "ones with the large model's probability of them; `accepted` is the mean number of three drafts before the "
        "first rejected. The slopes are of acceptance against the large model's entropy, per nat. Cross-entropy learns "
        "the texts, the other losses the large model's distributions on them: where these differ, it is at a "
        "disadvantage that texts of the large model's own drawing would take away.",
        report.table(("", *SHOWN, "slope, sampled", "slope, greedy"), rows),
    ]


def _lines(runs: Sequence[Mapping[str, Any]], when: str) -> list[str]:
    return [_cell([run[when][kind]["slope"] for run in runs]) for kind in ("sampled_line", "greedy_line")]


def _cell(values: Sequence[float]) -> str:
    numbers = np.array(values, float)
    if len(numbers) == 1 or np.ptp(numbers) == 0:
        return f"{numbers[0]:.4f}"
    low, high = mean_interval(numbers)
    return f"{numbers.mean():.4f} ({low:.4f} to {high:.4f})"


@app.command()
def main(
    context: typer.Context,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings with each loss.")] = 3,
    questions: Annotated[int, typer.Option(min=3, help="Texts of a training.")] = 480,
    held_out: Annotated[int, typer.Option(min=3, help="Texts to measure on.")] = 96,
    temperature: Annotated[float, typer.Option(min=0.05, help="Of both models.")] = 1.0,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Of AdamW.")] = 3e-4,
    work: Annotated[Path, typer.Option(help="Folder of what is done already; a stopped run goes on.")] = WORK,
    out: report.Out = report.RESULTS,
) -> None:
    """Train with each loss and measure; writes draft.json and .md. Some minutes of one core."""
    report.need_extra()
    conditions = report.conditions("draft", dict(context.params))
    job.claim(work, {"questions": questions, "held_out": held_out, "temperature": temperature, "rate": learning_rate})
    measured = texts(work / "held_out.jsonl", HELD_OUT_SEED, held_out)
    runs: dict[str, list[dict[str, Any]]] = {loss: [] for loss in LOSSES}
    run = DraftRun(temperature=temperature, learning_rate=learning_rate)
    for seed in range(1, seeds + 1):
        data = texts(work / f"texts-{seed}.jsonl", 1000 + seed, questions)
        for loss in LOSSES:
            runs[loss].append(train(data, measured, replace(run, loss=loss, seed=seed), work / f"{loss}-{seed}"))
    report.write(out, "draft", conditions | {"runs": runs}, page({**conditions, "runs": runs}))


if __name__ == "__main__":
    app()
