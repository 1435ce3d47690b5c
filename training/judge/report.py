"""Write the report on a judge: what it was trained on, what it is worth beside simpler rules, and two plots."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from waver.engines.judge import Record
from waver.training.judge.evaluate import RULES, Evaluation

BINS = 10


def write(out: Path, record: Record, found: Evaluation) -> None:
    """Write `README.md`, and where matplotlib is installed `accuracy.png` and `calibration.png`."""
    drawn = importlib.util.find_spec("matplotlib") is not None
    if drawn:
        _plot_accuracy(found, out / "accuracy.png")
        _plot_calibration(found, out / "calibration.png")
    about, how = record.about, record.convention
    rows = [[str(k), *(f"{row[rule]:.3f}" for rule in RULES)] for k, row in found.accuracy.items()]
    stops = [[f"{t:g}", f"{accuracy:.3f}", f"{runs:.2f}"] for t, (accuracy, runs) in found.stopping.items()]
    beside = f", beside {', '.join(how.beside)}" if how.beside else ""
    parts = [
        f"# A judge for {record.model}",
        "It says how probable it is that a run is right, by the entropies of its tokens alone: "
        "`{name: entropy_judger, judge: …}` ([arXiv 2602.04234](https://arxiv.org/abs/2602.04234)). It fits this model "
        "and this convention alone.",
        "## What it was trained on",
        f"{about['questions']:,} questions ({about['asked']}, scored by {about['scorer']}), "
        f"{max(found.accuracy)} run(s) of each: topology {how.topology}, {how.rounds} round(s), temperature "
        f"{how.temperature:g}, top_p {how.top_p:g}, entropies {how.entropy}{beside}. "
        f"{about['right']:.1%} of all runs are right. {len(record.features)} features.",
        "## What it is worth",
        "Every question was judged by trees that were fitted on other questions (five folds). The area under the ROC "
        f"curve for right runs is {_number(found.auroc)}; that of low mean entropy is {_number(found.entropy_auroc)}. "
        "Share of right answers by the number of runs and the rule that chooses:",
        _table(("runs", *RULES), rows),
        *(["![Right answers by number of runs](accuracy.png)"] if drawn else []),
        _said(found),
        "## Stopping early",
        _table(("threshold", "right", "runs drawn"), stops),
        "## Calibration",
        *(["![Share of right runs by what the judge said](calibration.png)"] if drawn else []),
        _table(("said", "right", "runs"), [[f"{p:.2f}", f"{r:.2f}", str(n)] for p, r, n in bins(found)]),
    ]
    (out / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _said(found: Evaluation) -> str:
    last = found.accuracy[max(found.accuracy)]
    gain = last["judge"] - last["vote"]
    if max(found.accuracy) == 1:
        return "There is one run of each question, so that there was nothing to choose: draw more with --samples."
    low, high = found.over_vote
    told = f"The judge is {100 * gain:+.1f} points from a plain vote (95 %: {100 * low:+.1f} to {100 * high:+.1f})."
    if low > 0:
        return told
    better = "which is better" if high < 0 else "which it is not shown to beat"
    return f"{told} A vote, {better}, needs no training: use `select: vote`."


def bins(found: Evaluation) -> list[tuple[float, float, int]]:
    """Return for each tenth of the probabilities the mean that was said, the share that was right, and how many."""
    p, right = np.asarray(found.probabilities), np.asarray(found.right, float)
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    return [
        (float(p[place == b].mean()), float(right[place == b].mean()), int((place == b).sum()))
        for b in range(BINS)
        if (place == b).any()
    ]


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plot_accuracy(found: Evaluation, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    sizes = list(found.accuracy)
    for rule in RULES:
        axes.plot(sizes, [found.accuracy[k][rule] for k in sizes], marker="o", label=rule)
    axes.set(xlabel="runs", ylabel="share of right answers")
    axes.legend()
    figure.savefig(file, dpi=120)


def _plot_calibration(found: Evaluation, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    told = bins(found)
    axes.plot([0, 1], [0, 1], color="#7a7a85", linewidth=1)
    axes.plot([p for p, _, _ in told], [r for _, r, _ in told], marker="o", color="#2b6cb0")
    axes.set(xlabel="probability that the judge said", ylabel="share of right runs", xlim=(0, 1), ylim=(0, 1))
    figure.savefig(file, dpi=120)
