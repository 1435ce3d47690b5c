"""Try settings of `ead` on the entropies of whole texts, and compute what they would cost: the reason for its defaults.

Nothing is generated: both models read the same texts, so that many settings cost no more than one. A token counts as
*critical* where only the large model would write it (its likeliest token is the text's, that of the small model is
another). A good setting has the large model write these, and few others.

Time is in steps of the large model for each token of a text, with `r` a step of the small model and hand-overs as
measured under vLLM (`vllm_steps.md`): A to the large and B to the small model, in steps of the one that takes over.

    t = share (1 + r [monitor: small]) + (1 - share) r + hand-overs (A + B r) / 2 / tokens

Each run of the small model saves n (1 - r) and pays for the two hand-overs around it, A + B r. So t is at most 1,
whatever the entropies, where every run has `min_tokens` >= (A + B r) / (1 - r) tokens.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from waver.benchmarks import figures, report
from waver.benchmarks.answers import LARGE, SMALL, InProcess, Prompt, Setup
from waver.benchmarks.traces import Trace, restored, stored
from waver.engines import TransformersConfig, load_engine
from waver.engines.base import Engine
from waver.entropy import bits_to_nats
from waver.policies.switch.ead import EntropyAdaptiveDecoding as Ead
from waver.resources import MODELS
from waver.stats import auroc
from waver.training.pair.world import draw

SETTINGS: dict[str, Ead] = {
    "default": Ead(),
    "default, lagged": Ead(timing="lagged"),
    "default, one threshold": Ead(threshold_down=None),
    "default, window 5": Ead(window=5),
    "the paper's rule: window 5, one threshold, lagged": Ead(window=5, threshold_down=None, timing="lagged"),
    "default, min_tokens 1": Ead(min_tokens=1),
    "default, monitor small": Ead(monitor="small"),
    "before: 0.1, window 1, min_tokens 1": Ead(threshold=0.1, threshold_down=None, window=1, min_tokens=1),
    "before, for Qwen: 0.6, window 5, min_tokens 10": Ead(threshold=0.6, threshold_down=None, window=5),
    "0.01, window 1, min_tokens 1, monitor small": Ead(threshold=0.01, window=1, min_tokens=1, monitor="small"),
    "1.0, window 1, min_tokens 1, monitor small": Ead(threshold=1.0, window=1, min_tokens=1, monitor="small"),
}
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Factors on the entropies of the simulated pair: how sure of themselves both models are."""
TO_LARGE, TO_SMALL = 2.7, 4.7
"""A hand-over under vLLM, in steps of the engine that takes over (benchmarks/results/vllm_steps.md)."""
RATIOS = (0.1, 0.2, 0.3, 0.4)
"""Steps of a small model in steps of a large one; 0.3 was measured of Qwen2.5-Coder-0.5B and -1.5B on two cores."""
ANNOTATIONS = re.compile(r"<<[^<>]*>>")
"""Intermediate results as GSM8K marks them."""

app = report.command()


def simulated(scale: float, n: int, seed: int) -> list[Trace]:
    """Draw texts of three easy and three hard stretches, in which two tokens each are critical: the simulation by which
    EAD is checked (tests/policies/switch/test_ead.py), with all entropies times `scale`."""
    rng = random.Random(seed)
    easy, hard_small, hard_large = (float(bits_to_nats(bits)) * scale for bits in (0.181, 3.093, 0.706))
    made = []
    for _ in range(n):
        hard: list[bool] = []
        critical: set[int] = set()
        for _ in range(3):
            hard += [False] * rng.randint(20, 39)
            run = rng.randint(12, 23)
            critical |= set(rng.sample(range(len(hard), len(hard) + run), 2))
            hard += [True] * run
        noise = [rng.uniform(0.6, 1.4) for _ in hard]
        made.append(
            Trace(
                [(hard_small if each else easy) * luck for each, luck in zip(hard, noise, strict=True)],
                [(hard_large if each else easy) * luck for each, luck in zip(hard, noise, strict=True)],
                [place in critical for place in range(len(hard))],
            )
        )
    return made


