"""Measure accuracy, lookups and time of `l_rag`, its rival gates and its controls.

Questions about towns that a model knows by heart, hardly, or not at all; a document for each of these towns, among
thousands about others. Thresholds are chosen on a calibration draw, and everything is reported on another.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.progress import Progress

from waver import stats
from waver.benchmarks import report
from waver.benchmarks.answers import LARGE, SMALL, Answer, InProcess, Prompt, Setup, ask_all, load_pair
from waver.benchmarks.stats import Array, middle, percentiles, resamples
from waver.policies.retrieve.calibration import Latency, budget, curve, within
from waver.retrieval.base import Document
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.library import Library
from waver.stats import wilson
from waver.training.pair.world import Item, documents, draw, random_town, score_text, towns, unknown_names

MIX = {"frequent_facts": 2, "rare_facts": 1, "tail_facts": 1}
"""Parts of the questions: half of them about what both models know by heart."""
RATES = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
"""Shares of lookups that the ten thresholds are calibrated for."""
LOSS = 0.01
NEVER_FIRES = {"flare": -1.0}
"""A threshold at which a gate only measures; the others never fire above 1e9."""
GATES: dict[str, dict[str, Any]] = {
    "entropy": {},
    "entropy, first": {"gate": "entropy", "pooling": "first"},
    "entropy, max": {"gate": "entropy", "pooling": "max"},
    "margin": {},
    "targ, margin": {"gate": "targ"},
    "targ, variance": {"gate": "targ", "signal": "variance", "samples": 4},
    "flare": {},
    "dragin": {},
    "seakr": {"samples": 10},
}
SAMPLED = ("targ, variance", "seakr")
"""Gates that have their score before they compare it: one run at a threshold tells the scores too."""
INSIDE = ("dragin", "seakr")
"""Gates that look into the model, which vLLM does not allow."""
PARTS = ("Upper ", "Lower ", "Old ")
"""There are not enough names in Velmora for all the towns that nobody asks about."""
TIMED = 40
"""Questions asked one after another to take times."""
TOKENS = 40

app = report.command()


def corpus(distractors: int, seed: int) -> list[Document]:
    """Return a document for every town that is asked about, and `distractors` about towns that nobody asks about."""
    rng = random.Random(f"l_rag:{seed}")
    made = [Document(each.id, each.text) for each in documents()]
    made += [
        Document(f"town-{town.name.lower()}", town.description(rng))
        for kind in ("frequent", "rare")
        for town in towns()[kind]
    ]
    others = [f"{part}{name}" for part in ("", *PARTS) for name in unknown_names()]
    names = rng.sample(others, distractors)
    return [
        *made,
        *(
            Document(f"other-{name.lower().replace(' ', '-')}", random_town(name, rng).description(rng))
            for name in names
        ),
    ]


def questions(n: int, seed: int) -> list[Item]:
    """Return `n` questions of the mix, in random order."""
    parts = sum(MIX.values())
    items = [item for task, part in MIX.items() for item in draw(task, seed, n * part // parts)]
    random.Random(seed).shuffle(items)
    return items


@dataclass(frozen=True, eq=False)
class GateResult:
    """One policy on all questions; arrays have an entry for each."""

    right: Array
    fired: Array
    scores: Array
    discarded: float

    @property
    def said(self) -> list[bool]:
        """Return which answers were right."""
        return [bool(each) for each in self.right]


class Bench:
    """One engine with the collection."""

    def __init__(self, asked: InProcess, engine: str, at_once: int, top_k: int) -> None:
        self._asked, self._engine, self._at_once = asked, engine, at_once
        self._base = {"name": "l_rag", "collection": "world", "top_k": top_k}

    async def answers(self, items: Sequence[Item], at_once: int | None = None, **options: Any) -> list[Answer]:
        how = Setup(self._engine, (self._base | options,), max_tokens=TOKENS)
        asked = [Prompt(item.prompt) for item in items]
        return await ask_all(self._asked, asked, how, at_once or self._at_once, lambda: None)

    async def run(self, items: Sequence[Item], **options: Any) -> GateResult:
        answers = await self.answers(items, **options)
        found = [answer.retrieval or {} for answer in answers]
        right = [score_text(i.task, i.prompt, i.answer, a.text) for i, a in zip(items, answers, strict=True)]
        return GateResult(
            np.array(right, float),
            np.array([each["triggered"] for each in found], float),
            np.array([each.get("score", np.inf) for each in found], float),
            float(np.mean([answer.discarded for answer in answers])),
        )


def auroc(scores: Array, wrong: Array) -> float:
    """Return the chance that a wrong first answer has a higher score than a right one; NaN if all are alike."""
    found = stats.auroc(scores.tolist(), [bool(each) for each in wrong])
    return float("nan") if found is None else found


def row(name: str, run: GateResult, always: GateResult, **more: Any) -> dict[str, Any]:
    """Return a policy's figures. `over`: its accuracy less that of always looking up, from a paired bootstrap."""
    n, gap = len(run.right), run.right - always.right
    return {
        "policy": name,
        "accuracy": float(run.right.mean()),
        "accuracy_interval": wilson(int(run.right.sum()), n),
        "rate": float(run.fired.mean()),
        "over": float(gap.mean()),
        "over_interval": percentiles(resamples(n) @ gap),
        "discarded_tokens": run.discarded,
        **more,
    }


