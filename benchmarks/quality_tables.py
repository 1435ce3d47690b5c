"""Turn answers into numbers and a page: accuracy, tokens, cost and time of each peer, and paired tests between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from waver.benchmarks import report
from waver.benchmarks.quality_asking import Line, busy
from waver.benchmarks.stats import Array, holm, mcnemar, percentiles, resamples
from waver.stats import paired_difference, wilson

LEVEL = 0.05
TURN = 60.0
"""Seconds between two answers to a question that are next to nothing."""
LATER = " (asked at another time)"
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """A peer's answers to the questions of a draw, in the order of the questions."""

    name: str
    family: str
    baseline: bool
    lines: Sequence[Line]

    @property
    def right(self) -> list[bool]:
        return [bool(line["right"]) for line in self.lines]

    def column(self, of: Callable[[Line], float | None]) -> Array:
        return np.array([np.nan if (value := of(line)) is None else value for line in self.lines], dtype=np.float64)


def length(line: Line) -> float:
    return float(sum(line["tokens"].values()))


def full(line: Line) -> float | None:
    """Return everything that engines computed for an answer, in parameter-weighted tokens."""
    return None if line["decode"] is None else float(line["decode"] + line["read"])


def share(lines: Sequence[Line], large: str) -> float:
    """Return the share of the tokens that the large model wrote."""
    return float(sum(line["tokens"].get(large, 0) for line in lines) / max(sum(map(length, lines)), 1.0))


def row(told: Told, reference: Told, large: str) -> Numbers:
    """Sum up a peer beside the reference, which answered the same questions."""
    n, right = len(told.lines), told.right
    weights = resamples(n)
    found: Numbers = {
        "name": told.name,
        "family": told.family,
        "baseline": told.baseline,
        "questions": n,
        "accuracy": sum(right) / n,
        "accuracy_interval": wilson(sum(right), n),
        "difference": (sum(right) - sum(reference.right)) / n,
        "difference_interval": paired_difference(right, reference.right),
        "p": mcnemar(right, reference.right),
        "tokens": float(told.column(length).mean()),
        "share": share(told.lines, large),
        "seconds": float(told.column(lambda line: line["seconds"]).mean()),
        "busy": busy(told.lines),
        "wall": busy(told.lines) / max(busy(reference.lines), 1e-9),
        "cut": sum(line.get("finish") == "length" for line in told.lines) / n,
        "switches": float(told.column(lambda line: line["switches"]).mean()),
        "errors": sum("error" in line for line in told.lines),
        "lag": float(
            np.median([abs(a["began"] - b["began"]) for a, b in zip(told.lines, reference.lines, strict=True)])
        ),
    }
    for name, of in RATIOS.items():
        found |= _ratio(name, told.column(of), reference.column(of), weights)
    found["share_interval"] = _share_interval(told, large, weights)
    return found


RATIOS: Mapping[str, Callable[[Line], float | None]] = {
    "cost": full,
    "decode": lambda line: line["decode"],
    "read": lambda line: line["read"],
    "latency": lambda line: line["seconds"],
}
"""Columns that are told as ratios to the reference: full cost, its two parts, and the mean time of an answer."""


def _ratio(name: str, own: Array, other: Array, weights: Array) -> Numbers:
    """Return a ratio of sums, and its bootstrap interval over the questions; None where a server does not tell, or
    where the two are the same, as the reference and itself."""
    if np.isnan(own).any() or not other.sum() > 0:
        return {name: None, f"{name}_interval": None}
    interval = None if np.array_equal(own, other) else percentiles((weights @ own) / (weights @ other))
    return {name: float(own.sum() / other.sum()), f"{name}_interval": _wide(interval)}


def _share_interval(told: Told, large: str, weights: Array) -> tuple[float, float] | None:
    """Return the bootstrap interval of the share of tokens; where one engine wrote every token of a sample, Wilson's
    interval of how many answers the other one takes part in, as no resample could say anything. None where there is one
    engine."""
    engines = {name for line in told.lines for name in line["tokens"]}
    if len(engines) < 2:
        return None
    own, total = told.column(lambda line: float(line["tokens"].get(large, 0))), told.column(length)
    if own.sum() in (0, total.sum()):
        return wilson(0 if not own.sum() else len(own), len(own))
    return _wide(percentiles((weights @ own) / (weights @ total)))


