"""Plot the vLLM benchmarks: ratios as dots in their intervals, beside the bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from waver.benchmarks.figures import BLUE, INK, SHADES, STYLE, save


def serving(numbers: Mapping[str, Any], bounds: Mapping[str, tuple[str, float]], out: Path) -> None:
    """Plot Waver to vLLM's server on the random model, a panel for each measure.

    Args:
        bounds: words for each measure, and the bound of its ratio.
    """
    loads = numbers["models"]["random"]["loads"]
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(bounds), figsize=(12, 3.2), layout="constrained", sharey=True)
        for axes, (key, (words, bound)) in zip(panels, bounds.items(), strict=True):
            for row, case in enumerate(loads.values()):
                _range(axes, row, case["ratios"][key], case["met"][key])
            axes.axvline(bound, color=INK, lw=0.8, ls=":")
            axes.axvline(1, color=INK, lw=0.8)
            axes.set_xlabel(f"{words}, Waver : vLLM", fontsize=9)
            axes.grid(visible=False, axis="y")
        panels[0].set_yticks(range(len(loads)), list(loads))
        panels[0].set_ylim(len(loads) - 0.4, -0.8)
        save(figure, out, "vllm_serving")


def steps(numbers: Mapping[str, Any], shown: Sequence[str], out: Path) -> None:
    """Plot the step of each way in `shown` against vLLM's own, a panel for each vocabulary and batch."""
    cases = [
        (f"{vocabulary:,} tokens, {batch} at a time", ways)
        for vocabulary, found in numbers["vocabularies"].items()
        for batch, ways in found["steps"].items()
    ]
    with plt.rc_context(STYLE):
        height = 0.4 + 0.33 * len(shown)
        columns = min(3, len(cases))
        rows = -(-len(cases) // columns)
        size = (4.5 + 3 * columns, rows * (height + 0.6))
        figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", sharey=True, squeeze=False)
        for axes, (title, ways) in zip(grid.flat, cases, strict=False):
            for row, name in enumerate(shown):
                _range(axes, row, ways[name]["ratio"], ways[name]["met"])
            axes.axvline(1, color=INK, lw=0.8)
            axes.set_title(title, fontsize=9, loc="left")
            axes.grid(visible=False, axis="y")
        grid[0, 0].set_yticks(range(len(shown)), shown)
        grid[0, 0].set_ylim(len(shown) - 0.4, -0.8)
        figure.supxlabel("one decoding step, against vLLM's own at the same temperature", fontsize=9)
        save(figure, out, "vllm_steps")


def _range(axes: Axes, row: int, value: Mapping[str, Any], met: bool | None) -> None:
    """Plot one row: orange where there is a bound, blue where there is none; hollow where it is not kept."""
    light, dark = (SHADES[4], SHADES[0]) if met is not None else ("#bcd4ec", BLUE)
    axes.plot(value["interval"], [row, row], color=light, lw=4, solid_capstyle="butt")
    axes.plot(value["median"], row, "o", color=dark, ms=5, mfc="white" if met is False else dark)
    axes.annotate(
        f"{value['median']:.2f}",
        (value["median"], row),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )
