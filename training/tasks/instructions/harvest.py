"""Run `waver train instructions`: sort instructions by how well an engine follows them, and keep its best answers.

Stages of Light-IF (arXiv 2508.03178): instructions that the engine follows always (pass) teach nothing; easy ones come
first in reinforcement learning, hard ones second; answers that are right, deep and fluent are the cold start of
Entropy-SFT. The filters' thresholds are not in the paper: deep is longer than half of all right answers, fluent
repeats few runs of four words and was not cut.

The folder gets `hard.jsonl`, `easy.jsonl`, `pass.jsonl` (for `waver train rl --task instructions`), `cold_start.jsonl`
(for `waver tune`), `report.json`, `answers.jsonl` and `run.json`.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from waver import job
from waver.concurrency import together
from waver.engines import ModelConfig, load_engine
from waver.engines.base import Engine, Sampling, Unsupported
from waver.progress import counted
from waver.training.probe.sampling import answer, prompt
from waver.training.tasks.instructions.families import parse
from waver.training.tasks.instructions.generate import instructions
from waver.training.tasks.instructions.options import InstructionRun, Sifting
from waver.training.tasks.instructions.reward import ALL, follow

RUN_OF_WORDS = 4
LEVELS = ("hard", "easy", "pass")

console = Console()


def harvest(config: ModelConfig, run: InstructionRun, sifting: Sifting, out: Path) -> dict[str, Any]:
    """Ask, or go on asking; sort and write everything into `out`. Returns the report.

    Raises:
        ValueError: this cannot be done, or `out` holds another run. EngineError: the engine died.
    """
    if run.rules[0] > run.rules[1]:
        raise ValueError(f"--rules are the fewest and the most constraints, not {run.rules[0]} and {run.rules[1]}")
    if sifting.hard_rate >= sifting.pass_rate:
        raise ValueError("--hard-rate must be below --pass-rate, or no instruction is easy")
    rows = instructions(run.n, run.seed, run.rules, run.think)
    job.claim(out, asdict(run) | {"model": config.model})
    answers = asyncio.run(_ask_all(config, run, rows, sifting.at_once, out / "answers.jsonl"))
    levels = [level(each, sifting) for each in answers]
    for name in LEVELS:
        kept = [row for row, of in zip(rows, levels, strict=True) if of == name]
        _write(out / f"{name}.jsonl", kept)
    kept = cold_start(rows, answers, sifting)
    _write(out / "cold_start.jsonl", kept)
    said = [each for one in answers for each in one]
    report = {
        "instructions": {name: levels.count(name) for name in LEVELS},
        "answers": len(said),
        "right": sum(each["score"] >= ALL for each in said) / len(said),
        "constraints_met": sum(each["met"] for each in said) / sum(each["of"] for each in said),
        "cut": sum(each["cut"] for each in said) / len(said),
        "cold_start": len(kept),
    }
    text = json.dumps(report, indent=1) + "\n"
    job.replace_file(out / "report.json", lambda path: path.write_text(text, encoding="utf-8"))
    console.print(", ".join(f"{count} {name}" for name, count in report["instructions"].items()))
    console.print(f"{len(kept)} answers for a cold start are in {out / 'cold_start.jsonl'}.", soft_wrap=True)
    return report


def level(answers: Sequence[Mapping[str, Any]], sifting: Sifting) -> str:
    """Return `hard`, `easy` or `pass`, by the share of right answers."""
    rate = sum(each["score"] >= ALL for each in answers) / len(answers)
    if rate >= sifting.pass_rate:
        return "pass"
    return "hard" if rate <= sifting.hard_rate else "easy"


def cold_start(
    rows: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[Mapping[str, Any]]], sifting: Sifting
) -> list[dict[str, str]]:
    """Return the deepest answer to each question that is right, deep and fluent; the deepest of all first."""
    right = [each for one in answers for each in one if each["score"] >= ALL]
    if not right:
        return []
    lengths = sorted(each["tokens"] for each in right)
    least = lengths[min(int(sifting.deep * len(lengths)), len(lengths) - 1)]
    found = []
    for row, said in zip(rows, answers, strict=True):
        good = [
            each
            for each in said
            if each["score"] >= ALL
            and each["tokens"] >= least
            and not each["cut"]
            and repeated(each["text"]) <= sifting.repeated
        ]
        if good:
            best = max(good, key=lambda each: each["tokens"])
            found.append((best["tokens"], {"question": row["question"], "answer": best["text"]}))
    found.sort(key=lambda each: -each[0])
    return [row for _, row in found[: sifting.cold_start]]


def repeated(text: str) -> float:
    """Return the share of runs of four words that have come before."""
    words = text.split()
    runs = [tuple(words[i : i + RUN_OF_WORDS]) for i in range(len(words) - RUN_OF_WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


async def _ask_all(
    config: ModelConfig, run: InstructionRun, rows: Sequence[Mapping[str, Any]], at_once: int, file: Path
) -> list[list[dict[str, Any]]]:
    """Return the answers to every instruction, taken from `file` where they stand there already."""
    done = {line["place"]: line["answers"] for line in job.read_lines(file)}
    missing = [place for place in range(len(rows)) if place not in done]
    if not missing:
        return [done[place] for place in range(len(rows))]
    engine = await asyncio.to_thread(load_engine, run.engine, config)
    free = asyncio.Semaphore(at_once)
    begun = asyncio.Semaphore(1 + 2 * at_once // run.samples)  # keeps the engine full, and loses little when stopped

    async def one(place: int, advance: Callable[[], None]) -> None:
        async with begun:
            found = await _ask(engine, run, rows[place], place, free)
        job.append_line(file, {"place": place, "answers": found})
        done[place] = found
        advance()

    try:
        with counted(console) as bar:
            task = bar.add_task("asking", total=len(rows), completed=len(done))
            await together(*(one(place, lambda: bar.advance(task)) for place in missing))
    except asyncio.CancelledError:
        console.print(f"Stopped after {len(done)} of {len(rows)}; the same command goes on from here.")
        raise
    finally:
        await engine.aclose()
    return [done[place] for place in range(len(rows))]


async def _ask(
    engine: Engine, run: InstructionRun, row: Mapping[str, Any], place: int, free: asyncio.Semaphore
) -> list[dict[str, Any]]:
    """Return the answers to one instruction, with their scores."""
    ids = prompt(engine, row["question"], "")
    constraints = parse(row["constraints"])

    async def draw(number: int) -> dict[str, Any]:
        seed = random.Random(f"instructions:{run.seed}:{place}:{number}").getrandbits(32)
        how = Sampling(run.temperature, max_tokens=run.max_tokens, seed=seed, logprobs=False)
        async with free:
            try:
                text, trace = await answer(engine, ids, how)
            except Unsupported as error:
                raise ValueError(f"instruction {place + 1}: {error}") from error
        found = follow(text, constraints, run.think)
        return {"text": text, **asdict(found), "tokens": trace.tokens, "entropy": trace.entropy, "cut": trace.cut}

    return await asyncio.gather(*(draw(number) for number in range(run.samples)))


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    job.replace_file(file, lambda path: path.write_text(text, encoding="utf-8"))
