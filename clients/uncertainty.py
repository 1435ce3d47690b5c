"""Run `waver calibrate inv_entropy`: turn measures of uncertainty into probabilities that an answer is wrong.

Every question is answered and measured at a server, at one temperature or at several. The folder gets the calibration,
`README.md` with a table of all measures, and `answers.jsonl`, from which a run that was stopped goes on.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import numpy as np
from rich.console import Console

from waver import isotonic
from waver.clients.options import Measuring
from waver.clients.questions import Question, Refused, digest, right
from waver.clients.resume import begin
from waver.concurrency import together
from waver.entropy.inverse import temperature_score
from waver.job import append_line
from waver.policies.uncertainty.calibration import Calibration
from waver.progress import counted
from waver.stats import auroc

FEW = 50
"""With fewer questions a calibration is mostly chance."""
FOLDS = 5
PATIENCE = 600.0
"""Seconds that a question may take."""
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Line:
    """A question's scores by measure, at the default temperature and then at the others; what the first cost, and
    whether the answer was wrong."""

    line: int
    wrong: bool
    scores: list[dict[str, float]]
    tokens: int
    seconds: float
    settings: dict[str, Any]
    fingerprint: dict[str, Any]


async def measure_all(
    questions: Sequence[Question], wanted: Measuring, base_url: str, key: str | None, out: Path, notes: Console
) -> list[Line]:
    """Measure every question, or go on measuring.

    Raises:
        Refused: the server refuses, `out` holds another run, or the model changed on the way.
        httpx.HTTPError: it cannot be reached.
    """
    done = _begun(out, questions, wanted)
    free = asyncio.Semaphore(wanted.at_once)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=PATIENCE) as http:
        with counted(notes) as bar:
            task = bar.add_task("measuring", total=len(questions), completed=len(done))

            async def one(question: Question) -> None:
                async with free:
                    found = [await _ask(http, question, wanted, t) for t in (None, *wanted.temperatures)]
                first = found[0]
                line = Line(
                    question.line,
                    not right(first["answer"], question, wanted.scorer),
                    [each["scores"] for each in found],
                    sum(first["waver"]["uncertainty"]["tokens"].values()),
                    first["seconds"],
                    first["settings"],
                    first["fingerprint"],
                )
                append_line(out / ANSWERS, asdict(line))
                done[question.line] = line
                bar.advance(task)

            await together(*(one(question) for question in questions if question.line not in done))
    return [done[question.line] for question in questions]


def _begun(out: Path, questions: Sequence[Question], wanted: Measuring) -> dict[int, Line]:
    """Claim the folder and read what a stopped run left there."""
    run = wanted.request | {"scorer": wanted.scorer, "temperatures": wanted.temperatures, "sha256": digest(questions)}
    return {line["line"]: Line(**line) for line in begin(out, run, ANSWERS)}


async def _ask(http: httpx.AsyncClient, question: Question, wanted: Measuring, heat: float | None) -> dict[str, Any]:
    own = {} if heat is None else {"sample_temperature": heat}
    message = [{"role": "user", "content": question.text}]
    body = {**wanted.request, **own, "messages": message, "seed": question.line, "details": True}
    began = asyncio.get_running_loop().time()
    response = await http.post("uncertainty", json=body)
    if response.status_code != 200:
        try:
            said = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = f"status {response.status_code}"
        raise Refused(f"The server refuses line {question.line}: {said}")
    found: dict[str, Any] = response.json()
    if found.get("score") is None:
        raise Refused(f"Line {question.line} took more tokens than the server allows: raise max_extra_tokens there.")
    return found | {"seconds": asyncio.get_running_loop().time() - began}


@dataclass(frozen=True)
class Row:
    """Worth of one measure: AUROC for wrong answers, Brier score of its calibration on held-out questions, the
    share of questions on which it rises with the temperature (TSU)."""

    measure: str
    auroc: float | None
    brier: float
    tsu: float | None


def rows(lines: Sequence[Line]) -> list[Row]:
    """Evaluate every measure, the best at finding wrong answers first."""
    wrong = [line.wrong for line in lines]
    found = []
    for name in lines[0].scores[0]:
        own = [line.scores[0][name] for line in lines]
        heated = [[at[name] for at in line.scores[1:]] for line in lines]
        tsu = temperature_score(heated) if len(heated[0]) > 1 else None
        found.append(Row(name, auroc(own, wrong), brier(own, wrong), tsu))
    return sorted(found, key=lambda row: -math.inf if row.auroc is None else -row.auroc)


def brier(scores: Sequence[float], wrong: Sequence[bool]) -> float:
    """Return the mean squared error of isotonic calibration, each fifth of the questions by the other four."""
    order = np.random.default_rng(0).permutation(len(scores))
    errors = []
    for part in np.array_split(order, min(FOLDS, len(scores))):
        rest = np.setdiff1d(order, part)
        if not len(rest):
            continue
        made = isotonic.fit([scores[i] for i in rest], [float(wrong[i]) for i in rest])
        errors += [(made(scores[i]) - wrong[i]) ** 2 for i in part]
    return fmean(errors)


def write(lines: Sequence[Line], wanted: Measuring, out: Path) -> str:
    """Write `calibration.json` and `README.md`; returns the table."""
    first = lines[0]
    for line in lines[1:]:
        if line.settings != first.settings:
            raise Refused(f"The answers in {out} were measured in different ways: choose another --out.")
    wrong = [line.wrong for line in lines]
    table = rows(lines)
    made = Calibration.model_validate(
        {
            "model": wanted.model,
            "fingerprint": first.fingerprint,
            "settings": first.settings,
            "measures": {
                row.measure: isotonic.fit([line.scores[0][row.measure] for line in lines], [float(w) for w in wrong])
                for row in table
            },
            "about": {"questions": len(lines), "wrong": fmean(wrong), "measures": [asdict(row) for row in table]},
        }
    )
    made.save(out / "calibration.json")
    shown = _table(table)
    cost = f"{fmean(line.tokens for line in lines):.0f} tokens and {fmean(line.seconds for line in lines):.1f} s"
    page = (
        f"# Calibrated uncertainty of {wanted.model}\n\n{len(lines)} questions, {fmean(wrong):.1%} of them answered "
        f"wrongly. All measures of a question together took {cost}. AUROC: how often a wrong answer scores above a "
        "right one. Brier: of the calibrated probability, on questions that it was not fitted on. TSU: share of "
        f"questions on which the measure rises with every step of the temperature.\n\n{shown}\n"
    )
    (out / "README.md").write_text(page, encoding="utf-8")
    return shown


def _table(table: Sequence[Row]) -> str:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    lines = [f"| {r.measure} | {number(r.auroc)} | {r.brier:.3f} | {number(r.tsu)} |" for r in table]
    return "\n".join(["| measure | AUROC | Brier | TSU |", "| --- | --- | --- | --- |", *lines])


def calibrate(
    questions: list[Question], wanted: Measuring, base_url: str, key: str | None, out: Path, show: Callable[[str], None]
) -> int:
    """Measure, calibrate and write everything into `out`.

    Returns:
        The exit status: 1 if it cannot be done, 130 after ctrl-C.
    """
    notes = Console(stderr=True)
    if len(questions) < FEW:
        notes.print(f"{len(questions)} questions are few: below {FEW} a calibration is mostly chance.", soft_wrap=True)
    try:
        lines = asyncio.run(measure_all(questions, wanted, base_url.rstrip("/") + "/", key, out, notes))
        show(write(lines, wanted, out))
        show(f"The calibration is in {out}; a configuration names it: calibrations: {{mine: {out}}}")
    except KeyboardInterrupt:
        return 130
    except httpx.HTTPError as error:
        notes.print(f"{base_url} cannot be reached: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    except (Refused, OSError) as error:
        notes.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0
