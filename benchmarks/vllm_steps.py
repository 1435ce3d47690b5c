"""Time a decoding step inside vLLM with gates, entropies and draws against one without, in one engine.

A step is the median time between two tokens of a stream in a full batch; the ways to ask take turns in each run.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import Progress

from waver.benchmarks import report
from waver.benchmarks.processes import descendants, go_first, resident
from waver.benchmarks.random_llama import make_model
from waver.benchmarks.stats import middle, typical
from waver.benchmarks.throughput import alternately
from waver.benchmarks.vllm_hand_over import hand_overs, section
from waver.engines.base import Gate, Sampling
from waver.engines.config import VllmConfig
from waver.engines.vllm.core import Core, Running
from waver.engines.vllm.decoder import Decoder
from waver.engines.vllm.params import KEY, RequestParams
from waver.engines.vllm.ring import BYTES, SLOTS

CONCURRENCIES = {1: 32, 8: 20, 32: 12, 64: 8}
"""Requests at a time, and the tokens of each: short, so that a drift of the machine meets both halves of a pair."""
BATCHES = [1, 8, 32]
FEWEST = 8
"""Tokens of each where more are asked at a time."""
PROMPT = 4
"""Tokens of a prompt: only steps are measured."""
VOCABULARIES = (32768, 131072)
WIDTH, LAYERS = 512, 12
ARGS: dict[str, Any] = {"dtype": "float32", "max_num_seqs": 64, "max_model_len": 512}
PLAIN = "vLLM, greedy"
GATE = Gate(window=5, threshold=1e3)
"""Never fires."""

app = report.command()


@dataclass(frozen=True)
class Way:
    """A kind of request, and `against` which other one its step is held. `bar`: the largest ratio wanted."""

    asks: bool = False
    gate: Gate | None = None
    temperature: float = 0.0
    logprobs: int | None = None
    against: str = PLAIN
    bar: float | None = None


WAYS = {
    PLAIN: Way(),
    "exact entropy, greedy": Way(asks=True, bar=1.03),
    "exact entropy and gate, greedy": Way(asks=True, gate=GATE, bar=1.05),
    "vLLM's logprobs=0, greedy": Way(logprobs=0),
    "vLLM's logprobs=5, greedy": Way(logprobs=5),
    "vLLM, temperature 1": Way(temperature=1.0),
    "exact entropy, gate and seeded draw, temperature 1": Way(
        asks=True, gate=GATE, temperature=1.0, against="vLLM, temperature 1", bar=1.05
    ),
}


class Bench:
    """One engine, asked directly: what vLLM is given is all that differs between two ways."""

    def __init__(self, running: Running, known: int, seed: int) -> None:
        self._running, self._known = running, known
        self._numbers = count(1)
        self._rng = random.Random(seed)

    async def step(self, way: Way, batch: int, tokens: int) -> float:
        """Return seconds between two tokens of a stream, in the median, while `batch` of them are written."""
        times = await asyncio.gather(*(self._stream(way, row, tokens) for row in range(batch)))
        begun, done = max(each[0] for each in times), min(each[-1] for each in times)
        gaps = [gap for each in times for gap in np.diff([at for at in each if begun <= at <= done])]
        return float(np.median(gaps))

    async def _stream(self, way: Way, row: int, tokens: int) -> list[float]:
        """Return when each output of a request came."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        tag = next(self._numbers)
        # The last id is left out: it is what ends a request whose gate fires.
        prompt = [self._rng.randrange(3, self._known - 1) for _ in range(PROMPT)]
        sampling = Sampling(
            way.temperature, max_tokens=tokens, seed=tag, ignore_eos=True, answer_start=PROMPT, logprobs=False
        )
        ask = RequestParams(way.gate, sampling, stop=self._known - 1 if way.gate else None, slot=row, tag=tag)
        params = SamplingParams(
            temperature=0.0 if way.asks else way.temperature,
            logprobs=way.logprobs,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={KEY: ask.encode()} if way.asks else None,
        )
        came, position = [], 0
        async with aclosing(self._running.llm.generate(tokens_input(prompt), params, f"step-{tag}")) as outputs:
            async for output in outputs:
                came.append(time.perf_counter())
                for _ in output.outputs[0].token_ids:
                    if way.asks and self._running.ring.read(row, tag, position) is None:
                        raise RuntimeError("an entropy is missing in the ring buffer")
                    position += 1
        if position != tokens:
            raise RuntimeError(f"an answer of {tokens} tokens has {position}")
        return came

    async def compare(self, batch: int, tokens: int, runs: int, bar: Progress, name: str) -> dict[str, Any]:
        """Return steps of all ways, each side by side with what it is held against: the two take turns in being
        first."""
        task = bar.add_task(f"{name}, {batch} at a time", total=runs + 1)
        held = {each: way.against for each, way in WAYS.items() if way.against != each}
        pairs: dict[str, list[tuple[float, float]]] = {each: [] for each in held}
        for run in range(-1, runs):  # run -1 warms up
            for each, other in held.items():
                took = {one: await self.step(WAYS[one], batch, tokens) for one in alternately(run, each, other)}
                if run >= 0:
                    pairs[each].append((took[each], took[other]))
            bar.advance(task)
        own = [other for each, made in pairs.items() if held[each] == PLAIN for _, other in made]
        return {PLAIN: against(PLAIN, [(step, step) for step in own])} | {
            each: against(each, made) for each, made in pairs.items()
        }


