"""Run `waver calibrate l_rag`: find the threshold of a gate from questions, and what it will bring.

Every question is asked with a threshold at which the gate never fires, so that its score is complete, and again with
the gate `always`. What any threshold would have done follows from the two;
`waver.policies.retrieve.calibration` chooses a threshold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from rich.console import Console

from waver.clients import outcome
from waver.clients.chat import choose_model, explain
from waver.clients.client import AsyncWaver, has_report, report
from waver.clients.options import Calibration, Requests
from waver.clients.outcome import Answer, Pair
from waver.clients.questions import Question, Refused, check, read, right
from waver.progress import counted

NEVER_FIRES = {"entropy": 1e9, "margin": 1e9, "targ": 1e9, "seakr": 1e9, "dragin": 1e9, "self_rag": 1e9, "flare": -1.0}
"""Gates that have a threshold, with one at which they never fire: flare fires at or below its own, others above."""
CONTROLS = ("always", "never", "random")
CHOSEN = ("name", "collection", "gate", "pooling", "threshold", "expected_rate")
"""Parameters that are options of the command, or its result."""
FEW = 20
"""With fewer questions a threshold is mostly chance. As many are looked up where only their time is asked for."""


def check_calibration(wanted: Calibration) -> None:
    """Check what can be checked before anything is asked.

    Raises:
        Refused: this cannot be calibrated.
    """
    if wanted.gate in CONTROLS:
        raise Refused(f"The gate {wanted.gate} has no threshold. Calibrate one of {', '.join(NEVER_FIRES)}.")
    if wanted.gate not in NEVER_FIRES:
        raise Refused(f"There is no gate {wanted.gate!r}; there are {', '.join(NEVER_FIRES)}.")
    if wanted.pooling is not None and wanted.gate != "entropy":
        raise Refused(f"The gate {wanted.gate} does not pool entropies: leave --pooling out.")
    for key in wanted.parameters:
        if key in CHOSEN:
            raise Refused(f"--set {key}: this is an option of its own, or what calibration finds.")
    if wanted.rate is not None and wanted.loss is not None:
        raise Refused("A threshold is for a rate or for a loss: give one of --rate and --loss.")
    for name, share in (("rate", wanted.rate), ("loss", wanted.loss)):
        if share is not None and not 0 <= share <= 1:
            raise Refused(f"--{name} is a share between 0 and 1: one half is 0.5, one point is 0.01.")
    if wanted.loss == 0:
        raise Refused("No number of questions can promise a loss of 0: allow a little, as 0.01 for one point.")


@dataclass(frozen=True)
class Target:
    """A server, the model to ask there, and the policies that come with that model besides `l_rag`."""

    client: AsyncWaver
    model: str
    beside: list[dict[str, Any]]
    options: dict[str, Any]

    async def ask(self, question: Question, policy: dict[str, Any]) -> Answer:
        """Raises:
        openai.OpenAIError: the server refuses.
        Refused: it does not tell what `l_rag` did."""
        response = await self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": question.text}],
            seed=question.line,
            extra_body={"policy": [*self.beside, policy]},
            **self.options,
        )
        record = report(response).retrieval if has_report(response) else None
        if record is None or "seconds" not in record:
            raise Refused("The server's answers do not say what was looked up: is it a Waver of this release?")
        text = response.choices[0].message.content or ""
        return Answer(text, record.get("score"), bool(record["triggered"]), dict(record["seconds"]))


async def meet(client: AsyncWaver, model: str | None, options: dict[str, Any]) -> Target:
    """Return the model to ask, with the policies that it brings along: those of a preset other than `l_rag` stay in
    force."""
    chosen = model or choose_model([each.id async for each in client.models.list()])
    hello = await client.chat.completions.create(
        model=chosen, messages=[{"role": "user", "content": "hello"}], max_tokens=1, temperature=0
    )
    known = report(hello).policy if has_report(hello) else []
    return Target(
        client.with_options(max_retries=5), chosen, [each for each in known if each["name"] != "l_rag"], options
    )


async def ask_all(
    asked: Target, wanted: Calibration, questions: Sequence[Question], seconds: int, at_once: int, notes: Console
) -> list[Pair]:
    """Return each question under both tiers; the second for the first `seconds` questions only. What the server finds
    wrong with a single question leaves it out, with a line that says so."""
    free = asyncio.Semaphore(at_once)
    never = wanted.policy(threshold=NEVER_FIRES[wanted.gate])
    always = wanted.policy(gate="always")
    # Errors that all questions share come up here, and the first search, which loads the embedder, is not timed.
    await asked.ask(questions[0], always)
    await asked.ask(questions[0], never)

    async def one(place: int, question: Question, advance: Callable[[], None]) -> Pair | None:
        tiers: list[Answer] = []
        for policy in (never, always) if place < seconds else (never,):
            async with free:
                try:
                    tiers.append(await asked.ask(question, policy))
                except openai.BadRequestError as error:
                    said = explain(error, "")
                    notes.print(f"left out line {question.line}: {said}", markup=False, highlight=False)
                    return None
            advance()
        return Pair(question, tiers[0], tiers[1] if len(tiers) > 1 else None)

    with counted(notes) as progress:
        task = progress.add_task("asking", total=len(questions) + seconds)
        pairs = await asyncio.gather(
            *(one(i, each, lambda: progress.advance(task)) for i, each in enumerate(questions))
        )
    return [pair for pair in pairs if pair is not None]


async def measure(
    questions: list[Question], wanted: Calibration, requests: Requests, base_url: str, key: str | None,
    notes: Console,
) -> dict[str, Any]:  # fmt: skip
    """Ask everything, and return the numbers: `outcome.numbers`, and under which conditions they came about.

    Raises:
        openai.OpenAIError: the server refuses. Refused: there is nothing to calibrate with.
    """
    answered = all(question.answers for question in questions)
    async with AsyncWaver(base_url=base_url, api_key=key, max_retries=0) as client:
        asked = await meet(client, requests.model, requests.sampling)
        count = len(questions) if answered else min(FEW, len(questions))
        pairs = await ask_all(asked, wanted, questions, count, requests.at_once, notes)
    if not any(pair.second for pair in pairs):
        raise Refused("The server refused the questions: see the lines above.")
    if any(pair.first.score is None and not pair.first.triggered for pair in pairs):
        raise Refused("The server's reports carry no score: is it a Waver of this release?")
    judge = (lambda text, question: right(text, question, wanted.scorer)) if answered else None
    loss, rate = wanted.loss, wanted.rate
    if loss is None and rate is None:
        loss, rate = (outcome.least_loss(len(pairs), wanted.confidence), None) if answered else (None, 0.5)
    found = outcome.numbers(pairs, wanted.gate != "flare", judge, rate, loss, wanted.confidence)
    chosen = {"gate": "always"} if found["threshold"] is None else {"threshold": found["threshold"]}
    preset = wanted.policy(**chosen, expected_rate=found["expected_rate"])
    made = {"model": asked.model, "beside": asked.beside, "options": requests.sampling, "at_once": requests.at_once}
    left_out = len(questions) - len(pairs)
    return {"preset": preset, **made, "scorer": wanted.scorer if answered else None, "left_out": left_out, **found}


def questions_for(file: Path, wanted: Calibration, notes: Console) -> list[Question]:
    """Read the questions, checked as far as it can be before a server is needed.

    Raises:
        Refused: it cannot be calibrated like this.
    """
    check_calibration(wanted)
    questions = read(file)
    check(questions, wanted.scorer, file)
    unknown = [question.line for question in questions if not question.answers]
    if unknown and wanted.loss is not None:
        raise Refused(f"{file}, line {unknown[0]} has no answer: --loss needs them all. Use --rate without answers.")
    if 0 < len(unknown) < len(questions):
        said = f"{len(unknown)} of {len(questions)} questions have no answer (line {unknown[0]}): accuracy is left out."
        notes.print(said, highlight=False, soft_wrap=True)
    if len(questions) < FEW:
        said = f"{len(questions)} questions are few: below {FEW} a threshold is mostly chance. Bring some hundred."
        notes.print(said, highlight=False, soft_wrap=True)
    return questions


def calibrate(
    questions: list[Question], wanted: Calibration, requests: Requests, base_url: str, key: str | None = None,
    out: Path | None = None, as_json: bool = False,
) -> int:  # fmt: skip
    """Calibrate at a server, print what came of it, `as_json` or as a page, and with `out` write it there.

    Returns:
        The exit status: 1 if the server cannot be used like this, 130 after ctrl-C.
    """
    notes = Console(stderr=True)
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        found = asyncio.run(measure(questions, wanted, requests, base_url, key, notes))
        shown = outcome.as_json(found) if as_json else outcome.page(found)
        Console(highlight=False).print(shown, markup=False, soft_wrap=True)
        if out is not None:
            notes.print(outcome.write(found, out), markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        return 130
    except openai.OpenAIError as error:
        notes.print(explain(error, base_url), markup=False, highlight=False, soft_wrap=True)
        return 1
    except Refused as error:
        notes.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except OSError as error:
        notes.print(f"{out} cannot be written: {error.strerror}.", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0
