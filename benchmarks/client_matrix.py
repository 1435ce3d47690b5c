"""Run other people's clients, unmodified and at pinned versions, against a server: what works with each.

One engine writes, or a pair under a policy; and the same scripts may be run against another server beside it.
"""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from waver.benchmarks import report
from waver.benchmarks.client_scripts import SCRIPTS, Client, ask, find
from waver.benchmarks.processes import free_port, running, serving
from waver.retrieval.config import DEFAULT_EMBEDDER

START = 600.0
"""Seconds that a server is given to load its libraries and models."""
NAME = "client-matrix"
PRESET = "pair"

app = report.command()


@app.command()
def main(
    model: Annotated[str, typer.Option(help="Folder or hub id of a chat model whose template shows tools.")],
    only: Annotated[
        list[str] | None,
        typer.Option(help="Name of a script, as openai_python; repeatable. Others keep their last result."),
    ] = None,
    large: Annotated[
        str | None,
        typer.Option(help="A larger model with the same tokenizer: both write, under `policy`. A result of its own."),
    ] = None,
    policy: Annotated[str, typer.Option(help="The policy of the pair.")] = "ead",
    beside: Annotated[
        str | None,
        typer.Option(
            help="Command of another server of this model, with {port} for its port: the scripts are run against that, "
            "and compared with what they found last. A result of its own."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="The type of the models' weights, as an engine's `dtype`.")] = "auto",
    out: report.Out = report.RESULTS,
) -> None:
    """Run other people's clients against a server, and write which of their features work.

    Needs the network (packages) and, for the clients of Node, `node` and `npm`. A small model is enough: calls are
    forced where a check is about calls.

        waver bench client-matrix --model qwen2.5-0.5b-instruct
    """
    clients = chosen(only)
    for client in clients:
        client.model = Path(model).name
    settings: dict[str, Any] = {"model": Path(model).name, "only": only or []}
    settings |= {"large": Path(large).name, "policy": policy} if large else {}
    settings |= {"beside": beside} if beside else {}
    settings |= {} if dtype == "auto" else {"dtype": dtype}
    stem = "client_matrix_pair" if large else "client_matrix"
    known = earlier(out / f"{stem}.json") if only or beside else {}
    if beside is not None:
        ours = [known[each.name] for each in clients if each.name in known and known[each.name].model == each.model]
        if len(ours) < len(clients):
            raise typer.BadParameter(
                f"run this without --beside first: {out} has no results of all of these clients with {Path(model).name}"
            )
        with tempfile.TemporaryDirectory() as scratch, serving_beside(beside, Path(scratch)) as url:
            listed = httpx.get(f"{url}/v1/models").json()["data"][0]
            name = server_name(url, listed)
            ask_all(clients, variables(url, listed["id"], ""), Path(scratch))
        numbers = report.conditions(NAME, settings)
        numbers |= {"beside": name, "clients": _plain(ours), "others": _plain(clients)}
        report.write(out, "client_matrix_beside", numbers, page_beside(ours, clients, name))
        return
    configured = configuration(model, large, policy, dtype)
    with tempfile.TemporaryDirectory() as scratch, serving(configured, Path(scratch), START) as (url, _):
        ask_all(clients, variables(url, f"waver/{PRESET}" if large else "chat", DEFAULT_EMBEDDER), Path(scratch))
        written = tokens(url) if large else {}
    numbers = report.conditions(NAME, settings)
    known |= {client.name: client for client in clients}
    shown = [known[each.name] for each in find() if each.name in known]
    numbers |= {"clients": _plain(shown), "tokens": written}
    report.write(out, stem, numbers, page(shown, written))


def chosen(only: list[str] | None) -> list[Client]:
    """Find the scripts of these names, or all.

    Raises:
        typer.BadParameter: there is none of a name.
    """
    clients = [client for client in find() if not only or client.name in only]
    if not clients:
        raise typer.BadParameter(f"there is none of these; there are {', '.join(c.name for c in find())}", None, None)
    unknown = {*(only or ())} - {client.name for client in clients}
    if unknown:
        raise typer.BadParameter(f"there is no script {', '.join(sorted(unknown))} in {SCRIPTS}")
    return clients


def ask_all(clients: Sequence[Client], environment: Mapping[str, str], scratch: Path) -> None:
    """Run the scripts of clients one after the other."""
    with report.progress() as bar:
        for client in bar.track(clients, description="clients"):
            ask(client, environment, scratch / "node")


def _plain(clients: Sequence[Client]) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(client).items() if k != "command"} for client in clients]


