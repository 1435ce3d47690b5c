"""Plot the numbers that the benchmarks wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from waver.benchmarks.traces import Trace

INK, GREY, PALE = "#1b1b1f", "#7a7a85", "#d9d9e0"
SHADES = ("#5e1600", "#a83a00", "#de6a1b", "#f09a50", "#f2bd8c")
BLUE = "#2b6cb0"

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": INK,
    "axes.grid": True,
    "grid.color": PALE,
    "grid.linewidth": 0.5,
    "svg.hashsalt": "waver",
}


def save(figure: Figure, out: Path, name: str) -> None:
    """Write a figure as PNG and SVG."""
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"{name}.png", dpi=150)
    figure.savefig(out / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def frontier(numbers: Mapping[str, Any], out: Path) -> None:
    """Plot accuracy against the share of tokens by the large model, with 95 % intervals."""
    rows = numbers["points"]
    ends = [row for row in rows if row["method"].endswith("alone")]
    kinds = list(dict.fromkeys(_kind(row) for row in rows if row["method"] == "ead"))
    series = [
        (f"ead, {kind}", [r for r in rows if r["method"] == "ead" and _kind(r) == kind], SHADES[i % len(SHADES)], "o")
        for i, kind in enumerate(kinds)
    ]
    series.append(("route", [r for r in rows if r["method"] == "route"], BLUE, "s"))
    series.append(("random_switch", [*ends, *(r for r in rows if r["method"] == "random_switch")], GREY, "D"))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
        for label, points, colour, marker in series:
            _line(axes, sorted(points, key=lambda r: r["share"]), label, colour, marker)
        for row in ends:
            axes.annotate(
                row["method"],
                (100 * row["share"], 100 * row["accuracy"]),
                xytext=(8, -14) if row["share"] < 0.5 else (-9, 3),
                textcoords="offset points",
                ha="left" if row["share"] < 0.5 else "right",
            )
        for name in ("b", "c"):
            if row := numbers["bars"][name]["at"]:
                axes.plot(100 * row["share"], 100 * row["accuracy"], "o", ms=13, mfc="none", mec=INK, mew=1.2)
        axes.set_xlabel("tokens written by the large model, %")
        axes.set_ylabel("right answers, %")
        axes.set_xlim(-3, 103)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.04), frameon=False, labelcolor="linecolor")
        axes.set_title(
            f"{numbers['questions']} sums of 1 to 8 steps; bars: 95 % intervals; rings: chosen on another draw",
            fontsize=9,
            color=GREY,
            loc="left",
        )
        save(figure, out, "frontier")


def switching(pairs: Mapping[str, Trace], out: Path) -> None:
    """Plot for each pair that was read which share of its tokens has more than an entropy: of those that only the large
    model would write, and of the others."""
    with plt.rc_context(STYLE):
        figure, rows = plt.subplots(
            len(pairs), 2, figsize=(10, 3.4 * len(pairs)), layout="constrained", sharex=True, sharey=True, squeeze=False
        )
        for panels, (name, trace) in zip(rows, pairs.items(), strict=True):
            critical = np.array(trace.critical)
            for axes, (side, entropies) in zip(panels, (("small", trace.small), ("large", trace.large)), strict=True):
                values = np.array(entropies)
                for which, colour, label in (
                    (critical, SHADES[1], f"only the large model would write it ({critical.sum()})"),
                    (~critical, BLUE, f"the others ({(~critical).sum()})"),
                ):
                    some = np.sort(np.maximum(values[which], 1e-4))
                    axes.step(some, 100 * (1 - np.arange(len(some)) / max(len(some), 1)), color=colour, label=label)
                axes.set(xscale="log", xlim=(1e-4, 12), title=f"{name}: the {side} model")
                axes.title.set_fontsize(9)
            panels[0].set_ylabel("tokens with more entropy, %")
            panels[0].legend(loc="lower left", frameon=False, fontsize=8)
        for axes in rows[-1]:
            axes.set_xlabel("entropy, nats")
        save(figure, out, "switching")


def _kind(row: Mapping[str, Any]) -> str:
    settings = row["settings"]
    return ", ".join(f"{key} {value}" for key, value in settings.items() if key != "threshold" and value is not None)


def _line(axes: Axes, points: Sequence[Mapping[str, Any]], label: str, colour: str, marker: str) -> None:
    x, y = ([100 * row[key] for row in points] for key in ("share", "accuracy"))
    low, high = ([100 * row["accuracy_interval"][i] for row in points] for i in (0, 1))
    axes.errorbar(
        x,
        y,
        yerr=[[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]],
        label=label,
        color=colour,
        marker=marker,
        ms=4.5,
        lw=1.4,
        elinewidth=0.7,
        capsize=0,
    )


def throughput(numbers: Mapping[str, Any], out: Path) -> None:
    """Plot how many times faster 16 requests are together, and what a hand-over costs."""
    names = list(numbers["concurrency"])
    lengths = {"equal": "answers of one length", "natural": "answers as they come"}
    gains = [
        (f"{name}, {words}", case[key])
        for key, words in lengths.items()
        for name, case in numbers["concurrency"].items()
    ]
    costs = [
        (f"to {name}, {context} prompt, cache {cache}", case[name])
        for cache in ("kept", "cold")
        for context in numbers["hand_over"]
        for name, case in ((name, numbers["hand_over"][context][cache]) for name in names)
    ]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(4, 5))
        _ranges(left, gains, "times the throughput of one after another")
        left.set_xlim(left=0)
        left.axvline(5, color=INK, lw=0.8, ls=":")
        _ranges(right, costs, "decoding steps that one hand-over costs")
        right.axvline(0, color=INK, lw=0.8)
        save(figure, out, "throughput")


def _ranges(axes: Axes, cases: Sequence[tuple[str, Mapping[str, Any]]], title: str) -> None:
    """Plot medians as dots, lowest to highest as lines, one row a case."""
    for row, (_, value) in enumerate(cases):
        axes.plot([value["lowest"], value["highest"]], [row, row], color=SHADES[4], lw=4, solid_capstyle="butt")
        axes.plot(value["median"], row, "o", color=SHADES[0], ms=5)
        axes.annotate(
            f"{value['median']:.1f}",
            (value["median"], row),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(cases)), [label for label, _ in cases])
    axes.set_ylim(len(cases) - 0.4, -0.8)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(title)


def truncation(numbers: Mapping[str, Any], out: Path) -> None:
    """Plot accuracy of both models and the small one's different texts against temperature, a line for each
    truncation."""
    cells = {model: found["cells"] for model, found in numbers["models"].items()}
    methods = list(dict.fromkeys(row["method"] for row in cells["large"]))
    rivals = [method for method in methods if not method.startswith("top_w")]
    colours = plt.get_cmap("tab10")
    shown = (
        ("large", "accuracy", "accuracy of the large model, %"),
        ("small", "accuracy", "accuracy of the small model, %"),
        ("small", "texts", "different texts of 8, small model"),
    )
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 3, figsize=(13.5, 4.4), layout="constrained")
        for axes, (model, key, label) in zip(panels, shown, strict=True):
            for method in methods:
                own = [row for row in cells[model] if row["method"] == method]
                ours = method.startswith("top_w")
                axes.plot(
                    [row["temperature"] for row in own],
                    [row[key] * (100 if key == "accuracy" else 1) for row in own],
                    color=SHADES[methods.index(method) % len(SHADES)] if ours else colours(rivals.index(method)),
                    linewidth=2.4 if method == "top_w" else 1.2,
                    linestyle="-" if ours else "--",
                    marker="o",
                    markersize=3,
                    label=method,
                )
            axes.set(xlabel="temperature", ylabel=label)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
        save(figure, out, "truncation")


def l_rag(numbers: Mapping[str, Any], out: Path, name: str = "l_rag") -> None:
    """Plot accuracy against the share of questions that were looked up, for each engine, with 95 % intervals."""
    engines = numbers["engines"]
    with plt.rc_context(STYLE):
        figure, columns = plt.subplots(1, len(engines), figsize=(10, 4.6), layout="constrained", sharey=True)
        for axes, (engine, told) in zip(columns, engines.items(), strict=True):
            ends = [row for row in told["rows"] if row["policy"] in ("never", "always")]
            axes.plot([row["rate"] for row in ends], [row["accuracy"] for row in ends], ":", color=GREY, label="a coin")
            rows = sorted(told["sweep"], key=lambda row: row["rate"])
            shares = [row["accuracy"] for row in rows]
            low, high = zip(*(row["accuracy_interval"] for row in rows), strict=True)
            around = [
                [share - below for share, below in zip(shares, low, strict=True)],
                [above - share for share, above in zip(shares, high, strict=True)],
            ]
            axes.errorbar(
                [row["rate"] for row in rows],
                shares,
                around,
                label="entropy, ten thresholds",
                color=SHADES[1],
                marker="o",
                capsize=2,
            )
            others = [row for row in told["rows"] if row["policy"] not in ("never", "always", "entropy")]
            axes.scatter([r["rate"] for r in others], [r["accuracy"] for r in others], color=BLUE, marker="s", zorder=3)
            placed: list[float] = []
            for row in sorted([*others, *ends], key=lambda row: row["rate"]):
                beside = sum(
                    abs(row["rate"] - rate) < 0.1 for rate in placed
                )  # labels of neighbours go below each other
                placed.append(row["rate"])
                at = (row["rate"], row["accuracy"])
                axes.annotate(row["policy"], at, (6, -10 - 9 * beside), textcoords="offset points", fontsize=7)
            axes.set(title=f"{engine} model", xlabel="share of questions looked up")
        columns[0].set_ylabel("accuracy")
        columns[0].legend(loc="lower right")
        save(figure, out, name)


def rl_text(numbers: Mapping[str, Any], out: Path) -> None:
    """Reward, greedy held-out accuracy and entropy of every run by its steps; plain GRPO drawn thickest."""
    steps = numbers["settings"]["steps"]
    colours = plt.get_cmap("tab10")
    with plt.rc_context(STYLE):
        figure, (reward, held, entropy) = plt.subplots(1, 3, figsize=(13.5, 4.2), layout="constrained")
        for i, (name, case) in enumerate(numbers["cases"].items()):
            look: dict[str, Any] = {"color": colours((i - 1) % 10), "linewidth": 1.2}
            if i == 0:
                look = {"color": INK, "linewidth": 2.4}
            for axes, key in ((reward, "reward"), (entropy, "entropy")):
                axes.plot(*_smooth(case["curves"][key], max(1, steps // 12)), label=name, **look)
            held.plot(*zip(*case["held_out"], strict=True), marker="o", markersize=3, **look)
        reward.set(xlabel="step", ylabel="reward of the rows trained on")
        held.set(xlabel="step", ylabel="right answers to held-out sums, greedy")
        entropy.set(xlabel="step", ylabel="entropy of a token, nats")
        figure.legend(*reward.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
        save(figure, out, "rl_text")


def _smooth(curve: Sequence[tuple[int, float]], width: int) -> tuple[list[int], list[float]]:
    """Return the mean of the last `width` points at each."""
    values = [value for _, value in curve]
    means = [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - width) : i + 1])]
    return [step for step, _ in curve], means


def diffadapt(numbers: Mapping[str, Any], out: Path, name: str = "diffadapt") -> None:
    """Plot accuracy against tokens of every way to answer; plain answers' entropy by length; each probe's
    strategies."""
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 5), layout="constrained")
        placed: list[tuple[float, float]] = []
        for row in sorted(numbers["rows"], key=lambda row: -row["accuracy"]):
            kind = row["way"].split(",")[0]
            colour = {"diffadapt": SHADES[1], "shuffled": GREY, "oracle": INK}.get(kind, BLUE)
            at = row["tokens"], 100 * row["accuracy"]
            low, high = (100 * each for each in row["accuracy_interval"])
            left.errorbar(*at, [[at[1] - low], [high - at[1]]], color=colour, marker="o", ms=5, lw=0.8)
            above = sum(abs(x - at[0]) < 20 and y - at[1] < 12 for x, y in placed)  # their labels stand there
            placed.append(at)
            left.annotate(row["way"], at, (7, 4 - 8 * above), textcoords="offset points", fontsize=7, color=colour)
        left.margins(x=0.25)
        left.set(xlabel="tokens of an answer, with the strategy's words", ylabel="right answers, %")
        levels = numbers["levels"]
        x = [level["level"] for level in levels]
        entropies = [level["entropy"] for level in levels]
        middle.errorbar(
            x, entropies, [1.96 * level["error"] for level in levels], color=SHADES[2], marker="o", capsize=3
        )
        middle.set(xlabel="steps of the sum", ylabel="entropy of a plain answer's tokens, nats", ylim=(0, None))
        for style, (way, by_level) in zip(("-", "--", ":"), _probes(numbers["mixes"]), strict=False):
            for place, (each, colour) in enumerate(
                zip(("easy", "normal", "hard"), (BLUE, GREY, SHADES[2]), strict=True)
            ):
                shares = [100 * shares[place] for shares in by_level.values()]
                right.plot(list(map(int, by_level)), shares, style, color=colour, label=f"{each}, {way}")
        right.set(xlabel="steps of the sum", ylabel="strategies chosen, %", ylim=(-3, 103))
        right.legend(fontsize=7, frameon=False)
        save(figure, out, name)


def _probes(mixes: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(way.split(", ")[1], by_level) for way, by_level in mixes.items() if way.startswith("diffadapt")]