def on_large(trace: Trace, policy: Ead) -> list[bool]:
    """Return which tokens of a text the large model would write."""
    down = policy.threshold if policy.threshold_down is None else policy.threshold_down
    large, since = policy.start == "large", 0
    window: list[float] = []
    written: list[bool] = []

    def crosses(mean: float) -> bool:
        return (mean < down) if large else mean >= policy.threshold

    for small_entropy, large_entropy in zip(trace.small, trace.large, strict=True):
        seen = large_entropy if large and policy.monitor == "active" else small_entropy
        kept = window[1 - policy.window :] if policy.window > 1 else []
        if policy.timing == "eager" and since >= policy.min_tokens and crosses(_mean([*kept, seen])):
            large, since = not large, 0
            seen = large_entropy if large and policy.monitor == "active" else small_entropy
        written.append(large)
        since += 1
        window = [*kept, seen]
        if policy.timing == "lagged" and since >= policy.min_tokens and crosses(_mean(window)):
            large, since = not large, 0
    return written


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def row(traces: Sequence[Trace], policy: Ead) -> dict[str, Any]:
    """Return what a setting does with texts: the share of tokens and of critical ones that the large model writes,
    hand-overs in 100 tokens, and the time for each ratio of steps."""
    tokens = large = switches = caught = critical = 0
    for trace in traces:
        written = on_large(trace, policy)
        tokens += len(written)
        large += sum(written)
        switches += sum(a != b for a, b in pairwise(written))
        critical += sum(trace.critical)
        caught += sum(a and b for a, b in zip(written, trace.critical, strict=True))
    share, often = large / tokens, switches / tokens
    return {
        "share": share,
        "critical": caught / critical if critical else float("nan"),
        "hand_overs": 100 * often,
        "time": {str(r): time(share, often, r, policy.monitor == "small") for r in RATIOS},
    }


def time(share: float, hand_overs: float, r: float, watched: bool) -> float:
    """Return steps of the large model for each token; `hand_overs` is their number for each token."""
    return share * (1 + r * watched) + (1 - share) * r + hand_overs * (TO_LARGE + TO_SMALL * r) / 2


def least_dwell(r: float) -> float:
    """Return the tokens that each run of the small model must have, so that it pays for its two hand-overs."""
    return (TO_LARGE + TO_SMALL * r) / (1 - r)


async def read(models: Path, texts: Sequence[tuple[str, str]], bar: Progress) -> list[Trace]:
    """Have both models of a folder read answers to questions, one model after the other."""
    entropies: dict[str, list[list[float]]] = {}
    right: dict[str, list[list[bool]]] = {}
    for name in (SMALL, LARGE):
        engine = await asyncio.to_thread(load_engine, name, TransformersConfig(model=str(models / name)))
        task = bar.add_task(f"{models.name}: {name} reads", total=len(texts))
        entropies[name], right[name] = [], []
        for question, text in texts:
            steps, expected = await _read_one(engine, question, text)
            entropies[name].append([round(step.entropy, 5) for step in steps])
            right[name].append([step.top_logprobs[0][0] == token for step, token in zip(steps, expected, strict=True)])
            bar.advance(task)
        await engine.aclose()
    return [
        Trace(small, large, [b and not a for a, b in zip(by_small, by_large, strict=True)])
        for small, large, by_small, by_large in zip(
            entropies[SMALL], entropies[LARGE], right[SMALL], right[LARGE], strict=True
        )
    ]


async def _read_one(engine: Engine, question: str, text: str) -> tuple[list[Any], list[int]]:
    prompt = engine.tokens.chat([{"role": "user", "content": question}])
    answer = engine.tokens.encode(text, add_special_tokens=False)
    return (await engine.score([*prompt, *answer], top_logprobs=1))[-len(answer) :], answer


async def sums(models: Path, n: int, seed: int) -> list[tuple[str, str]]:
    """Return sums with the bundled large model's answers to them."""
    engine = await asyncio.to_thread(load_engine, LARGE, TransformersConfig(model=str(models / LARGE)))
    asked = InProcess({SMALL: engine, LARGE: engine})
    items = draw("arithmetic", seed, n)
    answers = [await asked.ask(Prompt(item.prompt), Setup(LARGE), 0) for item in items]
    await engine.aclose()
    return [(item.prompt, answer.text) for item, answer in zip(items, answers, strict=True)]


