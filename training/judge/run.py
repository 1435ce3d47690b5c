"""Run `waver train judge`: runs of a live server, judged by their answers, become a judge of entropy traces.

The folder holds the judge (`judge.safetensors`, `judge.json`), `README.md` with plots, `runs.jsonl` (the features of
every run) and `run.json`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from waver import job
from waver.concurrency import together
from waver.engines.fingerprint import Fingerprint
from waver.engines.judge import Convention, Judge, Record
from waver.progress import counted
from waver.training.judge import report
from waver.training.judge.evaluate import evaluate
from waver.training.judge.fit import PAPER, fit, held_out, tabulate
from waver.training.probe.sampling import judge as right_ones
from waver.training.tasks.rewards import Reward

FEW = 200
"""With fewer questions a judge is mostly chance."""
Row = Mapping[str, Any]
Ask = Callable[[str, int], Awaitable[dict[str, Any]]]
"""From a question and a seed to the `selection` of a report."""

console = Console()


@dataclass(frozen=True)
class JudgeRun:
    """Everything that the runs depend on. A stopped run goes on only as the same one."""

    model: str
    questions: str
    scorer: str
    policy: dict[str, Any]
    max_tokens: int
    seed: int


def train(
    ask: Ask, rows: Sequence[Row], reward: Reward, run: JudgeRun, at_once: int, out: Path, notes: Console = console
) -> None:
    """Draw runs, or go on drawing; fit on them and write everything into `out`.

    Raises:
        ValueError: this cannot be done, or `out` holds another run; the message is for the user.
    """
    if len(rows) < FEW:
        notes.print(f"{len(rows)} questions are few: below {FEW} a judge is mostly chance.", soft_wrap=True)
    digest = hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()
    job.claim(out, asdict(run) | {"rows": len(rows), "sha256": digest})
    lines = asyncio.run(_draw(ask, rows, reward, run.seed, at_once, out / "runs.jsonl", notes))
    origin = _origin(lines)
    table, right, names = tabulate(lines)
    fitted = fit(table.reshape(-1, len(names)), right.ravel().tolist(), names)
    found = evaluate(lines, held_out(table, right, names))
    about = {
        "questions": len(rows),
        "asked": run.questions,
        "scorer": run.scorer,
        "trees": asdict(PAPER),
        **found.about,
    }
    record = Record(
        model=run.model,
        convention=Convention.model_validate({**origin["convention"], "beside": tuple(origin["convention"]["beside"])}),
        features=fitted.names,
        models={role: Fingerprint.model_validate(each) for role, each in origin["models"].items()},
        about=about,
    )
    Judge(fitted.trees, fitted.medians, record).save(out)
    report.write(out, record, found)
    notes.print(f"The judge is in {out}. How it came about: {out / 'README.md'}", soft_wrap=True)


async def _draw(
    ask: Ask, rows: Sequence[Row], reward: Reward, seed: int, at_once: int, file: Path, notes: Console
) -> list[dict[str, Any]]:
    """Return a line for each question, taken from `file` where it stands there already."""
    done = {line["place"]: line for line in job.read_lines(file)}
    free = asyncio.Semaphore(at_once)

    async def one(place: int, advance: Callable[[], None]) -> None:
        async with free:
            told = await ask(rows[place]["question"], seed + place)
        texts = [each["text"] for each in told["runs"]]
        right = await asyncio.to_thread(right_ones, reward, rows[place], texts)
        kept = ("features", "answer", "entropy", "tokens")
        runs = [{"right": ok, **{key: each[key] for key in kept}} for ok, each in zip(right, told["runs"], strict=True)]
        line = {"place": place, "convention": told["convention"], "models": told["models"], "runs": runs}
        _origin([*list(done.values())[:1], line])
        job.append_line(file, line)
        done[place] = line
        advance()

    with counted(notes) as bar:
        task = bar.add_task("drawing", total=len(rows), completed=len(done))
        try:
            await together(*(one(i, lambda: bar.advance(task)) for i in range(len(rows)) if i not in done))
        except asyncio.CancelledError:
            notes.print(f"Stopped after {len(done)} of {len(rows)} questions; the same command goes on from here.")
            raise
    return [done[place] for place in range(len(rows))]


def _origin(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the convention and the models of the first line.

    Raises:
        ValueError: the lines come from several models or conventions.
    """
    first = lines[0]
    for line in lines[1:]:
        if line["convention"] != first["convention"]:
            raise ValueError("the server draws runs in another way than before: choose another --out")
        for role, own in first["models"].items():
            if unlike := Fingerprint.model_validate(own).unlike(Fingerprint.model_validate(line["models"][role])):
                raise ValueError(f"the server runs {unlike} than before: choose another --out")
    return first
