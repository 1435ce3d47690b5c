"""Plot accuracy against full cost and against the wall clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from waver.benchmarks.figures import STYLE, save

MARKERS = "osD^vPX*<>"


def plot(numbers: Mapping[str, Any], out: Path) -> None:
    """Plot the peers, with 95 % intervals; settings of one sweep are joined by a line."""
    axes_of = {"cost": "full cost", "wall": "wall clock"}
    shown = {key: words for key, words in axes_of.items() if all(row[key] is not None for row in numbers["rows"])}
    families = list(dict.fromkeys(row["family"] for row in numbers["rows"]))
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(shown), figsize=(5.2 * len(shown), 4.4), layout="constrained", sharey=True)
        for axes, (key, words) in zip([panels] if len(shown) == 1 else panels, shown.items(), strict=True):
            for place, family in enumerate(families):
                rows = sorted((row for row in numbers["rows"] if row["family"] == family), key=lambda row: row[key])
                _line(axes, rows, key, family, place)
            axes.set_xlabel(f"{words}, against `{numbers['reference']}`")
            axes.set_xlim(left=0)
            axes.axvline(1, color=STYLE["grid.color"], lw=1)
        figure.axes[0].set_ylabel("right answers, %")
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside right center", frameon=False, fontsize=8)
        save(figure, out, numbers["file"])


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, family: str, place: int) -> None:
    y = [100 * row["accuracy"] for row in rows]
    low, high = ([100 * row["accuracy_interval"][i] for row in rows] for i in (0, 1))
    axes.errorbar(
        [row[key] for row in rows],
        y,
        yerr=[[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]],
        label=family,
        color=plt.get_cmap("tab10")(place % 10),
        marker=MARKERS[place % len(MARKERS)],
        linestyle="--" if rows[0]["baseline"] else "-",
        ms=5,
        lw=1.2,
        elinewidth=0.8,
    )
