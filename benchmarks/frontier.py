"""Measure accuracy against the share of tokens that the large model writes: `ead` and its controls on fresh sums.

Two draws are used. What has to be chosen (the operating points, the thresholds of `route`) is chosen on the calibration
draw; everything that is reported was measured on the test draw.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from waver.benchmarks import report
from waver.benchmarks.answers import (
    AT_ONCE,
    LARGE,
    MAX_TOKENS,
    SMALL,
    Answer,
    PairInterface,
    Prompt,
    Setup,
    closed_book,
    reach,
)
from waver.benchmarks.answers import ask_all as ask_everyone
from waver.benchmarks.stats import Array, interpolate, percentiles, resamples
from waver.policies.switch.ead import EntropyAdaptiveDecoding
from waver.policies.switch.route import Route
from waver.stats import paired_difference, wilson
from waver.training.pair.world import Item, draw, score_text

TASK = "arithmetic"
FAMILIES: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "watched": (
        {"window": 1, "min_tokens": 1, "threshold_down": None, "monitor": "small"},
        (0.0005, 0.002, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6),
    ),
    "two thresholds": (
        {"window": 2, "min_tokens": 1, "threshold_down": 0.001},
        (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.45),
    ),
    "one threshold": (
        {"window": 1, "min_tokens": 1, "threshold_down": None},
        (0.0005, 0.002, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6),
    ),
    "window 3": (
        {"window": 3, "min_tokens": 3, "threshold_down": None},
        (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.45),
    ),
    "the paper's window": (
        {"window": 5, "min_tokens": 10, "threshold_down": None},
        (0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.22, 0.3),
    ),
    "the paper's rule": (
        {"window": 5, "min_tokens": 10, "threshold_down": None, "timing": "lagged"},
        (0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.22, 0.3),
    ),
}
"""Settings of `ead` and the thresholds (nats) they are tried at: the longer the window, the lower the means it sees."""
DEFAULT = {
    field: EntropyAdaptiveDecoding.model_fields[field].default
    for field in ("window", "min_tokens", "threshold_down", "threshold")
}
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
"""Shares of tokens on the large model that the controls are set to."""
POINTS, BETWEEN = 0.10, (0.20, 0.50)
"""Bar (a): so much above `random_switch` somewhere between these shares."""
BARS = {"b": (0.967, 0.43), "c": (0.99, 0.25)}
"""Bars (b) and (c): accuracy as a part of the large model's, at most this share of tokens."""
MARGIN = 0.95
"""An operating point's share has to stay under this part of the limit on the calibration draw, to hold on another."""

app = report.command()


@dataclass(frozen=True, eq=False)
class Point:
    """One way to answer, and what came of it: arrays `[n]`, one entry a question."""

    method: str
    settings: Mapping[str, Any]
    right: Array
    large: Array
    """Tokens written by the large model."""
    total: Array
    """Tokens of the answer."""
    switches: Array
    discarded: Array

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def share(self) -> float:
        return float(self.large.sum() / self.total.sum())

    def shares(self, weights: Array) -> Array:
        """Return the share in each resample."""
        resampled: Array = (weights @ self.large) / (weights @ self.total)
        return resampled

    @property
    def label(self) -> str:
        return f"{self.method} {named(self.settings)}".strip()


def named(settings: Mapping[str, Any]) -> str:
    """Return parameters for people: `window 3, threshold 0.2`."""
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)


def point(method: str, settings: Mapping[str, Any], items: Sequence[Item], answers: Sequence[Answer]) -> Point:
    """Score answers."""

    def column(values: Sequence[float]) -> Array:
        return np.array(values, dtype=np.float64)

    right = [score_text(TASK, i.prompt, i.answer, a.text) for i, a in zip(items, answers, strict=True)]
    return Point(
        method,
        settings,
        column(right),
        column([a.tokens.get(LARGE, 0) for a in answers]),
        column([a.length for a in answers]),
        column([a.switches for a in answers]),
        column([a.discarded for a in answers]),
    )