def earlier(file: Path) -> dict[str, Client]:
    """Read the results of an earlier run, by name; without the clients whose version is another one now."""
    if not file.exists():
        return {}
    now = {client.name: client.version for client in find()}
    written = json.loads(file.read_text(encoding="utf-8"))
    found = [Client(**{"model": written["settings"]["model"], **each}, command=[]) for each in written["clients"]]
    return {client.name: client for client in found if now.get(client.name) == client.version}


def configuration(model: str, large: str | None, policy: str, dtype: str) -> dict[str, Any]:
    """Make the configuration of a server of one engine, `chat`, or of two that a preset lets write in turns."""
    models = {"chat": model} if large is None else {"small": model, "large": large}
    engines = {name: {"backend": "transformers", "model": each, "dtype": dtype} for name, each in models.items()}
    preset = {} if large is None else {PRESET: [{"name": policy, "small": "small", "large": "large"}]}
    return {"engines": engines, "presets": preset}


@contextmanager
def serving_beside(command: str, scratch: Path) -> Iterator[str]:
    """Yield the address of another server of this machine, which answers `GET /health` once it is ready."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = [word.replace("{port}", str(port)) for word in shlex.split(command)]
    with running(words, scratch / "beside.log", f"{url}/health", START):
        yield url


def variables(url: str, model: str, embedder: str) -> dict[str, str]:
    """Return the environment of the scripts; this process's Python path stays out of theirs."""
    served = {model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]}
    assert {model, embedder} - {""} <= served
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**own, "WAVER_URL": url, "WAVER_MODEL": model, "WAVER_EMBEDDER": embedder}


def tokens(url: str) -> dict[str, int]:
    """Return how many tokens of answers each engine of a server has written."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    samples = [each for family in families for each in family.samples]
    written = [each for each in samples if each.name == "waver_generated_tokens_total"]
    return {each.labels["engine"]: int(each.value) for each in written}


def server_name(url: str, listed: dict[str, Any]) -> str:
    """Name a server by who owns its model, and by its version where it tells that."""
    version = httpx.get(f"{url}/version")
    return f"{listed['owned_by']} {version.json().get('version', '') if version.status_code == 200 else ''}".strip()


def page(clients: Sequence[Client], written: dict[str, int]) -> Iterator[str]:
    """Write the table: a row for each client, and what failed or was said below."""
    yield "# Clients with a pair of models" if written else "# Clients: what works with each"
    checks = list(dict.fromkeys(check for client in clients for check in client.failed))
    rows = [
        [client.name, client.version, client.model, *(_cell(client.failed.get(check)) for check in checks)]
        for client in clients
    ]
    yield report.table(["client", "version", "model", *(check.replace("_", " ") for check in checks)], rows)
    passed = sum(not said for client in clients for said in client.failed.values())
    asked = sum(len(client.failed) for client in clients)
    wrote = "".join(f" {count} tokens were written by `{engine}`." for engine, count in written.items())
    yield f"{passed} of {asked} checks pass; empty: the client has no such thing.{wrote}"
    notes = [
        f"- {client.name}, {check.replace('_', ' ')}: {said}"
        for client in clients for check, said in {**client.failed, **client.said}.items() if said
    ]  # fmt: skip
    if notes:
        yield "\n".join(notes)


def page_beside(clients: Sequence[Client], others: Sequence[Client], name: str) -> Iterator[str]:
    """Write the tests of each client that not both servers pass, and how many each passes."""
    yield f"# Clients: Waver beside {name}, with the same weights"
    for client, other in zip(clients, others, strict=True):
        ours, theirs = (each.parts or each.failed for each in (client, other))
        tests = list(dict.fromkeys([*ours, *theirs]))
        counts = [sum(of.get(test) == "" for test in tests) for of in (ours, theirs)]
        yield (
            f"{client.name} ({client.version}) with {client.model}: Waver passes {counts[0]} and {name} {counts[1]} of "
            f"{len(tests)} tests."
        )
        rows = [[test.replace("_", " "), _cell(ours.get(test)), _cell(theirs.get(test))] for test in tests]
        yield report.table(["test", "Waver", name], rows)
        notes = [
            f"- {test.replace('_', ' ')}, {who}: {of[test]}"
            for test in tests for who, of in (("Waver", ours), (name, theirs)) if of.get(test)
        ]  # fmt: skip
        if notes:
            yield "\n".join(notes)


def _cell(failed: str | None) -> str:
    return "" if failed is None else "no" if failed else "yes"
