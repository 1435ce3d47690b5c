"""Compute what calibration found: a threshold and what it will bring, as a page, a file and a plot."""

from __future__ import annotations

import importlib.util
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from waver.clients.questions import Question, Refused
from waver.policies.retrieve.calibration import Latency, Point, budget, curve
from waver.risk import needed, promised
from waver.stats import auroc, wilson

STEPS = 20
"""Rates of lookups that are tried for a loss: one less, from 19 of 20 to none."""
GREY, BLUE, ORANGE = "#7a7a85", "#2b6cb0", "#de6a1b"


@dataclass(frozen=True)
class Answer:
    """An answer, and its report: the gate's score (None: the draft was empty), whether it fired, seconds by part."""

    text: str
    score: float | None
    triggered: bool
    seconds: dict[str, float]


@dataclass(frozen=True)
class Pair:
    """A question under both tiers: with a gate that never fires, and with one that always does, if that was asked."""

    question: Question
    first: Answer
    second: Answer | None


def numbers(
    pairs: Sequence[Pair],
    above: bool,
    judge: Callable[[str, Question], bool] | None,
    rate: float | None,
    loss: float | None,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Return the threshold for a rate, or for a loss, and what it brings on these questions.

    An empty draft retrieves whatever the threshold, which is then chosen on the other questions. For a loss, a quarter
    of the questions gives the thresholds to try, and the others test them (`waver.risk`); where not even the one with
    the most lookups can be promised, `threshold` is None, which stands for looking up always.

    Args:
        above: whether scores above the threshold fire; else those at or below it.
        judge: whether a text answers a question; None: nobody knows.

    Raises:
        Refused: every draft was empty.
    """
    free = [pair for pair in pairs if not pair.first.triggered]
    forced, n = len(pairs) - len(free), len(pairs)
    if not free:
        raise Refused("Every draft was empty, so that the gate always fires: there is no threshold to choose.")
    scores = [pair.first.score or 0.0 for pair in free]
    first = [judge(pair.first.text, pair.question) if judge else False for pair in free]
    second = [_second(pair, judge) for pair in free]
    always = sum(_second(pair, judge) for pair in pairs)
    fixed = always - sum(second)
    points = [
        Point(each.threshold, (forced + each.rate * len(free)) / n, (fixed + each.accuracy * len(free)) / n)
        for each in curve(scores, first, second, above)
    ]
    threshold: float | None
    if loss is not None:
        threshold = _promised(scores, first, second, above, loss, confidence, forced)
    else:
        assert rate is not None
        share = min(max((rate * n - forced) / len(free), 0.0), 1.0)
        # A quantile leaves out the outermost score itself: none and all lie beyond it.
        ends = {0.0: points[0].threshold, 1.0: points[-1].threshold}
        threshold = ends[share] if share in ends else budget(scores, share, above)
    threshold = None if threshold is None else _short(threshold, scores, above)
    fired = [threshold is None or _fires(score, threshold, above) for score in scores]
    share = (forced + sum(fired)) / n
    out: dict[str, Any] = {
        "questions": n,
        "target": {"rate": rate} if loss is None else {"loss": loss, "confidence": confidence},
        "threshold": threshold,
        "expected_rate": round(share, 4),
        "empty_drafts": forced,
        "seconds": _seconds(pairs, share),
        "accuracy": None,
        "auroc": None,
    }
    if judge:
        gated = fixed + sum(b if fires else a for a, b, fires in zip(first, second, fired, strict=True))
        out["accuracy"] = {
            "never": _share(sum(first), n),  # an empty answer is wrong
            "always": _share(always, n),
            "threshold": _share(gated, n),
        }
        signs = [score if above else -score for score in scores] + [math.inf] * forced
        out["auroc"] = auroc(signs, [*(not each for each in first), *[True] * forced])
    out["curve"] = [
        {"threshold": each.threshold, "rate": each.rate} | ({"accuracy": each.accuracy} if judge else {})
        for each in points
    ]
    out["scores"] = [
        {"line": pair.question.line, "score": pair.first.score, "empty": pair.first.triggered}
        | ({"first": judge(pair.first.text, pair.question), "second": _second(pair, judge)} if judge else {})
        for pair in pairs
    ]
    return out


def least_loss(questions: int, confidence: float) -> float:
    """Return a loss that so many questions can promise although some are lost: twice what they could if none is; at
    least one point."""
    fewest = 1 - (1 - confidence) ** (4 / (3 * questions))
    return max(0.01, min(math.ceil(200 * fewest) / 100, 1.0))


def _promised(
    scores: Sequence[float], first: Sequence[bool], second: Sequence[bool], above: bool, loss: float,
    confidence: float, forced: int,
) -> float | None:  # fmt: skip
    """Find the threshold with the fewest lookups that loses at most `loss` against always looking up, with this
    confidence on questions to come; None where none can be promised.

    Args:
        forced: questions that look things up whatever the threshold, and so lose nothing.
    """
    order = list(range(len(scores)))
    random.Random(0).shuffle(order)
    tried, tested = order[::4], [each for place, each in enumerate(order) if place % 4]
    thresholds = [budget([scores[i] for i in tried], share / STEPS, above) for share in range(STEPS - 1, 0, -1)]
    thresholds.append(max(scores) + 1 if above else min(scores) - 1)

    def losses(threshold: float) -> list[float]:
        kept = [0.0 if _fires(scores[i], threshold, above) else float(second[i]) - float(first[i]) for i in tested]
        return [*kept, *[0.0] * (forced * len(tested) // len(scores))]

    count = promised(map(losses, thresholds), loss, confidence)
    return thresholds[count - 1] if count else None


def page(found: dict[str, Any]) -> str:
    """Write the result for the terminal; the last line is for a preset."""
    seconds, goal = found["seconds"], found["target"]
    beside = "".join(f", with {each['name']}" for each in found["beside"])
    aim = f"{goal['rate']:.1%} of lookups" if "rate" in goal else (
        f"a loss of at most {100 * goal['loss']:g} points, with {goal['confidence']:.0%} confidence"
    )  # fmt: skip
    lines = [
        f"{found['questions']} questions to {found['model']}{beside}; collection {found['preset']['collection']}, "
        f"gate {found['preset']['gate']}, for {aim}",
        "",
        "threshold         none: always look things up"
        if found["threshold"] is None
        else f"threshold         {found['threshold']:g}",
        f"expected rate     {found['expected_rate']:.1%}",
    ]
    if remark := extreme(found):
        lines.append(remark)
    if found["empty_drafts"]:
        lines.append(f"empty drafts      {found['empty_drafts']}, which look things up whatever the threshold")
    if found["accuracy"]:
        names = {"never": "without lookups", "always": "always", "threshold": "at the threshold"}
        lines += ["", "accuracy (95 % interval)"]
        lines += [f"{text:<17} {_told(found['accuracy'][key])}" for key, text in names.items()]
        if found["preset"]["gate"] in ("flare", "dragin"):
            lines.append("(about: this gate looks up for single sentences, which calibration takes for whole answers)")
        known = found["auroc"]
        said = f"{known:.3f}" if known is not None else "cannot be said, as they are all right or all wrong"
        lines += ["", f"AUROC of the score for wrong first answers: {said}"]
    lines += ["", _times(seconds, found["at_once"]), _verdict(seconds), "", "For a preset:", snippet(found["preset"])]
    return "\n".join(lines)


def extreme(found: dict[str, Any]) -> str | None:
    """Return a sentence about a threshold that decides nothing on these questions; None where it does."""
    if found.get("threshold", 0.0) is None:
        fewest = math.ceil(needed(found["target"]["loss"], found["target"]["confidence"]) * 4 / 3)
        return (
            f"No threshold can be promised on {found['questions']} questions. It takes {fewest} at the least, a "
            f"quarter to choose and the others to test, and more where some are lost: bring more, or allow more loss."
        )
    gate, fired = found["preset"]["gate"], round(found["expected_rate"] * found["questions"])
    if fired == found["questions"]:
        return (
            f"This threshold means always: every question was looked up. Without the draft that the gate {gate} reads "
            "it would be faster: use `gate: always`, or allow a larger --loss or a smaller --rate."
        )
    if fired == 0:
        return (
            "This threshold means never: no question was looked up. Lookups did not help on these questions enough to "
            "pay for one: leave `l_rag` out, or allow a smaller --loss or a larger --rate."
        )
    return None


def snippet(policy: dict[str, Any]) -> str:
    """Return the policy on one line of YAML."""
    return yaml.safe_dump(policy, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf).strip()


def as_json(found: dict[str, Any]) -> str:
    """Return everything that was found as JSON; `remark` says whether the threshold decides anything."""
    return json.dumps(found | {"remark": extreme(found)}, indent=1, allow_nan=False)


def write(found: dict[str, Any], out: Path) -> str:
    """Write `calibration.json`, and `calibration.png` where matplotlib is installed; returns a sentence about it."""
    (out / "calibration.json").write_text(as_json(found) + "\n", encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        return f"Written to {out}/calibration.json. For a plot, install matplotlib."
    _plot(found, out / "calibration.png")
    return f"Written to {out}/calibration.json and calibration.png."


def _plot(found: dict[str, Any], file: Path) -> None:
    """Plot rate and accuracy over the threshold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The ends of the curve lie one beyond the outermost scores, to make room for nothing.
    points = found["curve"][1:-1] or found["curve"]
    x = [each["threshold"] for each in points]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(x, [100 * each["rate"] for each in points], color=BLUE, label="lookups")
    if found["accuracy"]:
        axes.plot(x, [100 * each["accuracy"] for each in points], color=ORANGE, label="accuracy")
    if found["threshold"] is not None:
        axes.axvline(found["threshold"], color=GREY, linestyle="--", linewidth=1, label=f"{found['threshold']:g}")
    if min(x) > 0 and max(x) > 50 * min(x):
        axes.set_xscale("log")
    axes.set(xlabel=f"threshold of the gate {found['preset']['gate']}", ylabel="% of questions", ylim=(-2, 102))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def _second(pair: Pair, judge: Callable[[str, Question], bool] | None) -> bool:
    return judge is not None and pair.second is not None and judge(pair.second.text, pair.question)


def _fires(score: float, threshold: float, above: bool) -> bool:
    return score > threshold if above else score <= threshold


def _short(threshold: float, scores: Sequence[float], above: bool) -> float:
    """Return the threshold with as few digits as decide the same."""
    wanted = [_fires(score, threshold, above) for score in scores]
    for digits in range(3, 17):
        short = float(f"{threshold:.{digits}g}")
        if [_fires(score, short, above) for score in scores] == wanted:
            return short
    return threshold


def _share(right: int, n: int) -> dict[str, Any]:
    return {"share": right / n, "interval": list(wilson(right, n))}


def _seconds(pairs: Sequence[Pair], rate: float) -> dict[str, Any]:
    """Return mean times of a request's parts, and of requests with the gate at its threshold and without one."""
    plain = [pair.first for pair in pairs if not pair.first.triggered]
    looked = [pair.second for pair in pairs if pair.second is not None]
    gate = fmean(each.seconds["gate"] for each in plain)
    generation = fmean(each.seconds["generation"] for each in plain)
    retrieval = fmean(each.seconds["retrieval"] for each in looked)
    second = fmean(each.seconds["generation"] for each in looked)
    latency = Latency(retrieval, gate + generation, second, draft=gate)
    even = latency.break_even(rate)
    return {
        "gate": gate,
        "retrieval": retrieval,
        "generation": generation,
        "generation_after_lookup": second,
        "gated": latency.gated(rate),
        "always": latency.always,
        "break_even_retrieval": even if math.isfinite(even) else None,
    }


def _told(share: dict[str, Any]) -> str:
    low, high = share["interval"]
    return f"{100 * share['share']:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def _times(seconds: dict[str, Any], at_once: int) -> str:
    parts = {"gate": "gate", "retrieval": "retrieval", "generation": "generation"}
    parts["generation_after_lookup"] = "generation after a lookup"
    said = ", ".join(f"{text} {seconds[part]:.3f}" for part, text in parts.items())
    return f"mean seconds, {at_once} requests at a time: {said}"


def _verdict(seconds: dict[str, Any]) -> str:
    gated, always, even = seconds["gated"], seconds["always"], seconds["break_even_retrieval"]
    pays = "pays" if gated < always else "does not pay"
    said = f"The gate {pays} on this store: {gated:.3f} s a request, {always:.3f} s if all look things up."
    if even is None:
        return f"{said} At this rate it cannot."
    if even <= 0:
        return f"{said} It does so however fast retrieval is."
    return f"{said} It pays where retrieval takes more than {even:.3f} s."
