"""Run `waver train paraphrases`: write questions in other words with an engine, and look up passages for each wording.

The engine does not see the answer: the paper's prompt showed it, which leaks it into the wordings. OUT is the JSONL
file that `waver train rl --task paraphrases` and `waver bench consistency` read; OUT.parts/ holds what was done so
far.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Callable, Sequence
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
from waver.training.tasks.consistency.options import ParaphraseRun
from waver.training.tasks.consistency.similarity import plain

AGAIN = "Say this question in other words. Keep its meaning, and write the question alone.\n\n{}"
AT_ONCE = 16

console = Console()
Find = Callable[[str], Sequence[str]]
Question = tuple[str, Sequence[str]]
"""A question and its known answers, if there are any."""


def write(config: ModelConfig, find: Find | None, questions: Sequence[Question], run: ParaphraseRun, out: Path) -> int:
    """Write, or go on writing; returns how many questions have all their wordings.

    Args:
        find: from a wording to its passages.

    Raises:
        ValueError: no question was said in enough ways, or `out` holds another run. EngineError: the engine died.
    """
    parts = out.with_name(out.name + ".parts")
    digest = hashlib.sha256(repr([(text, tuple(known)) for text, known in questions]).encode()).hexdigest()
    job.claim(parts, asdict(run) | {"model": config.model, "questions": digest})
    said = asyncio.run(_write_all(config, questions, run, parts / "wordings.jsonl"))
    rows = []
    with counted(console) as bar:
        task = bar.add_task("passages", total=len(questions))
        for (_, known), wordings in zip(questions, said, strict=True):
            bar.advance(task)
            if len(wordings) < run.n:
                continue
            row: dict[str, Any] = {"questions": wordings}
            if find is not None:
                row["passages"] = [list(find(each)) for each in wordings]
            if known:
                row["answer"] = list(known)
            rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    if not rows:
        raise ValueError(f"engine {run.engine!r} said no question in {run.n} ways: try another, or fewer with --n")
    job.replace_file(out, lambda path: path.write_text("".join(rows), encoding="utf-8"))
    left = len(questions) - len(rows)
    console.print(
        f"{len(rows)} questions in {run.n} wordings are in {out}."
        + (f" {left} are left out, which were said in fewer." if left else ""),
        soft_wrap=True,
    )
    return len(rows)


async def _write_all(
    config: ModelConfig, questions: Sequence[Question], run: ParaphraseRun, file: Path
) -> list[list[str]]:
    """Return the wordings of every question, taken from `file` where they stand there already."""
    done = {line["place"]: line["wordings"] for line in job.read_lines(file)}
    missing = [place for place in range(len(questions)) if place not in done]
    if not missing:
        return [done[place] for place in range(len(questions))]
    engine = await asyncio.to_thread(load_engine, run.engine, config)
    free = asyncio.Semaphore(AT_ONCE)

    async def one(place: int, advance: Callable[[], None]) -> None:
        async with free:
            found = await wordings(engine, questions[place][0], place, run)
        job.append_line(file, {"place": place, "wordings": found})
        done[place] = found
        advance()

    try:
        with counted(console) as bar:
            task = bar.add_task("wordings", total=len(questions), completed=len(done))
            await together(*(one(place, lambda: bar.advance(task)) for place in missing))
    finally:
        await engine.aclose()
    return [done[place] for place in range(len(questions))]


async def wordings(engine: Engine, question: str, place: int, run: ParaphraseRun) -> list[str]:
    """Return a question and other wordings of it, `run.n` or fewer, all different in more than case and marks."""
    ids = prompt(engine, AGAIN.format(question), "")
    found, known = [question], {plain(question)}
    for number in range((run.n - 1) * run.tries):
        if len(found) == run.n:
            break
        seed = random.Random(f"paraphrases:{run.seed}:{place}:{number}").getrandbits(32)
        try:
            text, trace = await answer(engine, ids, Sampling(1.0, max_tokens=run.max_tokens, seed=seed, logprobs=False))
        except Unsupported as error:
            raise ValueError(f"question {place + 1}: {error}") from error
        said = next((line.strip() for line in text.rpartition("</think>")[2].splitlines() if line.strip()), "")
        if said and not trace.cut and plain(said) not in known:
            found.append(said)
            known.add(plain(said))
    return found
