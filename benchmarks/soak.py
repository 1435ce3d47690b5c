"""Ask for every policy, tens of thousands of times, and leave some answers early: memory, statuses, and answers that
are not what they were."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.progress import Progress

from waver.benchmarks import report
from waver.benchmarks.processes import quarters, resident, serving
from waver.benchmarks.replay_requests import CHAT, TEXT, Request, requests
from waver.benchmarks.replay_server import HERE, START, config
from waver.benchmarks.streams import rest

LEAVE = 0.1
"""Part of the requests whose clients leave after some bytes of the stream."""
STREAM = 1 / 3
"""Part of the requests that are streamed and read to the end."""
BYTES = 3000
"""Most bytes that a client reads before it leaves."""
DRIFT = 0.05
"""Part by which memory may differ between the second quarter and the last."""
SHOWN = 50
"""Answers that were not the first one's of which the texts are kept."""

app = report.command()


@dataclass
class Seen:
    """Notes of clients: how requests ended, answers that were compared with the first one, and which were others."""

    ends: Counter[str] = field(default_factory=Counter)
    policies: Counter[str] = field(default_factory=Counter)
    greedy: int = 0
    sampled: int = 0
    greedy_others: Counter[str] = field(default_factory=Counter)
    sampled_others: Counter[str] = field(default_factory=Counter)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    """Some of the first answers with the others, as texts of their choices."""


def asked_for(seed: int) -> tuple[list[Request], list[Request]]:
    """Return the requests that set a server up, and those that are asked again and again: every policy of `waver bench
    replay`, presets, fields, forms and plain texts."""
    made = requests(seed)
    first = next(i for i, each in enumerate(made) if group(each) != "collections")
    drawn = [each for each in made if each.path in (CHAT, TEXT) and each.text is None and group(each) != "refused"]
    return [each for each in made[:first] if each.method != "GET"], drawn


def group(request: Request) -> str:
    return request.name.split(" ", 1)[1]


def policies(request: Request) -> list[str]:
    """Return the names of the policies that a request asks for; a preset goes by its own."""
    asked = request.body.get("policy")
    if isinstance(asked, list):
        return [each["name"] for each in asked]
    return [f"preset {asked}" if asked else str(request.body.get("model"))]


