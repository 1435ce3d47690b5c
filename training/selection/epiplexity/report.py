"""Rank corpora by what their estimates say, as a table, a page and two plots."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from waver import job
from waver.training.selection.epiplexity import lengths
from waver.training.selection.epiplexity.estimate import Estimate, Settings
from waver.training.selection.epiplexity.hull import Point, at_budget, lower_hull, one_each
from waver.training.selection.epiplexity.options import EpiplexityRun

MEASURES = ("s", "h", "s_prequential", "s_requential", "loss_bits", "s_shortcut", "s_area")
SHORTCUTS = ("s_shortcut", "s_area")
Row = dict[str, Any]


def line(made: Estimate, run: EpiplexityRun, learned: int, settings: Settings) -> Row:
    """Return what is kept of one estimate, lengths in bits."""
    last = made.readings[-1]
    described = run.described or learned
    points = made.points("", described, run.requential)
    seen = [sum(made.tokens[: i + 1]) for i in range(len(made.tokens))]
    return {
        "parameters": made.parameters,
        "steps": len(made.before),
        "s": points[-1].s,
        "h": points[-1].h,
        "s_prequential": last.s_prequential,
        "s_requential": last.s_requential,
        "s_requential_explicit": sum(map(lengths.message_bits, made.messages)) if made.messages else None,
        "loss_bits": points[-1].h / described,
        "s_shortcut": lengths.prequential_shortcut(
            made.before, made.tokens, min(settings.last, max(1, len(made.before) // 5))
        ),
        "s_area": lengths.area(made.before, seen),
        "points": [[point.compute, point.s, point.h] for point in points],
        "readings": [asdict(each) for each in made.readings],
    }


def summary(lines: Sequence[Mapping[str, Any]], run: EpiplexityRun, learned: int) -> Row:
    """Return the report: a row for each corpus and order, those with the most structure first."""
    groups: dict[tuple[str, str], dict[int, list[Mapping[str, Any]]]] = {}
    for each in lines:
        groups.setdefault((each["corpus"], each["order"]), {}).setdefault(each["seed"], []).append(each)
    hulls = {
        (key, seed): lower_hull([Point(each["size"], *point) for each in own for point in each["points"]])
        for key, seeds in groups.items()
        for seed, own in seeds.items()
    }
    budget = run.budget or min(hull[-1].compute for hull in hulls.values())
    rows = []
    for key, seeds in groups.items():
        if len(run.sizes) > 1:
            read = [at_budget(hulls[key, seed], budget) for seed in seeds]
            values: list[Mapping[str, Any]] = [{"s": point.s, "h": point.h, "size": point.run} for point in read]
        else:
            values = [own[0] for own in seeds.values()]
        row: Row = {"corpus": key[0], "order": key[1], "seeds": len(seeds)}
        for name in MEASURES:
            own = [each[name] for each in values if each.get(name) is not None]
            row[name] = fmean(own) if own else None
            row[f"{name}_sd"] = stdev(own) if len(own) > 1 else None
        row["sizes"] = sorted({str(each["size"]) for each in values})
        row["curve"] = [[p.compute, p.s, p.h] for p in one_each(hulls[key, next(iter(seeds))])]
        row["course"] = [[r["tokens"], r["s_prequential"]] for r in next(iter(seeds.values()))[-1]["readings"]]
        rows.append(row)
    rows.sort(key=lambda row: -row["s"])
    about = {"run": asdict(run), "tokens": learned, "described": run.described or learned}
    return {
        **about,
        "estimator": "requential" if run.requential else "prequential",
        "unreliable": list(SHORTCUTS),
        "budget": budget if len(run.sizes) > 1 else None,
        "rows": rows,
    }


def shown(found: Row) -> str:
    """Return the table for the terminal."""
    rows = [
        f"{i}. {row['corpus']} ({row['order']}): S {_bits(row, 's')}, H {_bits(row, 'h')}"
        for i, row in enumerate(found["rows"], 1)
    ]
    return "\n".join(rows)


def write(out: Path, found: Row) -> None:
    """Write `report.json`, `README.md`, and where matplotlib is installed `structure.png` and `course.png`."""
    text = json.dumps(found, indent=1) + "\n"
    job.replace_file(out / "report.json", partial(Path.write_text, data=text, encoding="utf-8"))
    drawn = importlib.util.find_spec("matplotlib") is not None
    if drawn:
        _plot_structure(found, out / "structure.png")
        _plot_course(found, out / "course.png")
    job.replace_file(out / "README.md", partial(Path.write_text, data=_page(found, drawn), encoding="utf-8"))


def _page(found: Row, drawn: bool) -> str:
    head = (
        "corpus",
        "order",
        "S",
        "H",
        "bits per token",
        "S prequential",
        "S requential",
        "S by shortcut",
        "S by area",
    )
    rows = [
        [row["corpus"], row["order"], *(_bits(row, name) for name in ("s", "h")), _number(row["loss_bits"])]
        + [_bits(row, name) for name in ("s_prequential", "s_requential", "s_shortcut", "s_area")]
        for row in found["rows"]
    ]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
    run = found["run"]
    model = run["model"] or "fresh Llama of " + ", ".join(run["sizes"])
    at = "" if found["budget"] is None else f" S and H are read at {found['budget']:.3g} FLOPs, from the hull."
    parts = [
        "# Structure and noise",
        "S is the structure that the model learned, H the noise that is left "
        "([arXiv 2601.03220](https://arxiv.org/abs/2601.03220)), both in bits, "
        f"of {found['described']:,} tokens after {found['tokens']:,} were learned; {found['estimator']} estimate, "
        f"model: {model}.{at} They hold for this tokenizer, model, number of tokens and compute alone, and say nothing "
        "of what a corpus is worth for a given task.",
        table,
        "The last two columns are unreliable: one takes the mean of the last training losses for the loss under the "
        "final model, the other the last loss alone. They are here to be compared with the exact one.",
        *(["![S and H](structure.png)", "![S over tokens](course.png)"] if drawn else []),
    ]
    return "\n\n".join(parts) + "\n"


def _bits(row: Row, name: str) -> str:
    value, spread = row[name], row[f"{name}_sd"]
    if value is None:
        return ""
    return f"{value:,.0f}" if spread is None else f"{value:,.0f} ± {spread:,.0f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _plot_structure(found: Row, file: Path) -> None:
    from matplotlib.figure import Figure

    rows = found["rows"][::-1]
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(rows)), layout="constrained")
    names = [f"{row['corpus']}, {row['order']}" for row in rows]
    for axes, name, colour in zip(figure.subplots(1, 2, sharey=True), ("s", "h"), ("#2b6cb0", "#de6a1b"), strict=True):
        axes.barh(names, [row[name] for row in rows], xerr=[row[f"{name}_sd"] or 0.0 for row in rows], color=colour)
        axes.set(xlabel=f"{name.upper()} (bits)")
    job.replace_file(file, lambda path: figure.savefig(path, dpi=120, format="png"))


def _plot_course(found: Row, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for row in found["rows"]:
        axes.plot(*zip(*row["course"], strict=True), marker="o", label=f"{row['corpus']}, {row['order']}")
    axes.set(xlabel="tokens learned", ylabel="S, prequential (bits)")
    axes.legend()
    job.replace_file(file, lambda path: figure.savefig(path, dpi=120, format="png"))