def against(name: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return a way's step (ms), its ratio to what it is held against, and whether that keeps to its bar; `pairs` are
    seconds of both."""
    ratio, bar = typical([mine / other for mine, other in pairs]), WAYS[name].bar
    met = None if bar is None else ratio["median"] <= bar
    return {"step_ms": middle([1000 * mine for mine, _ in pairs]), "ratio": ratio, "met": met}


@asynccontextmanager
async def started(model: Path, args: Mapping[str, Any]) -> AsyncGenerator[Core, None]:
    core = await asyncio.to_thread(Core, model.name, VllmConfig(model=str(model), args=dict(args)))
    try:
        core.attach()
        yield core
    finally:
        await asyncio.to_thread(core.close)


def worker() -> int:
    """Return the process with the logits: the one worker among this process's descendants."""
    (found,) = (process for process, name in descendants(os.getpid()).items() if name.startswith("VLLM::Worker"))
    return found


async def memory(bench: Bench, vocabulary: int, batch: int) -> dict[str, int]:
    """Measure the extra state in bytes: the tables in the worker for the largest batch, the ring buffer, and what the
    worker grew by when such a batch asked for everything after one that asked for nothing."""
    decoder = Decoder(batch, vocabulary, vocabulary, torch.device("cpu"))
    for _ in range(2):
        await bench.step(WAYS["vLLM, temperature 1"], batch, 8)
    before = resident(worker())
    for _ in range(2):
        await bench.step(WAYS["exact entropy, gate and seeded draw, temperature 1"], batch, 8)
    grown = resident(worker()) - before
    return {"tables": decoder.nbytes, "ring buffer": BYTES, "grown": grown}


async def measure(settings: Mapping[str, Any], bar: Progress) -> dict[str, Any]:
    quick, runs = settings["quick"], settings["runs"]
    batches = [batch for batch in settings["batches"] if not quick or batch <= 32]
    args = ARGS | {"enforce_eager": settings["eager"], "max_num_seqs": max(ARGS["max_num_seqs"], *settings["batches"])}
    found: dict[str, Any] = {"args": args, "client_first": go_first(), "vocabularies": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for vocabulary in VOCABULARIES[: 1 if quick else None]:
            folder = Path(scratch) / str(vocabulary)
            parameters = make_model(folder, vocabulary, WIDTH, LAYERS)
            waiting = bar.add_task(f"vocabulary {vocabulary}: starting", total=None)
            async with started(folder, args) as core:
                bar.remove_task(waiting)
                assert core.running is not None
                bench = Bench(core.running, vocabulary, settings["seed"])
                held = await memory(bench, vocabulary, args["max_num_seqs"])  # first: the worker has not grown yet
                found["vocabularies"][vocabulary] = {
                    "parameters": parameters,
                    "memory": held,
                    "steps": {
                        batch: await bench.compare(
                            batch, CONCURRENCIES.get(batch, FEWEST), runs, bar, f"vocabulary {vocabulary}"
                        )
                        for batch in batches
                    },
                }
        found["hand_over"] = await hand_overs(Path(scratch), args, max(runs // 2, 1), settings["seed"], bar)
    return found


def page(numbers: Mapping[str, Any]) -> list[str]:
    settings = numbers["settings"]
    cases = [
        (vocabulary, batch, name, case)
        for vocabulary, found in numbers["vocabularies"].items()
        for batch, steps in found["steps"].items()
        for name, case in steps.items()
    ]
    missed = [
        f"{name}, vocabulary {vocabulary}, {batch} at a time ({case['ratio']['median']:.3f})"
        for vocabulary, batch, name, case in cases
        if case["met"] is False
    ]
    bars = "; ".join(f"{name} ≤ {way.bar:.2f}" for name, way in WAYS.items() if way.bar is not None)
    return [
        "# What vLLM's steps cost with gates and entropies",
        "One engine in its own processes, asked with the same stream of requests, with and without our arguments: "
        f"the median of {settings['runs']} ratios of one decoding step to vLLM's own (same temperature) right before "
        "or after it, with its 95 % interval (bootstrap). A step is the median time between two tokens of a stream "
        "while the batch is full. All rows of a batch ask the same; the gate never fires; each entropy is read from "
        f"the ring buffer as it comes.{report.client_first(numbers)}",
        f"Wanted, in the median: {bars}. " + (f"**Not met**: {'; '.join(missed)}." if missed else "All of it is met."),
        "![Steps](vllm_steps.png)",
        *(part for vocabulary, found in numbers["vocabularies"].items() for part in _steps(vocabulary, found)),
        *section(numbers["hand_over"]),
        *_memory(numbers["vocabularies"], numbers["args"]["max_num_seqs"]),
        f"vLLM's arguments: {', '.join(f'{key}={value}' for key, value in numbers['args'].items())}; the others as "
        "Waver sets them. On a CPU vLLM leaves one core to everything but its worker.",
    ]


def _steps(vocabulary: int, found: Mapping[str, Any]) -> list[str]:
    batches = list(found["steps"])
    rows = []
    for name in WAYS:
        cells = []
        for batch in batches:
            case = found["steps"][batch][name]
            mark = " ✗" if case["met"] is False else ""
            cells += [f"{case['step_ms']['median']:.2f} ms", f"{report.ratio(case['ratio'])}{mark}"]
        rows.append([name, *cells])
    head = ("all rows ask for", *(word for batch in batches for word in (f"{batch} at a time", "ratio")))
    return [
        f"## Vocabulary {vocabulary:,}",
        f"A Llama of {found['parameters'] / 1e6:.0f} M parameters with random weights.",
        report.table(head, rows),
    ]


def _memory(vocabularies: Mapping[Any, Any], batch: int) -> list[str]:
    rows = [
        [
            f"{vocabulary:,}",
            *(f"{found['memory'][part] / 2**20:.1f} MiB" for part in ("tables", "ring buffer", "grown")),
        ]
        for vocabulary, found in vocabularies.items()
    ]
    return [
        "## Memory",
        f"For a batch of {batch}: the tables of windows and crossings in the worker; the ring buffer, shared with the "
        "server; and by how much the worker's resident memory grew when all rows asked for everything, after vLLM had "
        "drawn for as many rows by itself (what it has touched of the ring buffer is in it).",
        report.table(("vocabulary", "tables", "ring buffer", "growth of the worker"), rows),
    ]


@app.command()
def main(
    context: typer.Context,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each comparison, after one to warm up.")] = 12,
    eager: Annotated[bool, typer.Option("--eager", help="vLLM without compiling: it starts sooner.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="One vocabulary, and at most 32 requests at a time.")] = False,
    batches: Annotated[list[int], typer.Option(min=1, max=SLOTS, help="Requests at a time.")] = BATCHES,
    seed: Annotated[int, typer.Option(help="Seed of prompts and draws.")] = 1,
    out: report.Out = report.RESULTS,
) -> None:
    """Measure gates and entropies inside vLLM: what they add to a step, what a hand-over costs, what memory they take.

    Needs vLLM. Writes vllm_steps.json, .md, .png and .svg. About 30 minutes on two cores that are otherwise idle.
    """
    report.need_extra()
    report.need_vllm()
    from waver.benchmarks.vllm_figures import steps as plot

    settings = dict(context.params)
    conditions = report.conditions("vllm-steps", settings)
    with report.progress() as bar:
        found = conditions | asyncio.run(measure(settings, bar))
    plot(found, [name for name, way in WAYS.items() if way.against != name], out)
    report.write(out, "vllm_steps", found, page(found))


if __name__ == "__main__":
    app()
