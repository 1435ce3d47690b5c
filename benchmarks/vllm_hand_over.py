"""Measure a hand-over between two models under vLLM, in decoding steps of the one that takes over."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from waver.benchmarks.answers import LARGE, SMALL
from waver.benchmarks.random_llama import make_model
from waver.benchmarks.stats import typical
from waver.benchmarks.throughput import alternately
from waver.engines.base import NO_TOKEN, Gate, Sampling
from waver.engines.config import VllmConfig
from waver.engines.vllm.engine import VllmEngine
from waver.engines.vllm.loading import load
from waver.policies.base import Proceed
from waver.policies.job import Job, continuation
from waver.policies.report import Report
from waver.policies.services import Services

SIZES = {SMALL: (256, 4), LARGE: (512, 12)}
"""Width and layers."""
VOCABULARY = 32768
CONTEXTS = {"short": 32, "long": 384}
"""Prompt lengths in tokens."""
SEGMENT, SEGMENTS = 10, 7
"""Tokens between two hand-overs, and how many segments an answer has."""
KEPT, COLD, LIMITED = "gate, cache kept", "gate, cache cold", "limit, cache kept"
"""Cases: the cause of a segment's end, and whether the prefix caches are emptied before each."""


@asynccontextmanager
async def pair(folder: Path, args: Mapping[str, Any]) -> AsyncGenerator[dict[str, VllmEngine], None]:
    """Yield two random models under vLLM, with one tokenizer."""
    engines: dict[str, VllmEngine] = {}
    try:
        for name, (width, layers) in SIZES.items():
            make_model(folder / name, VOCABULARY, width, layers)
            config = VllmConfig(model=str(folder / name), args=dict(args))
            engines[name] = await asyncio.to_thread(load, name, config)
        yield engines
    finally:
        for engine in engines.values():
            await engine.aclose()


async def forget(engine: VllmEngine) -> None:
    """Empty an idle engine's prefix cache."""
    running = engine.model.core.running
    assert running is not None
    if not await running.llm.reset_prefix_cache():
        raise RuntimeError(f"the prefix cache of {engine.name} cannot be emptied")


async def write(job: Job) -> tuple[list[int], list[float]]:
    """Return the tokens of a segment, and when its steps came (seconds; the first is its beginning)."""
    came, tokens = [time.perf_counter()], []
    async with aclosing(Proceed()(job)) as steps:
        async for step in steps:
            came.append(time.perf_counter())
            if step.token != NO_TOKEN:
                tokens.append(step.token)
    return tokens, came


async def hand_over(engines: Mapping[str, VllmEngine], prompt: list[int], kind: str) -> dict[str, float]:
    """Return what the hand-overs to each engine take on average, in that engine's own steps.

    An engine's step is the median time between two tokens of an answer that it writes alone. Then both write an answer
    in turn; what a segment takes beyond its steps is the hand-over.
    """
    sampling = Sampling(temperature=0, max_tokens=SEGMENT * (SEGMENTS + 1), ignore_eos=True)
    job = Job(tuple(prompt), sampling, SMALL, Services(engines), Report())
    step = {}
    for name, engine in engines.items():
        await forget(engine)
        _, came = await write(continuation(job, [], name, max_new=2 * SEGMENT))
        step[name] = float(np.median(np.diff(came[1:])))
    gate = None if kind == LIMITED else Gate(window=1, threshold=0.0, min_tokens=SEGMENT)
    spent: dict[str, list[float]] = {name: [] for name in engines}
    written: list[int] = []
    for number in range(SEGMENTS):
        name = (SMALL, LARGE)[number % 2]
        if kind == COLD:
            await forget(engines[name])
        limit = SEGMENT if gate is None else None
        tokens, came = await write(continuation(job, written, name, gate, max_new=limit))
        if len(tokens) != SEGMENT:
            raise RuntimeError(f"a segment of {SEGMENT} tokens has {len(tokens)}")
        written += tokens
        if number > 1:  # before, an engine has read none of it
            spent[name].append(came[-1] - came[0] - SEGMENT * step[name])
    return {name: float(np.mean(spent[name])) / step[name] for name in engines}


async def hand_overs(folder: Path, args: Mapping[str, Any], runs: int, seed: int, bar: Progress) -> dict[str, Any]:
    """Return costs by context length, kind and direction."""
    rng = random.Random(seed)
    waiting = bar.add_task("hand-overs: starting", total=None)
    async with pair(folder, args) as engines:
        bar.remove_task(waiting)
        task = bar.add_task("hand-overs", total=(runs + 1) * len(CONTEXTS))
        found: dict[str, Any] = {}
        for context, length in CONTEXTS.items():
            costs: dict[str, list[dict[str, float]]] = {kind: [] for kind in (KEPT, COLD, LIMITED)}
            for run in range(-1, runs):  # run -1 warms up
                prompt = [rng.randrange(3, VOCABULARY) for _ in range(length)]
                for kind in (*alternately(run, KEPT, COLD), LIMITED):
                    cost = await hand_over(engines, prompt, kind)
                    if run >= 0:
                        costs[kind].append(cost)
                bar.advance(task)
            found[context] = {
                kind: {name: typical([cost[name] for cost in made]) for name in engines} for kind, made in costs.items()
            }
        found["parameters"] = {name: engine.parameters for name, engine in engines.items()}
    return found
