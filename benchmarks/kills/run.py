"""The command: a server, its upstream and its database, clients, and one event after the other."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from waver.benchmarks import report
from waver.benchmarks.kills.load import OUTCOMES, Clients, Seen
from waver.benchmarks.kills.parts import GRACE, Database, EngineCore, Part, Served
from waver.benchmarks.own_keys import add_key
from waver.benchmarks.postgres import Missing, Postgres

CLIENTS = 12
BEFORE = 2.0
"""Seconds of load before an event, and after everything is served again."""
STOPPED = 4.0
"""Seconds for which what is stopped stands still."""
RECOVERY = 180.0
"""Seconds after which something is taken for lost for good."""
PATIENCE = 30.0
"""Seconds that a request may take; the server's own limit is shorter."""
SETTLED = 60.0
"""Seconds after which what a dead server held is settled for it, at the latest."""
LIMIT = 20
"""Seconds that the server gives a request."""

app = report.command()


@dataclass(frozen=True)
class Event:
    """Something that is done to a part. `breaks`: connections of clients may break by it, as it is theirs that ends."""

    name: str
    part: str
    number: int
    breaks: bool = False


EVENTS = (
    Event("upstream: kill -9, started again", "upstream", signal.SIGKILL),
    Event(f"upstream: stopped for {STOPPED:g} s", "upstream", signal.SIGSTOP),
    Event("upstream: terminated, started again", "upstream", signal.SIGTERM),
    Event("vLLM engine: kill -9", "vllm", signal.SIGKILL),
    Event(f"vLLM engine: stopped for {STOPPED:g} s", "vllm", signal.SIGSTOP),
    Event("database: kill -9, started again", "database", signal.SIGKILL),
    Event(f"database: stopped for {STOPPED:g} s", "database", signal.SIGSTOP),
    Event("database: terminated, started again", "database", signal.SIGTERM),
    Event(f"Waver: stopped for {STOPPED:g} s", "waver", signal.SIGSTOP),
    Event("Waver: terminated, started again", "waver", signal.SIGTERM, breaks=True),
    Event("Waver: kill -9, started again", "waver", signal.SIGKILL, breaks=True),
)


async def happen(event: Event, part: Part, clients: Clients, models: Sequence[str]) -> dict[str, Any]:
    """Let an event happen under load; return what came of it."""
    await asyncio.sleep(BEFORE)
    clients.take()
    part.signal(event.number)
    began = time.monotonic()
    if event.number == signal.SIGSTOP:
        await asyncio.sleep(STOPPED)
        part.signal(signal.SIGCONT)
    else:
        await asyncio.to_thread(part.again)
    back = time.monotonic()
    with suppress(TimeoutError):
        async with asyncio.timeout(RECOVERY):
            while not _served(clients.seen, models, back):
                await clients.answered()
    served = _served(clients.seen, models, back)
    seconds = time.monotonic() - began
    await asyncio.sleep(BEFORE)
    seen = clients.take()
    return {
        "event": event.name,
        "breaks": event.breaks,
        "outcomes": {name: seen.outcomes[name] for name in OUTCOMES},
        "statuses": dict(seen.statuses),
        "hung": seen.hung,
        "tokens": seen.tokens,
        "recovered": served,
        "seconds": seconds,
    }


def _served(seen: Seen, models: Sequence[str], since: float) -> bool:
    """Return whether every model has given a whole answer since then."""
    return {model for model, at in seen.wholes if at > since} == set(models)


def flaws(found: Mapping[str, Any]) -> list[str]:
    """Return what should not have happened in an event."""
    lost = found["outcomes"]
    wrong = [f"{lost['silent']} silent"] if lost["silent"] else []
    if not found["breaks"]:
        wrong += [f"{lost[name]} {name}" for name in ("cut off", "no connection") if lost[name]]
    wrong += [f"{count} x {status}" for status, count in found["statuses"].items() if status not in EXPECTED]
    wrong += [f"{found['hung']} hung"] if found["hung"] else []
    return wrong + ([] if found["recovered"] else ["not served again"])


EXPECTED = {"200", "429", "502", "503", "504"}
"""Statuses with which a request may be refused while something is gone."""


async def measure(parts: Mapping[str, Part], url: str, key: str, models: Sequence[str]) -> list[dict[str, Any]]:
    clients = Clients(url, key, models, CLIENTS, PATIENCE)
    clients.start()
    found = []
    with report.progress() as bar:
        chosen = [event for event in EVENTS if event.part in parts]
        task = bar.add_task("events", total=len(chosen))
        for event in chosen:
            found.append(await happen(event, parts[event.part], clients, models))
            bar.advance(task)
    await clients.stop()
    return found