@dataclass(frozen=True)
class Draw:
    """A set of questions under way: asks them in different ways."""

    name: str
    items: Sequence[Item]
    asked: PairInterface
    at_once: int
    how: Setup
    bar: Progress

    async def answers(self, label: str, engine: str, policy: tuple[Mapping[str, Any], ...] = ()) -> list[Answer]:
        task = self.bar.add_task(f"{self.name}: {label}", total=len(self.items))
        how = replace(self.how, engine=engine, policy=policy)
        questions: list[Prompt] = closed_book(self.items)
        done = await ask_everyone(self.asked, questions, how, self.at_once, lambda: self.bar.advance(task))
        self.bar.remove_task(task)
        return done

    async def alone(self, engine: str) -> tuple[Point, list[Answer]]:
        answers = await self.answers(f"{engine} alone", engine)
        return self._told(point(f"{engine} alone", {}, self.items, answers)), answers

    async def policy(self, name: str, settings: Mapping[str, Any]) -> Point:
        answers = await self.answers(name, SMALL, ({"name": name, **settings},))
        return self._told(point(name, settings, self.items, answers))

    async def ead(self) -> list[Point]:
        return [await self.policy("ead", settings) for settings in ead_grid()]

    def _told(self, point: Point) -> Point:
        told = (
            f"{self.name}: {point.label}: {report.percent(point.accuracy)} right, {report.percent(point.share)} large"
        )
        self.bar.console.print(told, highlight=False)
        return point


def ead_grid() -> list[dict[str, Any]]:
    """Return every setting of `ead` that is tried; the default is one of them."""
    grid = [{**settings, "threshold": t} for settings, thresholds in FAMILIES.values() for t in thresholds]
    return grid if DEFAULT in grid else [*grid, DEFAULT]


def route_thresholds(small: Sequence[Answer], large: Sequence[Answer]) -> list[float]:
    """Return the thresholds at which `route` would have had the wanted shares of tokens on the calibration draw."""
    length = Route.model_fields["draft_tokens"].default
    drafts = np.array([np.mean(a.entropies[:length]) for a in small])
    order = np.argsort(-drafts)
    large_lengths = np.array([a.length for a in large])[order]
    small_lengths = np.array([a.length for a in small])[order]
    sent = np.cumsum(large_lengths)
    shares = sent / (sent + small_lengths.sum() - np.cumsum(small_lengths))
    found = [float(f"{drafts[order][np.argmin(abs(shares - share))]:.4g}") for share in SHARES]
    return list(dict.fromkeys(found))


def choose(points: Sequence[Point], limit: float) -> Mapping[str, Any] | None:
    """Return the setting for an operating point: a share safely below the limit on the calibration draw, and most right
    answers there, averaged with its neighbours in threshold so that no lucky edge is picked; then the least share."""

    def family(point: Point) -> dict[str, Any]:
        return {key: value for key, value in point.settings.items() if key != "threshold"}

    def around(point: Point) -> float:
        kin = sorted((p for p in points if family(p) == family(point)), key=lambda p: p.settings["threshold"])
        place = kin.index(point)
        return float(np.mean([p.accuracy for p in kin[max(place - 1, 0) : place + 2]]))

    fit = [p for p in points if p.share <= MARGIN * limit]
    return max(fit, key=lambda p: (around(p), -p.share)).settings if fit else None


async def measure(settings: Mapping[str, Any], bar: Progress) -> tuple[list[Point], dict[str, Any], float]:
    """Return all points on the test draw, the settings chosen on the calibration draw, and the small model's cost."""
    at_once, how = (
        settings["at_once"],
        Setup(temperature=settings["temperature"], max_tokens=settings["max_tokens"]),
    )
    async with reach(settings["models"], settings["base_url"], at_once) as asked:

        def drawn(name: str, seed: int, n: int) -> Draw:
            return Draw(name, draw(TASK, seed, n), asked, at_once, how, bar)

        calibration = drawn("calibration", settings["calibration_seed"], settings["calibration_n"])
        _, small_answers = await calibration.alone(SMALL)
        _, large_answers = await calibration.alone(LARGE)
        thresholds = route_thresholds(small_answers, large_answers)
        tried = await calibration.ead()
        chosen = {bar: choose(tried, limit) for bar, (_, limit) in BARS.items()}

        test = drawn("test", settings["seed"], settings["n"])
        points = [(await test.alone(SMALL))[0], (await test.alone(LARGE))[0], *await test.ead()]
        points += [await test.policy("random_switch", {"rate": rate}) for rate in SHARES]
        points += [await test.policy("route", {"threshold": threshold}) for threshold in thresholds]
        return points, chosen, asked.small_cost


