"""Run `waver calibrate c_ip`: thresholds of conformal sets, from random histories that a server's model is shown."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
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

HISTORIES = "histories.jsonl"
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


async def measure(
    name: str, wanted: Pursuit, base_url: str, key: str | None, out: Path, notes: Console
) -> tuple[Thresholds, list[list[float]]]:
    """Show the model every history, or go on showing. Returns the thresholds, and the truths' probabilities on the
    fresh histories by length."""
    done = {(line["length"], line["number"]): float(line["true"]) for line in begin(out, _run(name, wanted), HISTORIES)}
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
                done[k, number] = float(told["probabilities"][task.hypotheses[truth]])
                append_line(out / HISTORIES, {"length": k, "number": number, "true": done[k, number]})
                bar.advance(shown)

            await together(*(one(*place) for place in places if place not in done))
    true = [[done[k, i] for i in range(wanted.count)] for k in range(1, length + 1)]
    fresh = [[done[k, i] for i in range(wanted.count, wanted.count + wanted.fresh)] for k in range(1, length + 1)]
    made = {"task": first["digest"], "model": wanted.model, "fingerprint": first["model"], "true": true}
    return Thresholds.model_validate(made), fresh


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
        made, fresh = asyncio.run(measure(name, wanted, base_url, key, out, notes))
        (out / "thresholds.json").write_text(made.model_dump_json(indent=1) + "\n", encoding="utf-8")
        found = taus(made.true, wanted.alpha)
        full = sum(tau == float("-inf") for tau in found)
        if full:
            show(f"{full} lengths have too few histories for alpha {wanted.alpha:g}: their sets hold everything.")
        if wanted.fresh:
            held = [p >= tau for own, tau in zip(fresh, found, strict=True) for p in own]
            show(f"Sets of fresh histories hold the truth in {fmean(held):.1%}; promised are {1 - wanted.alpha:.1%}.")
        show(f"The thresholds are in {out}; a configuration names them: thresholds: {{mine: {out}}}")
        return 0

    return status_of(work, base_url, notes)
