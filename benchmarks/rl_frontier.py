"""Measure whether `ead` gains when a trained model takes the small one's place, all else being equal."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from waver.benchmarks import report
from waver.benchmarks.answers import AT_ONCE, LARGE, SMALL, InProcess, Setup, load_pair
from waver.benchmarks.frontier import DEFAULT, FAMILIES, TASK, Draw, Point, named
from waver.benchmarks.stats import Array, interpolate, percentiles, resamples
from waver.resources import MODELS
from waver.stats import wilson
from waver.training.pair.world import draw

WATCHED = FAMILIES["watched"][0]
SETTINGS: tuple[Mapping[str, Any], ...] = (
    *({**WATCHED, "threshold": threshold} for threshold in (0.01, 0.05, 0.1, 0.2, 0.4, 0.6)),
    DEFAULT,
)
"""Of `ead`: the family that does best on the bundled pair, over its range, and the default."""
BEFORE, AFTER = "bundled", "trained"


def pair(folder: Path, small: Path, large: Path) -> Path:
    """Return a folder with these two as `small` and `large`."""
    folder.mkdir()
    for name, model in ((SMALL, small), (LARGE, large)):
        (folder / name).symlink_to(model.resolve())
    return folder


async def measure(settings: Mapping[str, Any], trained: Path, bar: Progress) -> dict[str, Any]:
    """Return both pairs at every setting, as numbers."""
    models = settings["models"] or MODELS
    items = draw(TASK, settings["frontier_seed"], settings["frontier_n"])
    found: dict[str, list[Point]] = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, small in ((BEFORE, models / SMALL), (AFTER, trained)):
            async with load_pair(pair(Path(name) / kind, small, models / LARGE)) as engines:
                asked = Draw(kind, items, InProcess(engines), AT_ONCE, Setup(), bar)
                found[kind] = [
                    (await asked.alone(SMALL))[0],
                    *[await asked.policy("ead", setting) for setting in SETTINGS],
                    (await asked.alone(LARGE))[0],
                ]
    return numbers(found[BEFORE], found[AFTER]) | {
        "questions": len(items),
        "seed": settings["frontier_seed"],
        "weights": report.weights(models / LARGE),
    }


def numbers(before: Sequence[Point], after: Sequence[Point]) -> dict[str, Any]:
    """Return every point of both pairs, the differences at equal settings, and how far the trained pair's points lie
    above the line through the bundled pair's at the same share of tokens."""
    n = len(before[0].right)
    weights = np.vstack([np.full(n, 1 / n), resamples(n)])  # the first row is the sample itself
    line = np.stack([p.shares(weights) for p in before], 1), np.stack([weights @ p.right for p in before], 1)

    def told(values: Array) -> dict[str, Any]:
        return {"value": float(values[0]), "interval": percentiles(values[1:])}

    rows = []
    for old, new in zip(before, after, strict=True):
        rows.append(
            {
                "method": old.method,
                "settings": dict(old.settings),
                BEFORE: _row(old),
                AFTER: _row(new),
                "accuracy": told(weights @ (new.right - old.right)),
                "share": told(new.shares(weights) - old.shares(weights)),
                "above": told(weights @ new.right - interpolate(new.shares(weights), *line)),
            }
        )
    return {"rows": rows}


def _row(point: Point) -> dict[str, Any]:
    return {
        "accuracy": point.accuracy,
        "interval": wilson(int(point.right.sum()), len(point.right)),
        "share": point.share,
    }


def page(found: Mapping[str, Any], name: str) -> list[str]:
    rows = found["rows"]
    inside = [row for row in rows if row["method"] == "ead"]
    moved = [row for row in inside if row["above"]["interval"][0] > 0]
    fell = [row for row in inside if row["above"]["interval"][1] < 0]
    said = (
        f"Of {len(inside)} settings of `ead`, the trained pair lies above the bundled pair's line at {len(moved)}, "
        f"below it at {len(fell)}, by their intervals."
    )
    if moved:
        best = max(moved, key=lambda row: row["above"]["value"])
        said += f" It moves the frontier, most at {named(best['settings'])}: {_points(best['above'])} points."
    else:
        said += " It does not move the frontier."
    head = ("way to answer", "accuracy, bundled", "trained", "share large, bundled", "trained", "above, points")
    lines = [
        (
            f"`{row['method']}` {named(row['settings'])}" if row["settings"] else row["method"],
            *(report.percent(row[kind]["accuracy"], row[kind]["interval"]) for kind in (BEFORE, AFTER)),
            *(report.percent(row[kind]["share"]) for kind in (BEFORE, AFTER)),
            _points(row["above"]) if row["method"] != f"{LARGE} alone" else "",
        )
        for row in rows
    ]
    return [
        "## With the better model in the pair",
        f"The model of `{name}`, which answered most held-out sums, beside the bundled large one: {found['questions']} "
        f'sums of 1 to 8 steps (`draw("{TASK}", seed={found["seed"]}, n={found["questions"]})`), greedy. {said}',
        report.table(head, lines),
        "*Above*: points of accuracy over the line through the bundled pair's points at the same share of tokens "
        "written by the large model, with a paired bootstrap's 95 % interval.",
    ]


def _points(told: Mapping[str, Any]) -> str:
    return report.points(told["value"], told["interval"])
