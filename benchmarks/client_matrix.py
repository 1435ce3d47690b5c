"""Run other people's clients, unmodified and at pinned versions, against a server: what works with each.

Every script of tests/clients/matrix runs in an environment of its own, which `uv` makes of the versions that the script
names; those for Node by `npm ci`. A script prints a line of JSON for each of its checks.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import typer
import yaml

from waver.benchmarks import report
from waver.benchmarks.processes import free_port, running
from waver.retrieval.config import DEFAULT_EMBEDDER

SCRIPTS = Path(__file__).resolve().parent.parent / "tests" / "clients" / "matrix"
START = 600.0
"""Seconds that a server is given to load its libraries and models."""
ENOUGH = 1800.0
"""Seconds that a script is given, with the time to make its environment."""
PINNED = re.compile(r'^# dependencies = \["([^"\[=]{1,80})(?:\[[a-z,]{1,40}\])?==([^"]{1,40})"', re.M)
NODE = {
    "openai": ("node", "openai"), "ai_sdk": ("node", "ai"), "langchain": ("node", "@langchain/openai"),
    "promptfoo": ("promptfoo", "promptfoo"),
}  # fmt: skip
"""Folders of the scripts for Node, and the packages that these are about."""
NAME = "client-matrix"

app = report.command()


@dataclass
class Client:
    """A client, and what came of its checks: an empty text where one passed, and else what went wrong."""

    name: str
    version: str
    command: list[str]
    failed: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)


@app.command()
def main(
    model: Annotated[str, typer.Option(help="Folder or hub id of a chat model whose template shows tools.")],
    only: Annotated[
        list[str] | None,
        typer.Option(help="Name of a script, as openai_python; repeatable. Others keep their last result."),
    ] = None,
    out: report.Out = report.RESULTS,
) -> None:
    """Run other people's clients against a server, and write which of their features work.

    Needs the network (packages) and, for the clients of Node, `node` and `npm`. A small model is enough: calls are
    forced where a check is about calls.

        waver bench client-matrix --model qwen2.5-0.5b-instruct
    """
    clients = [client for client in find() if not only or client.name in only]
    if not clients:
        raise typer.BadParameter(f"there is none of these; there are {', '.join(c.name for c in find())}", None, None)
    unknown = {*(only or ())} - {client.name for client in clients}
    if unknown:
        raise typer.BadParameter(f"there is no script {', '.join(sorted(unknown))} in {SCRIPTS}")
    with tempfile.TemporaryDirectory() as scratch, serving(model, Path(scratch)) as url, report.progress() as bar:
        environment = variables(url)
        modules = Path(scratch) / "node"
        for client in bar.track(clients, description="clients"):
            ask(client, environment, modules)
    numbers = report.conditions(NAME, {"model": Path(model).name, "only": only or []})
    known = earlier(out) if only else {}
    asked = {client.name: client for client in clients}
    shown = [asked.get(each.name) or known[each.name] for each in find() if each.name in {**known, **asked}]
    numbers["clients"] = [{k: v for k, v in asdict(client).items() if k != "command"} for client in shown]
    report.write(out, "client_matrix", numbers, page(shown))


def earlier(out: Path) -> dict[str, Client]:
    """Read the results of an earlier run, by name; without the clients whose version is another one now."""
    file = out / "client_matrix.json"
    if not file.exists():
        return {}
    now = {client.name: client.version for client in find()}
    found = [Client(**each, command=[]) for each in json.loads(file.read_text(encoding="utf-8"))["clients"]]
    return {client.name: client for client in found if now.get(client.name) == client.version}


def find() -> list[Client]:
    """List the scripts, in the order of the page."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise typer.BadParameter("uv is missing: make install, or pip install uv")
    found = []
    for script in sorted(SCRIPTS.glob("*.py")):
        if pinned := PINNED.search(script.read_text(encoding="utf-8")):
            command = [uv, "run", "--quiet", "--no-project", "--script", str(script)]
            found.append(Client(script.stem, f"{pinned[1]} {pinned[2]}", command))
    for stem, (folder, package) in NODE.items():
        versions = json.loads((SCRIPTS / folder / "package.json").read_text(encoding="utf-8"))["dependencies"]
        found.append(Client(f"{stem}_node", f"{package} {versions[package]}", ["node", f"{stem}.mjs"]))
    return found


@contextmanager
def serving(model: str, scratch: Path) -> Iterator[str]:
    """Yield the address of a server of one engine, `chat`, and the default embedder."""
    port, file = free_port(), scratch / "waver.yaml"
    content = {
        "engines": {"chat": {"backend": "transformers", "model": model}},
        "server": {"port": port}, "retrieval": {"path": str(scratch / "data")},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content))
    url = f"http://127.0.0.1:{port}"
    with running(
        [sys.executable, "-m", "waver", "serve", "--config", str(file)], scratch / "log", f"{url}/ready", START
    ):
        yield url


def variables(url: str) -> dict[str, str]:
    """Return the environment of the scripts; this process's Python path stays out of theirs."""
    served = {model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]}
    assert {"chat", DEFAULT_EMBEDDER} <= served
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**own, "WAVER_URL": url, "WAVER_MODEL": "chat", "WAVER_EMBEDDER": DEFAULT_EMBEDDER}


def ask(client: Client, environment: Mapping[str, str], modules: Path) -> None:
    """Run the script of a client and note what its checks say; a script that breaks fails a check of its own."""
    folder = SCRIPTS
    try:
        if client.name.endswith("_node"):
            folder = _node(modules, NODE[client.name.removesuffix("_node")][0])
        done = subprocess.run(
            client.command,
            cwd=folder,
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=ENOUGH,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        client.failed["start"] = str(error).split("\n")[0][:300]
        return
    for line in done.stdout.splitlines():
        if line.startswith('{"check"'):
            told = json.loads(line)
            client.failed[told["check"]] = "" if told["passed"] else told["said"]
            if told["passed"] and told["said"]:
                client.said[told["check"]] = told["said"]
    if done.returncode or not client.failed:
        client.failed["start"] = (done.stderr.strip().split("\n")[-1] or f"exit status {done.returncode}")[:300]


def _node(modules: Path, name: str) -> Path:
    """Install what the scripts of a folder for Node need beside a copy of them, once."""
    folder = modules / name
    if not folder.exists():
        shutil.copytree(SCRIPTS / name, folder, ignore=shutil.ignore_patterns("node_modules"))
        shutil.copy(SCRIPTS / "node" / "harness.mjs", folder)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, check=True)
    return folder


def page(clients: list[Client]) -> Iterator[str]:
    """Write the table: a row for each client, and what failed or was said below."""
    checks = list(dict.fromkeys(check for client in clients for check in client.failed))
    rows = [[client.name, client.version, *(_cell(client.failed.get(check)) for check in checks)] for client in clients]
    yield report.table(["client", "version", *(check.replace("_", " ") for check in checks)], rows)
    passed = sum(not said for client in clients for said in client.failed.values())
    asked = sum(len(client.failed) for client in clients)
    yield f"{passed} of {asked} checks pass; empty: the client has no such thing."
    notes = [
        f"- {client.name}, {check.replace('_', ' ')}: {said}"
        for client in clients for check, said in {**client.failed, **client.said}.items() if said
    ]  # fmt: skip
    if notes:
        yield "\n".join(notes)


def _cell(failed: str | None) -> str:
    return "" if failed is None else "no" if failed else "yes"