def page(numbers: Mapping[str, Any]) -> list[str]:
    """Return the page of results."""
    rows = [
        [each["event"], *(str(each["outcomes"][name]) for name in OUTCOMES), f"{each['seconds']:.1f}",
         ", ".join(flaws(each)) or "–"]
        for each in numbers["events"]
    ]  # fmt: skip
    charged = numbers["charged"]
    return [
        "# What clients lose when something is killed, stopped or started again",
        f"{CLIENTS} clients stream answers of 40 tokens without a pause from one Waver: {numbers['engines']}. Keys and "
        f"budgets are in {numbers['database']}. Each row counts what became of requests from the event until every "
        "model had given a whole answer again (`served again`, in seconds, the time to start it included) and "
        f"{BEFORE:g} s more.",
        report.table(["event", *OUTCOMES, "served again", "beyond what may be lost"], rows),
        "An `error event` is a stream that ended with an error object; `refused` an error object with status 429, 502, "
        "503 or 504 before the first token; `cut off` a connection that broke without a word, `no connection` one that "
        "nobody accepted: both may happen only where Waver itself ends. `silent` is an answer that looks whole and is "
        f"not. Waver gives running answers {GRACE} s when it is told to stop, and {LIMIT} s to any request.",
        f"Budget: clients received {charged['received']} tokens in whole answers, and the key was charged "
        f"{charged['charged']}: what was lost on the way was made, too.",
    ]


def setup(folder: Path, stack: ExitStack, vllm: bool) -> tuple[dict[str, Part], Served, dict[str, str], list[str]]:
    """Start everything; return the parts, the server, its keys by name, and the models."""
    parts: dict[str, Part] = {}
    url: str | None = None
    try:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="waver-kills-")))
        database = Postgres(home)
        database.create()
        stack.callback(database.stop)
        parts["database"], url = Database(database), database.url
    except Missing as error:
        report.console.print(f"The database is left out: {error}.")
    small = {"engines": {"small": {"model": "models/small"}}, "state": str(folder / "upstream" / "state")}
    upstream = Served(folder / "upstream", small)
    stack.callback(upstream.close)
    upstream.start()
    engines: dict[str, Any] = {
        "embedded": {"model": "models/small"},
        "far": {
            "backend": "openai",
            "base_url": f"{upstream.url}/v1",
            "model": "small",
            "tokenizer": "models/small",
            "parameters": 1_000_000,
            "heartbeat_interval": 1.0,
            "token_timeout": 10.0,
            "first_token_timeout": 10.0,
        },
    }
    if vllm:
        args = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 16}
        engines["vllm"] = {"backend": "vllm", "model": "models/small", "args": args, "heartbeat_timeout": 8}
    content = {
        "engines": engines, "state": str(folder / "state"), "keys": {"database": url},
        "retrieval": {"path": str(folder / "collections")}, "server": {"timeout": LIMIT},
    }  # fmt: skip
    server = Served(folder / "waver", content)
    keys = {
        "load": add_key(server.file, "load", "--tpd", str(10**9)),
        "root": add_key(server.file, "root", "--role", "admin"),
    }
    stack.callback(server.close)
    server.start()
    parts |= {"upstream": upstream, "waver": server} | ({"vllm": EngineCore(server)} if vllm else {})
    return parts, server, keys, list(engines)


@app.command()
def main(
    context: typer.Context,
    vllm: Annotated[bool, typer.Option(help="Also an engine under vLLM, whose process is killed.")] = True,
    out: report.Out = report.RESULTS,
) -> None:
    """Kill, stop and start again an upstream, vLLM's engine, the database and Waver itself, under load.

    Writes kills.json and .md. Some fifteen minutes on two cores. Ends with 1 where more was lost than may be.
    """
    vllm = vllm and importlib.util.find_spec("vllm") is not None
    numbers = report.conditions("kills", dict(context.params))
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        parts, server, keys, models = setup(Path(scratch), stack, vllm)
        found = asyncio.run(measure(parts, server.url, keys["load"], models))
        charged = _charged(server.url, keys["root"])
    numbers |= {
        "events": found,
        "engines": ", ".join(models).replace("embedded", "an embedded engine").replace("far", "another Waver upstream"),
        "database": "PostgreSQL" if "database" in parts else "SQLite",
        "charged": {"received": sum(each["tokens"] for each in found), "charged": charged},
    }
    report.write(out, "kills", numbers, page(numbers))
    if any(flaws(each) for each in found):
        raise typer.Exit(1)


def _charged(url: str, key: str) -> int:
    """Return the tokens that the key was charged, once everything is settled."""
    deadline = time.monotonic() + SETTLED
    while True:
        answer = httpx.get(f"{url}/v1/admin/keys/load", headers={"authorization": f"Bearer {key}"}, timeout=30)
        used = answer.raise_for_status().json()["usage"]
        if not used["running"] or time.monotonic() > deadline:
            return int(used["day_tokens"])
        time.sleep(1)


if __name__ == "__main__":
    app()
