"""Measure what the embedded engine gains by batching, what a hand-over costs, and what measuring entropy costs.

Every claim is a ratio of two times taken in the same process in alternation, so that it does not hang on the machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import Progress

from waver.benchmarks import report
from waver.benchmarks.answers import LARGE, SMALL, load_pair
from waver.benchmarks.stats import middle
from waver.engines.base import Engine, Sampling, Step
from waver.engines.transformers import TransformersEngine
from waver.policies.base import Proceed
from waver.policies.job import Job, continuation
from waver.policies.report import Report
from waver.policies.services import Services
from waver.training.pair.world import documents, draw

TOGETHER = 16
BAR = 5.0
"""`TOGETHER` requests at once, against the same one after another: at least so many times the tokens a second."""
CONTEXTS = {"short": 32, "long": 768}
"""Prompt lengths in tokens at which hand-overs are timed."""

app = report.command()


def forget(*engines: Engine) -> None:
    """Empty the idle engines' KV caches, so that no run profits from one before it."""
    for engine in engines:
        assert isinstance(engine, TransformersEngine)
        engine._slots.held[:] = [[] for _ in engine._slots.held]


async def _decode(engine: Engine, prompt: Sequence[int], sampling: Sampling) -> int:
    """Return tokens of one answer."""
    async with aclosing(engine.generate(prompt, sampling)) as steps:
        return sum([1 async for _ in steps])


async def speed(engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling, together: bool) -> float:
    """Return tokens a second from empty caches, with all prompts at once or one after another."""
    forget(engine)
    begun = time.perf_counter()
    if together:
        made = sum(await asyncio.gather(*(_decode(engine, prompt, sampling) for prompt in prompts)))
    else:
        made = sum([await _decode(engine, prompt, sampling) for prompt in prompts])
    return made / (time.perf_counter() - begun)


def _prompts(engine: Engine, seed: int) -> list[list[int]]:
    return [engine.tokens.chat([{"role": "user", "content": i.prompt}]) for i in draw("arithmetic", seed, TOGETHER)]


def alternately(run: int, first: str, second: str) -> tuple[str, str]:
    """Return which of two comes first in a run, so that a drift of the machine favours neither."""
    return (first, second) if run % 2 == 0 else (second, first)


async def concurrency(engine: Engine, runs: int, tokens: int, seed: int, advance: Callable[[], None]) -> dict[str, Any]:
    """Measure 16 requests at once against one after another: answers of one length, and answers as they come."""
    found = {}
    for lengths, sampling in {
        "equal": Sampling(temperature=0, max_tokens=tokens, ignore_eos=True),
        "natural": Sampling(temperature=0, max_tokens=2 * tokens),
    }.items():
        ratios, rates = [], []
        for run in range(-1, runs):  # run -1 warms up
            prompts = _prompts(engine, seed + run)
            rate = {
                order: await speed(engine, prompts, sampling, order == "together")
                for order in alternately(run, "together", "apart")
            }
            if run >= 0:
                ratios.append(rate["together"] / rate["apart"])
                rates.append(rate)
            advance()
        found[lengths] = middle(ratios) | {"met": bool(np.median(ratios) >= BAR), "tokens_per_second": rates}
    return found


@contextmanager
def unmeasured(engine: Engine) -> Iterator[None]:
    """Yield the engine without its entropies and logprobs: what drawing tokens takes by itself."""
    assert isinstance(engine, TransformersEngine)

    def bare(logits: torch.Tensor, drawn: torch.Tensor, top: Sequence[int], entropy: object = None) -> list[Step]:
        return [Step(token, 0.0, 0.0, engine.name) for token in drawn.tolist()]

    engine._measure = bare  # type: ignore[method-assign]
    try:
        yield
    finally:
        del engine._measure


