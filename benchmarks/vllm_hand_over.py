"""Measure a hand-over between two models under vLLM, in decoding steps of the one that takes over, and compute how
long a run of the small model must be to pay for the two around it."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from waver.benchmarks import report
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
KEPT, COLD, LAGGED, LIMITED = "gate, cache kept", "gate, cache cold", "lagged gate, cache kept", "limit, cache kept"
"""Cases: the cause of a segment's end, and whether the prefix caches are emptied before each."""
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Steps of a small model in steps of a large one, for the break-even."""
ARGS = {
    "dtype": "float32", "max_num_seqs": 8, "max_model_len": 640, "max_num_batched_tokens": 1024, "enforce_eager": True,
}  # fmt: skip

app = report.command()


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
    timing: Any = "lagged" if kind == LAGGED else "eager"
    gate = None if kind == LIMITED else Gate(window=1, threshold=0.0, min_tokens=SEGMENT, timing=timing)
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
            costs: dict[str, list[dict[str, float]]] = {kind: [] for kind in (KEPT, COLD, LAGGED, LIMITED)}
            for run in range(-1, runs):  # run -1 warms up
                prompt = [rng.randrange(3, VOCABULARY) for _ in range(length)]
                for kind in (*alternately(run, KEPT, COLD), *alternately(run, LAGGED, LIMITED)):
                    cost = await hand_over(engines, prompt, kind)
                    if run >= 0:
                        costs[kind].append(cost)
                bar.advance(task)
            found[context] = {
                kind: {name: typical([cost[name] for cost in made]) for name in engines} for kind, made in costs.items()
            }
        found["parameters"] = {name: engine.parameters for name, engine in engines.items()}
    return found


def break_even(to_small: float, to_large: float, r: float) -> float:
    """Return the tokens that a run of the small model needs so that it saves what the hand-overs around it cost.

    Args:
        to_small, to_large: a hand-over, in steps of the engine that takes over. r: a step of the small model, in steps
            of the large one.
    """
    return (to_large + to_small * r) / (1 - r)


def section(found: Mapping[str, Any]) -> list[str]:
    """Write what was measured, what it is made of, and the break-even."""
    names = list(found["parameters"])
    kinds = [kind for kind in (KEPT, COLD, LAGGED, LIMITED) if kind in found["short"]]
    rows = [
        [
            f"{context} prompt ({CONTEXTS[context]} tokens), {kind}",
            *(report.ratio(found[context][kind][n]) for n in names),
        ]
        for context in CONTEXTS
        for kind in kinds
    ]
    sizes = " and ".join(f"{found['parameters'][name] / 1e6:.0f} M" for name in names)
    costs = {kind: found["short"][kind] for kind in kinds}
    tokens = [
        [kind, *(f"{break_even(costs[kind][SMALL]['median'], costs[kind][LARGE]['median'], r):.1f}" for r in RATIOS)]
        for kind in kinds
        if kind not in (COLD, LIMITED)
    ]
    return [
        "## Handing over",
        f"Two engines ({sizes} parameters, vocabulary {VOCABULARY:,}) write one answer in turn, {SEGMENT} tokens each. "
        "One hand-over, in decoding steps of the engine that takes over (alone, one sequence): what a segment takes "
        "beyond its tokens' steps.",
        report.table(("", *(f"to {name}" for name in names)), rows),
        "*Kept*: as it runs, vLLM's prefix cache holds what an engine has read, in whole blocks of 32 tokens. *Cold*: "
        "the cache is emptied before each hand-over.",
        "What it is made of: a *limit* costs what every request to vLLM costs, whatever ends the one before: the way "
        "from the server to the engine core and back, scheduling, the look-up of the prefix, and reading what the "
        "other engine wrote together with the rest of a block that was not full. A gate costs one step more, the pass "
        "in which it fires: its token is the other engine's to write. A *lagged* gate fires with a token that stands; "
        "its segment ends when the token comes, but the rule then decides a token late.",
        "The break-even: a run of the small model pays for the two hand-overs around it if it has at least so many "
        "tokens, by a step of the small model in steps of the large one:",
        report.table(("", *(f"{r:g}" for r in RATIOS)), tokens),
        "So `ead` keeps to 10 tokens between hand-overs unless told otherwise; `min_tokens` below the break-even costs "
        "more time than it saves, whatever it does for the answer.",
    ]


@app.command()
def main(
    context: typer.Context,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each case, after one to warm up.")] = 6,
    seed: Annotated[int, typer.Option(help="Seed of prompts.")] = 1,
    out: report.Out = report.RESULTS,
) -> None:
    """Measure what a hand-over between two engines under vLLM costs, by what ends a segment, and the break-even.

    Needs vLLM. Writes vllm_hand_over.json and .md. Three minutes on two cores that are otherwise idle.
    """
    report.need_vllm()
    conditions = report.conditions("vllm-hand-over", dict(context.params))
    with report.progress() as bar, tempfile.TemporaryDirectory() as scratch:
        found = conditions | {"hand_over": asyncio.run(hand_overs(Path(scratch), ARGS, runs, seed, bar))}
    report.write(out, "vllm_hand_over", found, ["# What a hand-over costs under vLLM", *section(found["hand_over"])])


if __name__ == "__main__":
    app()