def _wide(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None or interval[0] == interval[1] else interval


def numbers(peers: Sequence[Told], reference: str, large: str) -> Numbers:
    """Return a row for each peer and all tests: against the reference, and of each policy against each baseline, both
    corrected for their number (Holm)."""
    base = next(told for told in peers if told.name == reference)
    rows = [row(told, base, large) for told in peers]
    others = [found for found in rows if found["name"] != reference]
    usual = float(np.median([each["lag"] for each in others])) if others else 0.0
    for found in rows:  # a peer that was added later has answered each question long after the reference did
        found["apart"] = bool(found["lag"] > 3 * usual + TURN)
    for found, corrected in zip(others, holm([each["p"] for each in others]), strict=True):
        found["p_holm"] = corrected
    pairs: list[Numbers] = [
        {
            "policy": first.name,
            "baseline": second.name,
            "difference": (sum(first.right) - sum(second.right)) / len(first.lines),
            "interval": paired_difference(first.right, second.right),
            "p": mcnemar(first.right, second.right),
            "cost": _over(first, second, full),
            "wall": busy(first.lines) / max(busy(second.lines), 1e-9),
        }
        for first in peers
        if not first.baseline
        for second in peers
        if second.baseline
    ]
    for found, corrected in zip(pairs, holm([each["p"] for each in pairs]), strict=True):
        found["p_holm"] = corrected
    return {"rows": rows, "pairs": pairs}


def _over(first: Told, second: Told, of: Callable[[Line], float | None]) -> float | None:
    own, other = first.column(of).sum(), second.column(of).sum()
    return None if np.isnan(own) or not other > 0 else float(own / other)


def verdicts(found: Numbers, reference: str) -> list[str]:
    """Return a sentence for each policy: what it loses and saves, and the baseline that does better, if one does."""
    said = []
    by_name = {each["name"]: each for each in found["rows"]}
    for own in found["rows"]:
        if own["baseline"]:
            continue
        better = [
            other
            for other in found["rows"]
            if other["baseline"] and other["accuracy"] >= own["accuracy"] and _no_dearer(other, own)
        ]
        alone = by_name[reference]
        sure = own.get("p_holm", 1.0) < LEVEL
        tells = "surely other than" if sure else "not to be told from"
        kept = (
            f"{report.percent(own['accuracy'])} right, {tells} `{reference}` ({report.percent(alone['accuracy'])}; "
            f"{report.points(own['difference'], own['difference_interval'])} points)"
        )
        price = f"{_number(own['cost'])} of its full cost and {own['wall']:.2f} of its wall clock{LATER * own['apart']}"
        if better:
            best = max(better, key=lambda each: (each["accuracy"], -(each["cost"] or 0.0)))
            end = (
                f"**`{best['name']}` does at least as well for no more**: {report.percent(best['accuracy'])} right at "
                f"{_number(best['cost'])} of the cost and {best['wall']:.2f} of the wall clock."
            )
        else:
            end = "No baseline here has as many right answers at no more cost and time."
        slow = f" **It saves no time over `{reference}`.**" if own["wall"] >= 1 else ""
        said.append(f"`{own['name']}`: {kept}, for {price}. {end}{slow}")
    return said


def _no_dearer(other: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Return whether another takes neither more cost nor, by more than a twentieth, more time: clocks vary."""
    known = other["cost"] is not None and own["cost"] is not None
    return bool((not known or other["cost"] <= own["cost"]) and other["wall"] <= 1.05 * own["wall"])


def page(found: Numbers) -> list[str]:
    """Write the page: conditions, the table, the tests, what was chosen, and the verdicts."""
    settings, reference = found["settings"], found["reference"]
    toy = ["**A toy**: the bundled pair shows that a method works, not what it is worth on other models."]
    return [
        f"# Quality: {found['title']}",
        *(toy if found["toy"] else []),
        f"{found['rows'][0]['questions']} questions of {found['questions_file']} (seed {settings['seed']}), "
        f"temperature {settings['temperature']:g}, at most {settings['max_tokens']} tokens, {settings['at_once']} "
        f"requests at a time, the peers in turns. Settings of sweeps are chosen on {found['calibration']} other "
        "questions. In brackets 95 % intervals: of accuracy Wilson's, of differences Newcombe's for paired answers, of "
        "ratios the bootstrap's over the questions. p: McNemar's exact test of paired answers, after Holm's correction "
        "for the number of tests in its table.",
        f"Engines: {'; '.join(found['engines']) or 'not told'}.{' ' + found['note'] if found['note'] else ''}",
        f"![Accuracy against full cost]({found['file']}.png)",
        _table(found["rows"], reference),
        f"*Full cost*: everything that engines computed, in parameter-weighted tokens (decoded and read), against "
        f"`{reference}`. *Wall clock*: the time in which requests of this peer were in the air, against `{reference}`; "
        "*seconds* is the mean of whole answers. *cut*: answers that reached the limit of tokens.",
        *_pairs(found["pairs"]),
        *_chosen(found["chosen"]),
        "## Verdicts",
        *[f"- {each}" for each in verdicts(found, reference)],
        *_notes(found),
    ]


def _table(rows: Sequence[Numbers], reference: str) -> str:
    head = (
        "", "right", f"points over `{reference}`", "p", "tokens", "share of large", "full cost", "seconds",
        "wall clock", "cut",
    )  # fmt: skip
    return report.table(
        head,
        [
            (
                f"`{each['name']}`",
                report.percent(each["accuracy"], each["accuracy_interval"]),
                "" if each["name"] == reference else report.points(each["difference"], each["difference_interval"]),
                _p(each.get("p_holm")),
                f"{each['tokens']:.0f}",
                report.percent(each["share"], each["share_interval"]),
                _number(each["cost"], each["cost_interval"]),
                f"{each['seconds']:.2f}",
                f"{each['wall']:.2f}",
                report.percent(each["cut"]),
            )
            for each in rows
        ],
    )


def _pairs(pairs: Sequence[Numbers]) -> list[str]:
    if not pairs:
        return []
    rows = [
        (
            f"`{each['policy']}` against `{each['baseline']}`",
            report.points(each["difference"], each["interval"]),
            _p(each["p_holm"]),
            _number(each["cost"]),
            f"{each['wall']:.2f}",
        )
        for each in pairs
    ]
    return ["## Against each baseline", report.table(("", "points", "p", "cost", "wall clock"), rows)]


def _chosen(chosen: Sequence[Mapping[str, Any]]) -> list[str]:
    if not chosen:
        return []
    rows = [
        (
            f"`{each['name']}`",
            report.percent(each["accuracy"], each["accuracy_interval"]),
            _number(each["cost"]),
            f"{each['wall']:.2f}",
            "chosen" if each["chosen"] else "",
        )
        for each in chosen
    ]
    rule = (
        "On the calibration draw: the setting with the lowest full cost among those that are at most as many points "
        "below the reference as `--within` says; the one with the most right answers where none is."
    )
    return ["## What was chosen", rule, report.table(("", "right", "full cost", "wall clock", ""), rows)]


def _notes(found: Numbers) -> list[str]:
    notes = []
    if len(found["servers"]) > 1:
        notes.append(
            f"These answers come from {len(found['servers'])} versions or configurations of the server: "
            f"{', '.join(found['servers'])}."
        )
    wrong = {each["name"]: each["errors"] for each in found["rows"] if each["errors"]}
    if wrong:
        told = ", ".join(f"{count} of `{name}`" for name, count in wrong.items())
        notes.append(f"Prompts longer than a model's context count as wrong answers: {told}.")
    if apart := [f"`{each['name']}`" for each in found["rows"] if each["apart"]]:
        notes.append(f"Not in turns with `{found['reference']}`, so that times compare less well: {', '.join(apart)}.")
    if found["missing"]:
        notes.append(f"{found['missing']} questions are left out, which not every peer has answered yet.")
    return notes


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return "–"
    if interval is None:
        return f"{value:.2f}"
    low, high = interval
    digits = next((d for d in (2, 3) if f"{low:.{d}f}" != f"{high:.{d}f}"), 4)
    return f"{value:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"