async def measuring(engine: Engine, runs: int, tokens: int, seed: int, advance: Callable[[], None]) -> dict[str, Any]:
    """Return throughput of 16 requests with the measurement, as a part of that without."""
    sampling = Sampling(temperature=0, max_tokens=tokens, ignore_eos=True)
    ratios = []
    for run in range(-1, runs):
        prompts, rate = _prompts(engine, seed + run), {}
        for order in alternately(run, "measured", "bare"):
            if order == "measured":
                rate[order] = await speed(engine, prompts, sampling, together=True)
            else:
                with unmeasured(engine):
                    rate[order] = await speed(engine, prompts, sampling, together=True)
        if run >= 0:
            ratios.append(rate["measured"] / rate["bare"])
        advance()
    return middle(ratios)


async def _segment(job: Job, written: list[int], engine: str, tokens: int) -> float:
    """Return seconds that an engine takes to write so many more tokens of an answer."""
    begun = time.perf_counter()
    async with aclosing(Proceed()(continuation(job, written, engine, max_new=tokens))) as steps:
        written += [step.token async for step in steps]
    return time.perf_counter() - begun


async def hand_over(
    engines: Mapping[str, Engine], prompt: Sequence[int], tokens: int, segment: int, warm: bool
) -> dict[str, float]:
    """Measure what one hand-over to each engine costs, in that engine's own decoding steps.

    An answer of `tokens` tokens is written by each engine alone, which gives its time for one step; then by both in
    turn, `segment` tokens each. What a segment takes beyond its steps is the hand-over. `warm`: caches are kept;
    otherwise the engine that takes over has to read everything again.
    """
    job = Job(
        tuple(prompt), Sampling(temperature=0, max_tokens=tokens, ignore_eos=True), SMALL, Services(engines), Report()
    )
    forget(*engines.values())
    step = {}
    for name in engines:
        await _segment(job, [], name, 1)  # reads the prompt
        step[name] = await _segment(job, [], name, tokens) / tokens
    forget(*engines.values())
    for name in engines:
        await _segment(job, [], name, 1)
    spent: dict[str, list[float]] = {name: [] for name in engines}
    written: list[int] = []
    for i in range(tokens // segment):
        name = (SMALL, LARGE)[i % 2]
        if not warm:
            forget(engines[name])
        took = await _segment(job, written, name, segment)
        if i > 0:  # nothing was handed over to the first
            spent[name].append(took - segment * step[name])
    return {name: float(np.mean(spent[name])) / step[name] for name in engines}


async def hand_overs(
    engines: Mapping[str, Engine], runs: int, tokens: int, segment: int, advance: Callable[[], None]
) -> dict[str, Any]:
    """Return costs by context length, cache and direction."""
    ids = [token for document in documents() for token in engines[SMALL].tokens.encode(document.text)]
    found: dict[str, Any] = {}
    for context, length in CONTEXTS.items():
        costs: dict[str, list[dict[str, float]]] = {"kept": [], "cold": []}
        for run in range(-1, runs):
            prompt = ids[(run + 1) * 7 :][:length]
            for cache in alternately(run, "kept", "cold"):
                cost = await hand_over(engines, prompt, tokens, segment, warm=cache == "kept")
                if run >= 0:
                    costs[cache].append(cost)
            advance()
        found[context] = {
            cache: {name: middle([cost[name] for cost in made]) for name in engines} for cache, made in costs.items()
        }
    return found


async def measure(settings: Mapping[str, Any], bar: Progress) -> dict[str, Any]:
    runs, tokens, segment, seed = (settings[key] for key in ("runs", "tokens", "segment", "seed"))
    async with load_pair(settings["models"]) as engines:
        found: dict[str, Any] = {"concurrency": {}, "measuring": {}}
        for name, engine in engines.items():
            task = bar.add_task(f"{name}: {TOGETHER} at once", total=2 * (runs + 1))
            found["concurrency"][name] = await concurrency(engine, runs, tokens, seed, lambda t=task: bar.advance(t))  # type: ignore[misc]
            task = bar.add_task(f"{name}: measuring", total=runs + 1)
            found["measuring"][name] = await measuring(engine, runs, tokens, seed, lambda t=task: bar.advance(t))  # type: ignore[misc]
        task = bar.add_task("hand-overs", total=len(CONTEXTS) * (runs + 1))
        found["hand_over"] = await hand_overs(engines, runs, tokens, segment, lambda: bar.advance(task))
        found["parameters"] = {name: engine.parameters for name, engine in engines.items()}
    return found


def _spread(value: Mapping[str, Any], digits: int = 1) -> str:
    return f"{value['median']:.{digits}f} ({value['lowest']:.{digits}f}–{value['highest']:.{digits}f})"


def page(numbers: Mapping[str, Any]) -> list[str]:
    settings = numbers["settings"]
    together = numbers["concurrency"]
    met = {name: cases["equal"]["met"] for name, cases in together.items()}
    natural = {name: cases["natural"]["met"] for name, cases in together.items()}
    shown = {True: "yes", False: "**no**"}
    return [
        "# Decoding together, handing over, measuring",
        f"Each number is a ratio of times taken in alternation in one process: the median of {settings['runs']} runs, "
        "with the lowest and the highest. Caches are empty at the start of each run, unless said otherwise.",
        f"**At least {BAR:g} times the throughput with {TOGETHER} requests at once**: "
        + "; ".join(
            f"{name}: {shown[met[name]]} with answers of one length, {shown[natural[name]]} with answers as they come"
            for name in together
        )
        + ".",
        "![Throughput and hand-overs](throughput.png)",
        report.table(
            (f"{TOGETHER} at once against one after another", *together),
            [
                [f"answers of {settings['tokens']} tokens", *(_spread(c["equal"]) for c in together.values())],
                ["answers as they come (short ones leave early)", *(_spread(c["natural"]) for c in together.values())],
            ],
        ),
        f"One hand-over, in decoding steps of the engine that takes over (alone, one sequence); it comes after every "
        f"{settings['segment']} tokens:",
        report.table(
            ("prompt, cache", *(f"to {name}" for name in together)),
            [
                [f"{context} ({CONTEXTS[context]} tokens), {cache}", *(_spread(case[name], 2) for name in together)]
                for context, cases in numbers["hand_over"].items()
                for cache, case in cases.items()
            ],
        ),
        "*Kept*: as the engine does it, each engine keeps its KV cache and reads what it missed. *Cold*: the caches "
        "are emptied before each hand-over, as if they were not kept.",
        f"Throughput of {TOGETHER} requests with entropies and logprobs, as a part of that without: "
        + ", ".join(f"{name} {_spread(value, 3)}" for name, value in numbers["measuring"].items())
        + ".",
    ]


@app.command()
def main(
    context: typer.Context,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each comparison, after one to warm up.")] = 7,
    tokens: Annotated[int, typer.Option(min=8, max=200, help="Tokens of an answer.")] = 64,
    segment: Annotated[int, typer.Option(min=1, help="Tokens between two hand-overs.")] = 4,
    seed: report.Seed = 30260,
    models: report.Models = None,
    out: report.Out = report.RESULTS,
) -> None:
    """Measure 16 requests at once against one after another, what a hand-over costs; what measuring entropy costs.

    Ratios only, from runs that alternate. Writes throughput.json, .md, .png and .svg. With the bundled pair about 5
    minutes on two cores.
    """
    report.need_extra()
    if tokens < 3 * segment:
        raise typer.BadParameter("an answer needs at least three segments")
    from waver.benchmarks.figures import throughput as plot

    settings = dict(context.params)
    conditions = report.conditions("throughput", settings)
    with report.progress() as bar:
        found = conditions | asyncio.run(measure(settings, bar))
    plot(found, out)
    report.write(out, "throughput", found, page(found))


if __name__ == "__main__":
    app()