def said(choices: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return the texts of choices, whole ones or parts of streams, by their index."""
    texts: dict[int, str] = {}
    for each in choices:
        part = each.get("message") or each.get("delta") or {"content": each.get("text")}
        texts[each["index"]] = texts.get(each["index"], "") + (part.get("content") or "")
    return texts


class Clients:
    """Clients of a server that send the same requests again, in any order."""

    def __init__(self, http: httpx.AsyncClient, seed: int) -> None:
        self._http, self._draw = http, random.Random(f"soak:{seed}")
        self._answers: dict[str, dict[int, str]] = {}
        self.seen = Seen()

    async def first(self, request: Request) -> str:
        """Send a request for the first time, keep its answer for comparison, and return the status."""
        status, self._answers[request.name] = await self._whole(request)
        return status

    async def one(self, request: Request) -> None:
        """Send a request once, whole, streamed, or left early, and note what came of it."""
        chance, size = self._draw.random(), self._draw.randint(0, BYTES)
        self.seen.policies.update(policies(request))
        try:
            if chance < LEAVE:
                self.seen.ends[await self._left(request, size)] += 1
                return
            status, texts = await (self._streamed if chance < LEAVE + STREAM else self._whole)(request)
        except httpx.HTTPError as error:
            self.seen.ends[type(error).__name__] += 1
            return
        self.seen.ends[status] += 1
        if status == "200":
            self._compare(request, texts)

    def _compare(self, request: Request, texts: dict[int, str]) -> None:
        greedy = request.body.get("temperature") == 0
        self.seen.greedy += greedy
        self.seen.sampled += not greedy
        first = self._answers[request.name]
        if texts != first:
            (self.seen.greedy_others if greedy else self.seen.sampled_others)[request.name] += 1
            if len(self.seen.pairs) < SHOWN:
                self.seen.pairs.append({"name": request.name, "first": first, "other": texts})

    async def _whole(self, request: Request) -> tuple[str, dict[int, str]]:
        answer = await self._http.post(request.path, json=request.body | {"stream": False, "stream_options": None})
        return str(answer.status_code), said(answer.json()["choices"]) if answer.status_code == 200 else {}

    async def _streamed(self, request: Request) -> tuple[str, dict[int, str]]:
        choices: list[Any] = []
        async with self._http.stream("POST", request.path, json=request.body | {"stream": True}) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        return "error event", {}
                    choices += event["choices"]
        return str(answer.status_code), said(choices)

    async def _left(self, request: Request, size: int) -> str:
        read = 0
        async with self._http.stream("POST", request.path, json=request.body | {"stream": True}) as answer:
            async for data in answer.aiter_bytes():
                read += len(data)
                if read > size:
                    break
        return "left" if answer.status_code == 200 else str(answer.status_code)


async def soak(url: str, process: int, count: int, at_once: int, seed: int, bar: Progress) -> dict[str, Any]:
    """Set a server up, ask each request once, and then `count` times in all, `at_once` at a time."""
    setup, drawn = asked_for(seed)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        for each in setup:
            (await http.request(each.method, each.path, json=each.body)).raise_for_status()
        clients, kept, refused = Clients(http, seed), [], {}
        task = bar.add_task("once", total=len(drawn))
        for each in drawn:
            status = await clients.first(each)
            if status == "200":
                kept.append(each)
            else:
                refused[each.name] = status
            bar.advance(task)
        order = random.Random(seed)
        memory, began, turn = [resident(process)], time.monotonic(), asyncio.Semaphore(at_once)
        task = bar.add_task("soak", total=count)

        async def one(request: Request) -> None:
            try:
                await clients.one(request)
            finally:
                turn.release()
                bar.advance(task)

        async with asyncio.TaskGroup() as running_ones:
            for number in range(count):
                await turn.acquire()
                running_ones.create_task(one(order.choice(kept)))
                if number % max(count // 200, 1) == 0:
                    memory.append(resident(process))
        seconds = time.monotonic() - began
    left, until = await asyncio.to_thread(rest, url)
    early, late = quarters(memory)
    return {
        "requests": len(kept), "refused_once": refused, "seconds": seconds, **vars(clients.seen),
        "memory_early": early, "memory_late": late, "left": left, "until": until,
    }  # fmt: skip


def verdicts(found: Mapping[str, Any]) -> dict[str, bool]:
    """Say which of the bars are met."""
    return {
        "memory": abs(found["memory_late"] / found["memory_early"] - 1) <= DRIFT,
        "greedy": not found["greedy_others"],
        "errors": not set(found["ends"]) - {"200", "left"},
        "left": not found["left"],
    }


def page(numbers: Mapping[str, Any]) -> list[str]:
    """Return the page of results."""
    found = numbers["soak"]
    met = {name: "met" if held else "not met" for name, held in verdicts(found).items()}
    settings = numbers["settings"]
    drift = found["memory_late"] / found["memory_early"] - 1
    others = [
        f"{sum(found[kind].values())} of {found[kind.removesuffix('_others')]} {kind.removesuffix('_others')} ones"
        for kind in ("greedy_others", "sampled_others")
    ]
    which = sorted({name for kind in ("greedy_others", "sampled_others") for name in found[kind]})
    asked = Counter(found["policies"]).most_common()
    return [
        "# Soak: every policy, again and again",
        f"{settings['count']} requests to one server of the bundled pair, {settings['at_once']} at a time, drawn "
        f"from {found['requests']} different ones, in {found['seconds']:.0f} s; a third are streamed, and of "
        f"{LEAVE:.0%} the client leaves early.",
        report.table(["ended with", "requests"], [[name, str(n)] for name, n in sorted(found["ends"].items())]),
        f"Nothing but answers and clients that left: {met['errors']}. Memory from the second quarter to the last: "
        f"{drift:+.1%} ({met['memory']}). Afterwards {found['left']:g} sequences were left, after "
        f"{found['until']:.1f} s ({met['left']}). Answers that were not the first one's: {' and '.join(others)} "
        f"(greedy: {met['greedy']})" + (f"; of {', '.join(which[:20])}." if which else "."),
        f"Refused at the first time, and not asked again: {', '.join(sorted(found['refused_once'])) or 'none'}.",
        report.table(["policy", "requests"], [[name, str(n)] for name, n in asked]),
    ]


@app.command()
def main(
    context: typer.Context,
    count: Annotated[int, typer.Option(min=100, help="Requests.")] = 30_000,
    at_once: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the requests and their order.")] = 1,
    out: report.Out = report.RESULTS,
) -> None:
    """Ask a server of the bundled pair for every policy, tens of thousands of times, and leave a tenth of the answers.

    Writes soak.json and .md. Some twenty minutes on two cores. Ends with 1 where a bar is missed.
    """
    numbers: dict[str, Any] = report.conditions("soak", dict(context.params))
    with tempfile.TemporaryDirectory() as scratch, report.progress() as bar:
        settings = config(HERE, "transformers", Path(scratch) / "collections")
        del settings["server"]["api_keys_env"]
        with serving(settings, Path(scratch), START) as (url, process):
            numbers["soak"] = asyncio.run(soak(url, process, count, at_once, seed, bar))
    report.write(out, "soak", numbers, page(numbers))
    if not all(verdicts(numbers["soak"]).values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
