"""Other people's clients as scripts, each in an environment of its own: what there are, and what their checks say.

Every script of tests/clients/matrix runs in an environment which `uv` makes of the versions that it names; those
for Node by `npm ci`. A script prints a line of JSON for each of its checks, and for each part of one that has many.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import typer

SCRIPTS = Path(__file__).resolve().parent.parent / "tests" / "clients" / "matrix"
ENOUGH = 1800.0
"""Seconds that a script is given, with the time to make its environment."""
PINNED = re.compile(r'^# dependencies = \["([^"\[=]{1,80})(?:\[[a-z,]{1,40}\])?==([^"]{1,40})"', re.M)
NODE = {
    "openai": ("node", "openai"), "ai_sdk": ("node", "ai"), "langchain": ("node", "@langchain/openai"),
    "promptfoo": ("promptfoo", "promptfoo"),
}  # fmt: skip
"""Folders of the scripts for Node, and the packages that these are about."""


@dataclass
class Client:
    """A client, the model that it was run with, and what came of its checks and of their parts: an empty text where one
    passed, and else what went wrong."""

    name: str
    version: str
    command: list[str]
    failed: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    model: str = ""


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
        if line.startswith('{"part"'):
            told = json.loads(line)
            client.parts[told["part"]] = told["failed"]
        elif line.startswith('{"check"'):
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