def against_chance(run: GateResult, never: GateResult, always: GateResult) -> dict[str, Any]:
    """Return accuracy less what a coin at the same rate has on average: a point of the line between never and
    always."""
    chance = run.fired.mean() * always.right + (1 - run.fired.mean()) * never.right
    gap = run.right - chance
    return {
        "chance": float(chance.mean()),
        "over_chance": float(gap.mean()),
        "over_chance_interval": percentiles(resamples(len(gap)) @ gap),
    }


async def measure_engine(
    bench: Bench, gates: Sequence[str], n: int, calibration: int, seed: int, advance: Callable[[], None]
) -> dict[str, Any]:
    held, items = questions(calibration, seed + 1), questions(n, seed)
    first, second = await bench.run(held, gate="never"), await bench.run(held, gate="always")
    never, always = await bench.run(items, gate="never"), await bench.run(items, gate="always")
    advance()
    rows = [row("never", never, always), row("always", always, always)]
    ways: dict[str, dict[str, Any]] = {"never": {"gate": "never"}, "always": {"gate": "always"}}
    signals = []
    for name in gates:
        options = {"gate": name, **GATES[name]}
        above = options["gate"] != "flare"
        silent = NEVER_FIRES.get(options["gate"], 1e9)
        told = (await bench.run(held, **options, threshold=silent)).scores
        fit = within(curve(told.tolist(), first.said, second.said, above), LOSS)
        ways[name] = options | {"threshold": fit.threshold}
        run = await bench.run(items, **ways[name])
        test = run if name in SAMPLED else await bench.run(items, **options, threshold=silent)
        sign = 1 if above else -1
        signals.append({"gate": name, "auroc": auroc(sign * test.scores, 1 - never.right)})
        more = {"threshold": fit.threshold, "calibrated_rate": fit.rate} | against_chance(run, never, always)
        rows.append(row(name, run, always, **more))
        if name == "entropy":
            sweep = []
            for rate in RATES:
                threshold = budget(told.tolist(), rate)
                run = await bench.run(items, threshold=threshold)
                more = {"threshold": threshold, "calibrated_rate": rate} | against_chance(run, never, always)
                sweep.append(row("entropy", run, always, **more))
            ways["random"] = {"gate": "random", "rate": float(rows[-1]["rate"])}
            coin = await bench.run(items, **ways["random"])
            rows.append(row("random", coin, always, **against_chance(coin, never, always)))
        advance()
    best = np.maximum(never.right, always.right)
    needed = (never.right < always.right).astype(float)
    rows.append(row("oracle", GateResult(best, needed, needed, 0.0), always))
    return {
        "rows": rows,
        "sweep": sweep,
        "signals": signals,
        "ways": ways,
        "first_tier": {kind: float(never.right[[i.task == kind for i in items]].mean()) for kind in MIX},
        "second_tier": {kind: float(always.right[[i.task == kind for i in items]].mean()) for kind in MIX},
    }