def numbers(points: Sequence[Point], chosen: Mapping[str, Any], small_cost: float) -> dict[str, Any]:
    """Return accuracies, shares, costs and differences with their intervals, and which bars are met."""
    by_method: dict[str, list[Point]] = {}
    for p in points:
        by_method.setdefault(p.method, []).append(p)
    small, large = by_method["small alone"][0], by_method["large alone"][0]
    blind = [small, *by_method["random_switch"], large]
    n = len(large.right)
    weights = np.vstack([np.full(n, 1 / n), resamples(n)])  # the first row is the sample itself
    blind_shares = np.stack([p.shares(weights) for p in blind], axis=1)
    blind_right = np.stack([weights @ p.right for p in blind], axis=1)
    best = weights @ large.right

    def row(p: Point) -> dict[str, Any]:
        right, shares = weights @ p.right, p.shares(weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            quality = right / best
        gain = right - interpolate(shares, blind_shares, blind_right)
        interval = percentiles(quality[1:])
        if interval[0] == interval[1] and p is not large:  # no resample differs, which no sample can promise
            low, high = paired_difference(*([bool(each) for each in who.right] for who in (p, large)))
            interval = 1 + low / large.accuracy, 1 + high / large.accuracy
        out = {
            "method": p.method,
            "settings": dict(p.settings),
            "accuracy": p.accuracy,
            "accuracy_interval": wilson(int(p.right.sum()), n),
            "share": p.share,
            "share_interval": percentiles(shares[1:]),
            "quality": float(quality[0]) if large.right.any() else math.nan,
            "quality_interval": interval,
            "relative_cost": p.share + (1 - p.share) * small_cost,
            "switches": float(p.switches.mean()),
            "tokens": float(p.total.mean()),
            "discarded": float(p.discarded.mean()),
        }
        if p.method in ("ead", "route"):
            out |= {"over_random": float(gain[0]), "over_random_interval": percentiles(gain[1:])}
        return out

    rows = [row(p) for p in points]
    return {"questions": n, "small_cost": small_cost, "points": rows, "bars": bars(rows, chosen)}


def bars(rows: Sequence[dict[str, Any]], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return each bar: whether it is met, and by which rows."""
    ead = [row for row in rows if row["method"] == "ead"]
    inside = [row for row in ead if BETWEEN[0] <= row["share"] <= BETWEEN[1]]
    best = max(inside, key=lambda row: row["over_random"], default=None)
    found: dict[str, Any] = {
        "a": {"met": best is not None and best["over_random"] >= POINTS, "at": best, "settings_in_range": len(inside)}
    }
    for name, (quality, limit) in BARS.items():
        at = next((row for row in ead if row["settings"] == chosen[name]), None)

        def reaches(row: dict[str, Any], quality: float = quality, limit: float = limit) -> bool:
            return bool(row["quality"] >= quality and row["share"] <= limit)

        found[name] = {"met": at is not None and reaches(at), "at": at, "settings_that_do": sum(map(reaches, ead))}
    return found


def page(numbers: Mapping[str, Any]) -> list[str]:
    settings, rows = numbers["settings"], numbers["points"]
    large = next(row for row in rows if row["method"] == "large alone")
    return [
        "# Accuracy against share of tokens by the large model",
        f'{numbers["questions"]} fresh sums in chains of 1 to 8 steps (`draw("{TASK}", seed={settings["seed"]}, '
        f"n={settings['n']})`), temperature {settings['temperature']:g}. What is chosen, operating points and the "
        f"thresholds of `route`, is chosen on another draw (seed {settings['calibration_seed']}, "
        f"{settings['calibration_n']} sums). In brackets: 95 % intervals, Wilson's for accuracies, else from a paired "
        "bootstrap over the questions; where no resample differs from the large model, Newcombe's score interval of "
        "the paired difference, divided by the large model's accuracy.",
        *_statements(numbers["bars"], len([row for row in rows if row["method"] == "ead"])),
        "![Accuracy against share](frontier.png)",
        report.table(
            (
                "way to answer",
                "accuracy",
                "of the large model's",
                "share large",
                "cost",
                "switches",
                "over random, points",
            ),
            [_line(row) for row in rows],
        ),
        "*Share large*: tokens written by the large model. *Cost*: parameters times tokens, against the large model "
        f"alone (a token of the small one costs {numbers['small_cost']:.2f}); what the small one reads while the large "
        "one writes, with `monitor small`, is not in it. *Switches*: a mean over answers. *Over "
        "random*: points of accuracy above `random_switch`, interpolated at the same share; its ends are the models "
        f"alone. `route` throws its draft away where the large model answers; these tokens, "
        f"{_discarded(rows)}, are in no other column. The large model alone: {report.percent(large['accuracy'])}.",
    ]


def _discarded(rows: Sequence[Mapping[str, Any]]) -> str:
    made = [row["discarded"] for row in rows if row["method"] == "route"]
    return f"{min(made):.1f} to {max(made):.1f} an answer"


def _statements(bars: Mapping[str, Any], settings: int) -> list[str]:
    a = bars["a"]
    low, high = (f"{100 * share:.0f}" for share in BETWEEN)
    said = [
        f"**(a)** `ead` at least {100 * POINTS:.0f} points over `random_switch` somewhere between {low} % and {high} % "
        f"share: {report.verdict(a['met'])}. "
        + (
            f"{a['settings_in_range']} settings lie in that range; the largest difference is {_points(a['at'])} "
            f"points, at {_where(a['at'])}."
            if a["at"]
            else "No setting lies in that range."
        )
    ]
    for name, (quality, limit) in BARS.items():
        bar = bars[name]
        said.append(
            f"**({name})** {100 * quality:.1f} % of the large model's accuracy with at most {100 * limit:.0f} % of its "
            f"tokens: {report.verdict(bar['met'])}. "
            + (
                f"The setting chosen on the calibration draw, {_where(bar['at'])}, has "
                f"{report.percent(bar['at']['quality'], bar['at']['quality_interval'])}. "
                if bar["at"]
                else "No setting kept to that share on the calibration draw. "
            )
            + f"Settings that reach the bar on the test draw: {bar['settings_that_do']} of {settings}."
        )
    return said


def _where(row: Mapping[str, Any]) -> str:
    return f"{named(row['settings'])} ({report.percent(row['share'])} share)"


def _points(row: Mapping[str, Any]) -> str:
    if "over_random" not in row:
        return ""
    return report.points(row["over_random"], row["over_random_interval"])


def _line(row: Mapping[str, Any]) -> list[str]:
    settings = named(row["settings"])
    if row["method"] == "ead" and row["settings"] == DEFAULT:
        settings += " (default)"
    return [
        f"`{row['method']}` {settings}" if settings else row["method"],
        report.percent(row["accuracy"], row["accuracy_interval"]),
        report.percent(row["quality"], None if row["method"] == "large alone" else row["quality_interval"]),
        report.percent(row["share"]),
        f"{row['relative_cost']:.2f}",
        f"{row['switches']:.1f}",
        _points(row),
    ]


@app.command()
def main(
    context: typer.Context,
    seed: report.Seed = 20260,
    n: Annotated[int, typer.Option(min=2, help="Questions of the test draw.")] = 500,
    calibration_seed: Annotated[int, typer.Option(help="Seed of the calibration draw.")] = 20261,
    calibration_n: Annotated[int, typer.Option(min=2, help="Questions of the calibration draw.")] = 300,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    max_tokens: report.MaxTokens = MAX_TOKENS,
    at_once: Annotated[int, typer.Option(min=1, help="Questions in the air at a time.")] = AT_ONCE,
    models: report.Models = None,
    base_url: Annotated[
        str | None, typer.Option(help="Drive a running server, with /v1.", show_default="in this process")
    ] = None,
    out: report.Out = report.RESULTS,
) -> None:
    """Measure accuracy against the share of tokens by the large model: `ead`, `random_switch`, `route`, each model
    alone.

    On fresh sums of 1 to 8 steps. Writes frontier.json, .md, .png and .svg. With the bundled pair about 25 minutes on
    two cores; `--n 60 --calibration-n 40` gives a first picture in a tenth of that.
    """
    report.need_extra()
    if seed == calibration_seed:
        raise typer.BadParameter("the test draw and the calibration draw need different seeds")
    from waver.benchmarks.figures import frontier as plot

    settings = dict(context.params)
    conditions = report.conditions("frontier", settings)
    with report.progress() as bar:
        points, chosen, small_cost = asyncio.run(measure(settings, bar))
    found = conditions | {"chosen": chosen} | numbers(points, chosen, small_cost)
    plot(found, out)
    report.write(out, "frontier", found, page(found))


if __name__ == "__main__":
    app()
