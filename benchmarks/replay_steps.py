"""Decode with one checkout's engine, for `waver bench replay speed`, in a process of its own.

Each line of standard input asks for a batch; each line of standard output tells the seconds of a step. It imports
nothing but what that checkout has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

PROMPT = 16
"""Tokens of a prompt."""


def load(prefix: str, backend: str, model: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return an engine, and the module with `Sampling` and `Gate`; `prefix` is what a checkout's imports begin with."""
    engines = import_module(f"{prefix}engines")
    kinds = {"transformers": engines.TransformersConfig, "vllm": engines.VllmConfig}
    config = kinds[backend](model=str(model), **options)
    return engines.load_engine("large", config), import_module(f"{prefix}engines.base")


async def stream(engine: Any, prompt: list[int], sampling: Any) -> list[float]:
    """Return the arrival time of each token of an answer."""
    async with contextlib.aclosing(engine.generate(prompt, sampling)) as steps:
        came = [time.perf_counter() async for _ in steps]
    if len(came) != sampling.max_tokens:
        raise RuntimeError(f"an answer of {sampling.max_tokens} tokens has {len(came)}")
    return came


async def step(engine: Any, base: Any, asked: dict[str, Any]) -> float:
    """Return seconds of a decoding step while the whole batch is being written."""
    rng = random.Random(asked["seed"])
    known = min(engine.vocabulary, engine.tokens.vocab_size)
    prompts = [[rng.randrange(3, known) for _ in range(PROMPT)] for _ in range(asked["rows"])]
    samplings = [
        base.Sampling(
            temperature=asked["temperature"],
            max_tokens=asked["tokens"],
            seed=row,
            ignore_eos=True,
            gate=base.Gate(window=5, threshold=1e3) if asked["gate"] else None,  # never fires
        )
        for row in range(asked["rows"])
    ]
    times = await asyncio.gather(*(stream(engine, *each) for each in zip(prompts, samplings, strict=True)))
    begun, done = max(each[0] for each in times), min(each[-1] for each in times)
    written = sum(begun < at <= done for each in times for at in each) / len(times)
    return (done - begun) / written


async def serve(engine: Any, base: Any, answers: Any) -> None:
    print(json.dumps("ready"), file=answers, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await step(engine, base, json.loads(line))), file=answers, flush=True)
    await engine.aclose()


def main() -> None:
    settings = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed, by vLLM's processes too, goes to standard error
    engine, base = load(settings["prefix"], settings["backend"], Path(settings["model"]), settings["options"])
    asyncio.run(serve(engine, base, answers))


if __name__ == "__main__":
    main()