async def times(bench: Bench, ways: Mapping[str, Mapping[str, Any]], seed: int, runs: int) -> dict[str, Any]:
    """Return seconds of a request's parts, asked one after another; the ways take turns, and ratios are run by run."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    parts: list[Mapping[str, float]] = []
    rates = []
    for run in range(-1, runs):  # run -1 warms up
        items = questions(TIMED, seed + 100 + run)
        for name, options in ways.items():
            answers = await bench.answers(items, at_once=1, **options)
            told = [answer.retrieval or {} for answer in answers]
            if run < 0:
                continue
            spent[name].append(float(np.mean([sum(each["seconds"].values()) for each in told])))
            if name == "always":
                parts += [each["seconds"] for each in told]
            if name == "entropy":
                rates.append(float(np.mean([each["triggered"] for each in told])))
    return {
        "milliseconds": {name: middle([1000 * value for value in values]) for name, values in spent.items()},
        "over_always": {
            name: middle([a / b for a, b in zip(values, spent["always"], strict=True)])
            for name, values in spent.items()
        },
        "retrieval_ms": 1000 * float(np.median([each["retrieval"] for each in parts])),
        "rate": float(np.mean(rates)),
    }


def latency(times: Mapping[str, Any]) -> Latency:
    """Return the parts of a request (ms) that bear the measured totals out: where the gate fires a draft is all that
    the first tier costs, and how much that is follows from the times of the gate, of never and of always."""
    never, always, gated = (times["milliseconds"][name]["median"] for name in ("never", "always", "entropy"))
    first, rate = gated - times["rate"] * always, times["rate"]
    draft = min(max(never - (never - first) / rate, 0.0), never) if rate else never
    return Latency(times["retrieval_ms"], never, always - times["retrieval_ms"], draft)


async def measure(settings: Mapping[str, Any], bar: Progress) -> dict[str, Any]:
    out: dict[str, Any] = {}
    named = [name.strip() for name in settings["gates"].split(";") if name.strip()]
    wanted = ["entropy", *named] if named else list(GATES)
    gates = [name for name in GATES if name in wanted and (settings["backend"] != "vllm" or name not in INSIDE)]
    with tempfile.TemporaryDirectory() as scratch:
        library = Library(RetrievalConfig(path=Path(scratch)))
        texts = corpus(settings["distractors"], settings["seed"])
        task = bar.add_task("taking documents in", total=len(texts))
        world = library.create("world")
        for start in range(0, len(texts), 256):
            world.add(texts[start : start + 256])
            bar.advance(task, min(256, len(texts) - start))
        async with load_pair(settings["models"], settings["at_once"], settings["backend"]) as engines:
            for engine in (SMALL, LARGE):
                bench = Bench(InProcess(engines, library), engine, settings["at_once"], settings["top_k"])
                task = bar.add_task(engine, total=2 + len(gates))
                found = await measure_engine(
                    bench, gates, settings["n"], settings["calibration"], settings["seed"],
                    lambda t=task: bar.advance(t),  # type: ignore[misc]
                )  # fmt: skip
                found["times"] = await times(bench, found.pop("ways"), settings["seed"], settings["runs"])
                bar.advance(task)
                out[engine] = found
        library.close()
    return {"engines": out, "documents": len(texts)}


def page(found: Mapping[str, Any]) -> list[str]:
    settings = found["settings"]
    mix = ", ".join(
        f"{settings['n'] * part // sum(MIX.values())} {kind.replace('_', ' ')}" for kind, part in MIX.items()
    )
    out = [
        "# Lookups only where the model wavers",
        f"{mix} (draw {settings['seed']}); thresholds from {settings['calibration']} questions of another draw. "
        f"{found['documents']:,} documents, one about each town that is asked about, the others about other towns; "
        f"{settings['top_k']} passage(s) in the prompt, found by words and meaning. Greedy, through "
        f"{settings['backend']}. In brackets: 95 % intervals (Wilson for shares, paired bootstrap for differences); "
        f"behind times the lowest and the highest of {settings['runs']} runs, which are no intervals.",
        f"![Accuracy against lookups]({report.by_backend('l_rag', settings['backend'])}.png)",
    ]
    for engine, told in found["engines"].items():
        known = "; ".join(
            f"{kind.replace('_', ' ')} {report.percent(value)}, with lookup {report.percent(told['second_tier'][kind])}"
            for kind, value in told["first_tier"].items()
        )
        out += [
            f"## The {engine} model",
            f"Right without lookups: {known}.",
            verdict(told),
            "Each gate at the threshold that loses at most 1 point on the calibration draw:",
            report.table(
                (
                    "",
                    "accuracy",
                    "lookups",
                    "less always, points",
                    "over a coin, points",
                    "AUROC",
                    "time, of always (lowest–highest)",
                ),
                [_row(each, told["signals"], told["times"]["over_always"]) for each in told["rows"]],
            ),
            "The entropy gate at ten thresholds, and what a coin has at the same rate on average:",
            report.table(
                (
                    "threshold, nats",
                    "lookups (calibrated for)",
                    "accuracy",
                    "less always",
                    "coin",
                    "over a coin",
                    "time by the formula, of always",
                ),
                [_swept(each, told["times"]) for each in told["sweep"]],
            ),
            _times(told["times"]),
        ]
    return out


def verdict(told: Mapping[str, Any]) -> str:
    """Return the aim in words, and whether it is met: by the threshold chosen for a loss, and by which of the ten."""
    entropy = next(each for each in told["rows"] if each["policy"] == "entropy")
    others = [report.percent(each["calibrated_rate"]) for each in told["sweep"] if keeps(each)]
    also = f"by those calibrated for {', '.join(others)} of lookups" if others else "by none"
    return (
        f"`l_rag` with its own gate: {100 * entropy['over']:+.1f} points against always, at "
        f"{report.percent(entropy['rate'])} of the lookups, {100 * entropy['over_chance']:+.1f} points over a coin. "
        f"Aim (within 1 point of always, at most half of the lookups, 5 points over a coin): "
        f"{report.verdict(keeps(entropy))} by this threshold; of the ten further down, {also}."
    )


def keeps(row: Mapping[str, Any]) -> bool:
    return bool(row["over"] >= -0.01 and row["rate"] <= 0.5 and row["over_chance"] >= 0.05)


def _row(each: Mapping[str, Any], signals: Sequence[Mapping[str, Any]], times: Mapping[str, Any]) -> list[str]:
    time = times.get(each["policy"])
    signal = {s["gate"]: s["auroc"] for s in signals}.get(each["policy"])
    return [
        each["policy"],
        report.percent(each["accuracy"], each["accuracy_interval"]),
        report.percent(each["rate"]),
        report.points(each["over"], each["over_interval"]),
        report.points(each["over_chance"], each["over_chance_interval"]) if "over_chance" in each else "–",
        "–" if signal is None else f"{signal:.3f}",
        "–" if time is None else f"{time['median']:.2f} ({time['lowest']:.2f}–{time['highest']:.2f})",
    ]


def _swept(each: Mapping[str, Any], times: Mapping[str, Any]) -> list[str]:
    parts = latency(times)
    return [
        f"{each['threshold']:.4f}",
        f"{report.percent(each['rate'])} ({100 * each['calibrated_rate']:.0f} %)",
        report.percent(each["accuracy"], each["accuracy_interval"]),
        report.points(each["over"], each["over_interval"]),
        report.percent(each["chance"]),
        report.points(each["over_chance"], each["over_chance_interval"]),
        f"{parts.gated(each['rate']) / parts.always:.2f}",
    ]


def _times(told: Mapping[str, Any]) -> str:
    spent = {name: value["median"] for name, value in told["milliseconds"].items()}
    ratio = told["over_always"]["entropy"]
    parts = latency(told)
    even = parts.break_even(told["rate"])
    pays = f"from {even:.0f} ms a lookup on" if even > 0 else "however fast lookups are"
    return (
        f"One request at a time, medians of {ratio['runs']} runs of {TIMED} questions: never {spent['never']:.0f} ms, "
        f"always {spent['always']:.0f} ms ({told['retrieval_ms']:.0f} of them to find and quote passages), the gate at "
        f"{report.percent(told['rate'])} of the lookups {spent['entropy']:.0f} ms: {ratio['median']:.2f} "
        f"(lowest {ratio['lowest']:.2f}, highest {ratio['highest']:.2f}) times always. Where the gate fires, the "
        f"first tier ends with its draft: {parts.draft:.0f} ms of the {parts.first:.0f} ms that a whole first answer "
        f"takes, as these times have it. So a gate at this rate pays {pays}."
    )


@app.command()
def main(
    context: typer.Context,
    n: Annotated[int, typer.Option(min=40, help="Questions that are reported on.")] = 600,
    calibration: Annotated[int, typer.Option(min=40, help="Questions that thresholds are chosen on.")] = 400,
    distractors: Annotated[
        int, typer.Option(min=0, max=10_000, help="Documents about towns that nobody asks about.")
    ] = 5000,
    top_k: Annotated[int, typer.Option(min=1, help="Passages in the prompt; the bundled models read one best.")] = 1,
    backend: Annotated[Literal["transformers", "vllm"], typer.Option(help="What runs the models.")] = "transformers",
    runs: Annotated[int, typer.Option(min=1, help="Runs of the timed part.")] = 5,
    gates: Annotated[str, typer.Option(help="Gates to compare beside entropy's, separated by semicolons.")] = "",
    seed: report.Seed = 60260,
    at_once: Annotated[int, typer.Option(min=1, help="Questions in the air at a time.")] = 32,
    models: report.Models = None,
    out: report.Out = report.RESULTS,
) -> None:
    """Compare `l_rag` at ten thresholds, its rival gates, never, always, chance and an oracle, on fresh questions.

    Writes l_rag.json, .md, .png and .svg (l_rag_vllm for that backend). About 20 minutes on two cores.
    """
    report.need_extra()
    from waver.benchmarks.figures import l_rag as plot

    settings = dict(context.params)
    name = report.by_backend("l_rag", backend)
    if backend == "vllm":
        report.need_vllm()
    conditions = report.conditions("l-rag", settings)
    with report.progress() as bar:
        found = conditions | asyncio.run(measure(settings, bar))
    plot(found, out, name)
    report.write(out, name, found, page(found))


if __name__ == "__main__":
    app()
