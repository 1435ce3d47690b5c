"""Write the report on a model's probes: what was asked, labelled and learned, and two plots."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from waver.training.probe.fit import BestFit, confusion
from waver.training.probe.labels import CLASSES, PLAIN, Thresholds, Ways
from waver.training.probe.sampling import ProbeRun
from waver.training.probe.shape import Group, groups, u_shape

GREY, BLUE, ORANGE = "#7a7a85", "#2b6cb0", "#de6a1b"


def write(
    out: Path, run: ProbeRun, rows: Sequence[Mapping[str, Any]], asked: Sequence[Ways], thresholds: Thresholds,
    suggested: Mapping[str, float], labels: Mapping[str, torch.Tensor], kept: Mapping[str, BestFit],
) -> None:  # fmt: skip
    """Write `README.md`, and where matplotlib is installed `u-shape.png` and `confusion.png`."""
    levels, named = difficulty(rows, asked)
    shaped = groups(levels, [each[PLAIN] for each in asked])
    drawn = importlib.util.find_spec("matplotlib") is not None
    if drawn:
        _plot_shape(shaped, thresholds, named, out / "u-shape.png")
        _plot_confusion(kept, out / "confusion.png")
    plain = run.ways[PLAIN]
    opened = f" that begins with “{plain.words}”" if plain.words else ""
    parts = [
        f"# Probes for {run.model}",
        "Each reads the model's hidden state at the end of a question and says which of three strategies suits it: "
        "`{name: diffadapt, labels: …}` ([arXiv 2510.19669](https://arxiv.org/abs/2510.19669)). They fit this model "
        "and its chat template alone.",
        "## What was asked",
        f"{len(rows):,} questions ({run.questions}), {plain.samples} answers to each{opened} (temperature "
        f"{plain.temperature:g}, top_p {plain.top_p:g}, at most {plain.max_tokens} tokens). Means over all answers:",
        _table(("answered", "right", "tokens", "entropy, nats", "cut off"), _ways(asked)),
        "## Is there a U?",
        u_shape(shaped)[1],
        *(["![Entropy and right answers over difficulty](u-shape.png)"] if drawn else []),
        _table(
            (named, "questions", "right", "tokens", "entropy, nats", *(f"`{rule}`" for rule in labels)),
            _levels(shaped, levels, labels),
        ),
        "The last columns are labels: easy / normal / hard.",
        "## Labels",
        f"alpha {thresholds.alpha:g}, beta {thresholds.beta:.4g} nats, gamma {thresholds.gamma:g}. Suggested for beta, "
        f"from the four fifths that are trained on: {_suggestions(suggested)}.",
        _table(("labels", *CLASSES), [[rule, *_counts(classes)] for rule, classes in labels.items()]),
        "## Probes",
        "An MLP of 512 for each; macro-F1 on the fifth held out, which also chose epoch, seed and words, so that it is "
        "on the high side.",
        _table(("labels", "words", "macro-F1, mean and best", ""), _fits(kept)),
        *(["![How often a class was taken for another](confusion.png)"] if drawn else []),
    ]  # fmt: skip
    (out / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def difficulty(rows: Sequence[Mapping[str, Any]], asked: Sequence[Ways]) -> tuple[list[float], str]:
    """Return how difficult each question is, and the name of that scale: `level` where all have one, else how many
    answers of ten are wrong."""
    given = [row.get("level") for row in rows]
    if all(isinstance(level, int | float) and not isinstance(level, bool) for level in given):
        return [float(level) for level in given if level is not None], "level"
    return [float(round(10 * (1 - each[PLAIN].right))) for each in asked], "wrong of 10"


def _ways(asked: Sequence[Ways]) -> Iterable[list[str]]:
    for name in asked[0]:
        mean = {key: fmean(asdict(each[name])[key] for each in asked) for key in ("right", "tokens", "entropy", "cut")}
        right, cut = (f"{100 * mean[key]:.1f} %" for key in ("right", "cut"))
        yield [name, right, f"{mean['tokens']:.1f}", f"{mean['entropy']:.4f}", cut]


def _counts(classes: torch.Tensor) -> list[str]:
    return [str(int((classes == place).sum())) for place in range(len(CLASSES))]


def _levels(
    shaped: Sequence[Group], levels: Sequence[float], labels: Mapping[str, torch.Tensor]
) -> Iterable[list[str]]:
    at = torch.tensor(levels)
    for group in shaped:
        mixes = [" / ".join(_counts(classes[at == group.level])) for classes in labels.values()]
        figures = [f"{100 * group.right:.1f} %", f"{group.tokens:.1f}", f"{group.entropy:.4f}"]
        yield [f"{group.level:g}", str(group.count), *figures, *mixes]


def _suggestions(suggested: Mapping[str, float]) -> str:
    words = {
        "median": "the median of questions with nine of ten answers right",
        "solved": "the least at which the easy strategy solves what is called easy as well as the normal one",
    }
    return ", ".join(f"{value:.4g} ({words[name]})" for name, value in suggested.items())


def _fits(kept: Mapping[str, BestFit]) -> Iterable[list[str]]:
    for rule, best in kept.items():
        for words, scores in best.scores.items():
            shown = f"“{words.strip()}”" if words else "none"
            chosen = "kept" if words == best.words else ""
            yield [rule, shown, f"{fmean(scores):.3f}, {max(scores):.3f}", chosen]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def _plot_shape(shaped: Sequence[Group], thresholds: Thresholds, named: str, file: Path) -> None:
    """Plot mean entropy with its 95 % interval, and right answers, over difficulty."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    x = [group.level for group in shaped]
    errors = [1.96 * group.error if group.count > 1 else 0.0 for group in shaped]
    axes.errorbar(x, [group.entropy for group in shaped], errors, color=ORANGE, marker="o", capsize=3)
    axes.axhline(thresholds.beta, color=GREY, linestyle="--", linewidth=1)
    axes.annotate("beta", (x[-1], thresholds.beta), color=GREY, ha="right", va="bottom")
    axes.set_xlabel("difficulty: " + named)
    axes.set_ylabel("mean entropy of an answer's tokens, nats", color=ORANGE)
    axes.set_ylim(bottom=0)
    other = axes.twinx()
    other.plot(x, [100 * group.right for group in shaped], color=BLUE, marker="s", linestyle=":")
    other.set_ylabel("right answers, %", color=BLUE)
    other.set_ylim(0, 105)
    for each in (axes, other):
        each.spines["top"].set_visible(False)
    figure.savefig(file, dpi=150)


def _plot_confusion(kept: Mapping[str, BestFit], file: Path) -> None:
    """Plot a confusion matrix for each rule: rows are labels, columns what the probe says, on the questions held
    out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(kept), 3.4), layout="constrained")
    for axes, (rule, best) in zip(figure.subplots(1, len(kept), squeeze=False)[0], kept.items(), strict=True):
        table = confusion(best.fitted.truth, best.fitted.told)
        shares = table / table.sum(1, keepdim=True).clamp(min=1)
        axes.imshow(shares.numpy(), cmap="Oranges", vmin=0, vmax=1)
        for row in range(len(CLASSES)):
            for column in range(len(CLASSES)):
                dark = float(shares[row, column]) > 0.5
                colour = "white" if dark else "black"
                axes.text(column, row, str(int(table[row, column])), ha="center", va="center", color=colour)
        axes.set_xticks(range(len(CLASSES)), CLASSES)
        axes.set_yticks(range(len(CLASSES)), CLASSES)
        axes.set(title=f"{rule} (macro-F1 {best.fitted.macro_f1:.2f})", xlabel="the probe says", ylabel="label")
    figure.savefig(file, dpi=150)