def worked(file: Path, n: int) -> list[tuple[str, str]]:
    """Return the first questions of a JSONL file (`question`, `answer`), with their answers as GSM8K writes them."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:n]]
    return [(each["question"], ANNOTATIONS.sub("", each["answer"]).replace("#### ", "The answer is ")) for each in rows]


async def measure(settings: Mapping[str, Any], bar: Progress) -> dict[str, Any]:
    """Return the rows of every setting on every pair, and the traces of those that were read."""
    seed, n = settings["seed"], settings["n"]
    pairs = {f"simulated, entropies times {scale:g}": simulated(scale, n, seed) for scale in SCALES}
    bundled = await read(MODELS, await sums(MODELS, n, seed), bar)
    kept = {"bundled pair, sums": bundled}
    if settings["models"] is not None:
        texts = worked(settings["texts"], settings["texts_n"])
        kept[f"{settings['name']}, {len(texts)} worked answers"] = await read(settings["models"], texts, bar)
    pairs |= kept
    rows = {name: {label: row(traces, policy) for label, policy in SETTINGS.items()} for name, traces in pairs.items()}
    return {"pairs": rows, "traces": {name: [stored(each) for each in traces] for name, traces in kept.items()}}


def quantiles(trace: Trace) -> list[str]:
    """Return the quantiles of a pair's entropies, and how well the small model's tells critical tokens from others: the
    chance that one of these has the higher entropy (AUROC); for a table."""
    cells = []
    for values in (trace.small, trace.large):
        cells += [f"{each:.3g}" for each in (*np.quantile(values, (0.5, 0.8, 0.95)), np.mean(values))]
    apart = auroc(trace.small, trace.critical)
    return [*cells, "–" if apart is None else f"{apart:.2f}"]


def page(found: Mapping[str, Any]) -> list[str]:
    """Write the report."""
    default = SETTINGS["default"]
    slowest = max(value for rows in found["pairs"].values() for value in rows["default"]["time"].values())
    prices = [
        f"{name}, the default catches {report.percent(rows['default']['critical'])} of the critical tokens with "
        f"{report.percent(rows['default']['share'])} of all"
        for name, rows in found["pairs"].items()
        if name in found["traces"]
    ]
    bounds = ", ".join(f"{least_dwell(r):.1f} tokens at {r:g}" for r in RATIOS)
    out = [
        "# Settings of `ead` on pairs that differ in how sure they are",
        "Why the defaults are what they are: they have to be safe with any pair, before anything is known of it. "
        "Both models of a pair read the same texts; what a setting would have done follows from their entropies, and "
        "nothing is generated. *Critical*: the share of the tokens that only the large model would write which the "
        "setting has it write. *Time*: steps of the large model for each token, at a step of the small model of 0.3 "
        f"(in brackets the worst of {', '.join(f'{r:g}' for r in RATIOS)}), hand-overs as under vLLM ({TO_LARGE:g} "
        f"steps to the large, {TO_SMALL:g} to the small model, vllm_steps.md); the large model alone is 1.",
        f"The bound: a run of the small model pays for the hand-overs around it if it has at least {bounds} of a large "
        f"step. With `min_tokens: {default.min_tokens}` and `monitor: active` every run has as many, so that `ead` is "
        f"not slower than the large model alone whatever the entropies are; the slowest default below takes "
        f"{slowest:.2f}. Two engines that share their cores or their GPU with full batches wait for each other, too, "
        "which no setting can exclude: measure under your own load.",
        f"The price: {'; '.join(prices)}. Chance would catch as much as its share; where the default catches hardly "
        "more, the long dwell keeps it from single critical tokens, and only calibration on the pair itself "
        "(`waver calibrate policy ead`) finds a setting that is better than safe.",
    ]
    for name, rows in found["pairs"].items():
        table = [
            [
                label,
                report.percent(each["share"]),
                "–" if each["critical"] is None else report.percent(each["critical"]),
                f"{each['hand_overs']:.1f}",
                f"{each['time']['0.3']:.2f} ({max(each['time'].values()):.2f})",
            ]
            for label, each in rows.items()
        ]
        out += [
            f"## {name[0].upper()}{name[1:]}",
            report.table(("setting", "share large", "critical", "hand-overs in 100 tokens", "time"), table),
        ]
    sides = (f"{side}, {what}" for side in (SMALL, LARGE) for what in ("median", "80 %", "95 %", "mean"))
    head = ("pair", *sides, "AUROC")
    return [
        *out,
        "## Entropies that were read",
        report.table(head, [[name, *quantiles(restored(traces))] for name, traces in found["traces"].items()]),
        "![Entropies of critical tokens and of others](switching.png)",
        "Quantiles over all tokens of the texts, in nats. *AUROC*: how well the small model's entropy tells critical "
        "tokens from others, 0.5 by chance. Worked answers are those of the data set, of which models "
        "are less sure than of their own words.",
    ]


@app.command()
def main(
    context: typer.Context,
    n: Annotated[int, typer.Option(min=2, help="Texts of the simulated and of the bundled pair.")] = 200,
    seed: report.Seed = 70260,
    models: Annotated[
        Path | None, typer.Option(help="Folder with `small` and `large`, another pair to read --texts.")
    ] = None,
    texts: Annotated[Path | None, typer.Option(help="JSONL: `question` and a worked `answer`, as GSM8K's.")] = None,
    texts_n: Annotated[int, typer.Option(min=1, help="How many of them.")] = 10,
    name: Annotated[str, typer.Option(help="What that pair is called in the report.")] = "another pair",
    out: report.Out = report.RESULTS,
) -> None:
    """Try settings of `ead` on stored and simulated entropies: tokens that matter, and time, without generating.

    Writes switching.json, .md and a figure. Two minutes on a core for the bundled pair; a pair of 0.5 and 1.5 billion
    parameters reads ten worked answers in some five.
    """
    if (models is None) != (texts is None):
        raise typer.BadParameter("--models and --texts belong together")
    conditions = report.conditions("switching", dict(context.params))
    with report.progress() as bar:
        found = conditions | asyncio.run(measure(dict(context.params), bar))
    figures.switching({name: restored(traces) for name, traces in found["traces"].items()}, out)
    report.write(out, "switching", found, page(json.loads(json.dumps(report.plain(found)))))


if __name__ == "__main__":
    app()
