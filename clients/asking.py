"""Run `waver calibrate c_ip`: thresholds of conformal sets, from random histories that a server's model is shown."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from waver.clients.client import AsyncWaver, has_report, report
from waver.clients.endings import status_of
from waver.clients.options import Pursuit
from waver.clients.questions import Refused
from waver.clients.resume import begin
from waver.concurrency import together
from waver.job import append_line
from waver.policies.ask.history import Asked
from waver.policies.ask.task import AskTask
from waver.policies.ask.thresholds import Thresholds, random_history, taus
from waver.progress import counted
from waver.stats import wilson

HISTORIES = "histories.jsonl"
KNOWING = 4
"""Answers that a history has at least, where it is asked whether the model makes anything of them."""
HELLO = {"role": "user", "content": "Hello."}


def conversation(task: AskTask, asked: Sequence[Asked]) -> list[dict[str, str]]:
    """Write a history as the conversation that `c_ip` reads it from."""
    out = [HELLO]
    for each in asked:
        out.append({"role": "assistant", "content": task.questions[each.question]})
        out.append({"role": "user", "content": "yes" if each.answer else "no"})
    return out


async def ask(client: AsyncWaver, model: str, name: str, messages: list[dict[str, str]]) -> dict[str, Any]:
    """Return what `c_ip` tells of a conversation.

    Raises:
        openai.OpenAIError: the server refuses. Refused: it does not tell.
    """
    response = await client.chat.completions.create(
        model=model,
        messages=messages,  # type: ignore[arg-type]
        extra_body={"policy": [{"name": "c_ip", "task": name, "predict": True}]},
    )
    told = (report(response).model_extra or {}).get("asking") if has_report(response) else None
    if not isinstance(told, dict) or "definition" not in told:
        raise Refused("The server's answers do not tell probabilities: is it a Waver of this release?")
    return told


@dataclass(frozen=True)
class Measured:
    """Thresholds; the truths' probabilities on the fresh histories, by length; and of the histories of at least
    `least` answers how many there are and in how many the likeliest hypothesis is the truth, of so many hypotheses."""

    thresholds: Thresholds
    fresh: list[list[float]]
    least: int
    known: int
    right: int
    hypotheses: int


async def measure(name: str, wanted: Pursuit, base_url: str, key: str | None, out: Path, notes: Console) -> Measured:
    """Show the model every history, or go on showing."""
    done = {(line["length"], line["number"]): line for line in begin(out, _run(name, wanted), HISTORIES)}
    free = asyncio.Semaphore(wanted.at_once)
    async with AsyncWaver(base_url=base_url, api_key=key, max_retries=5) as client:
        first = await ask(client, wanted.model, name, [HELLO])
        task = AskTask.model_validate(first["definition"])
        length = min(wanted.length, len(task.questions))
        places = [(k, i) for k in range(1, length + 1) for i in range(wanted.count + wanted.fresh)]
        with counted(notes) as bar:
            shown = bar.add_task("showing histories", total=len(places), completed=len(done))

            async def one(k: int, number: int) -> None:
                rng = random.Random(f"c_ip:{wanted.seed}:{k}:{number}")
                truth = rng.randrange(len(task.hypotheses))
                asked = random_history(task, truth, k, rng)
                async with free:
                    told = await ask(client, wanted.model, name, conversation(task, asked))
                found, own = told["probabilities"], task.hypotheses[truth]
                best = max(found, key=lambda each: float(found[each])) == own
                line = {"length": k, "number": number, "true": float(found[own]), "best": best}
                append_line(out / HISTORIES, line)
                done[k, number] = line
                bar.advance(shown)

            await together(*(one(*place) for place in places if place not in done))
    true = [[float(done[k, i]["true"]) for i in range(wanted.count + wanted.fresh)] for k in range(1, length + 1)]
    made = {"task": first["digest"], "model": wanted.model, "fingerprint": first["model"]}
    least = min(KNOWING, length)
    known = [done[place]["best"] for place in places if place[0] >= least and "best" in done[place]]
    return Measured(
        Thresholds.model_validate({**made, "true": [own[: wanted.count] for own in true]}),
        [own[wanted.count :] for own in true],
        least,
        len(known),
        sum(known),
        len(task.hypotheses),
    )


def _worth(measured: Measured, model: str) -> str:
    """Say how often the model's likeliest hypothesis is right, and whether that is more than chance."""
    share, chance = measured.right / measured.known, 1 / measured.hypotheses
    told = (
        f"After {measured.least} and more random questions the model's likeliest hypothesis is right in {share:.1%} of "
        f"{measured.known} histories; by chance it would be in {chance:.1%}."
    )
    if wilson(measured.right, measured.known)[0] > chance:
        return told
    return (
        f"{told} {model} makes nothing of the answers: its sets keep their promise by holding nearly everything, and "
        "c_ip cannot choose by them. Take a larger model, or predictor: table."
    )


def _run(name: str, wanted: Pursuit) -> dict[str, Any]:
    options = asdict(wanted)
    return {"task": name} | {key: options[key] for key in ("model", "length", "count", "fresh", "seed")}


def calibrate(
    name: str, wanted: Pursuit, base_url: str, key: str | None, out: Path, show: Callable[[str], None]
) -> int:
    """Calibrate at a server and write `thresholds.json` into `out`.

    Returns:
        The exit status: 1 if it cannot be done, 130 after ctrl-C.
    """
    notes = Console(stderr=True)

    def work() -> int:
        measured = asyncio.run(measure(name, wanted, base_url, key, out, notes))
        made, fresh = measured.thresholds, measured.fresh
        (out / "thresholds.json").write_text(made.model_dump_json(indent=1) + "\n", encoding="utf-8")
        found = taus(made.true, wanted.alpha)
        if measured.known:
            show(_worth(measured, wanted.model))
        full = sum(tau == float("-inf") for tau in found)
        if full:
            show(f"{full} lengths have too few histories for alpha {wanted.alpha:g}: their sets hold everything.")
        if wanted.fresh:
            held = [p >= tau for own, tau in zip(fresh, found, strict=True) for p in own]
            show(f"Sets of fresh histories hold the truth in {fmean(held):.1%}; promised are {1 - wanted.alpha:.1%}.")
        show(f"The thresholds are in {out}; a configuration names them: thresholds: {{mine: {out}}}")
        return 0

    return status_of(work, base_url, notes)
