"""Send what schemathesis makes of the OpenAPI description to a server: no failure, no hang, answers that conform."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import yaml

from waver.benchmarks import report
from waver.benchmarks.own_keys import add_key
from waver.benchmarks.processes import free_port, running

VERSION = "4.32.5"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ignored_auth",
)
"""Left out are those that ask whether every body that fits the description is accepted, and every other one refused:
what a model, a policy and a budget allow is not in it."""
HANG = 30.0
"""Seconds to an answer, after which a request counts as hung; the server gives each 20."""
START = 300.0

app = report.command()


def described(url: str, key: str) -> dict[str, Any]:
    """Return the description of a server; the `timeout` of a request is one second at least, so that no request asks to
    be given up at once, which is a 504."""
    found: dict[str, Any] = (
        httpx.get(f"{url}/openapi.json", headers={"authorization": f"Bearer {key}"}).raise_for_status().json()
    )
    for schema in found["components"]["schemas"].values():
        if "timeout" in schema.get("properties", {}):
            schema["properties"]["timeout"] = {"type": "number", "minimum": 10, "maximum": 20}
    return found


def configuration(folder: Path, port: int) -> Path:
    """Write the configuration of a server of the bundled pair, whose answers are short."""
    file = folder / "waver.yaml"
    content = {
        "engines": {name: {"model": f"models/{name}"} for name in ("small", "large")},
        "presets": {"frugal": [{"name": "ead", "small": "small", "large": "large", "threshold": 0.5}]},
        "state": str(folder / "state"),
        "retrieval": {"path": str(folder / "collections")},
        "server": {"port": port, "default_max_tokens": 16, "timeout": 20, "max_extra_tokens": 2000},
    }
    file.write_text(yaml.safe_dump(content))
    return file


def send(url: str, key: str, folder: Path, examples: int, seed: int, workers: int) -> dict[str, Any]:
    """Run schemathesis in an environment of its own; return its report.

    Raises:
        RuntimeError: it wrote none.
    """
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise typer.BadParameter("uv is missing: make install, or pip install uv")
    spec, found = folder / "openapi.json", folder / "report.json"
    spec.write_text(json.dumps(described(url, key)))
    command = [
        uv, "run", "--quiet", "--no-project", "--isolated", "--with", f"schemathesis=={VERSION}", "--",
        "schemathesis", "run", str(spec), "--url", url, "-H", f"Authorization: Bearer {key}",
        "--checks", ",".join(CHECKS), "--request-timeout", str(HANG), "--phases", "coverage,fuzzing",
        "--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure", "--workers", str(workers),
        "--report", "json", "--report-json-path", str(found), "--no-color", "--warnings", "off",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if not found.exists():
        raise RuntimeError(f"schemathesis wrote no report:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(found.read_text()) | {"shown": shown(done.stdout)}


def shown(output: str) -> list[str]:
    """Return a line for each failure that was printed: the route, and what was wrong."""
    found, route = [], ""
    for line in output.splitlines():
        if titled := re.fullmatch(r"_{3,} (.+?) _{3,}", line.strip()):
            route = titled[1]
        elif line.startswith("- ST"):
            found.append(f"{route}: {line.removeprefix('- ')}")
    return found


def page(numbers: Mapping[str, Any]) -> list[str]:
    """Return the page of results."""
    found = numbers["schemathesis"]
    failures = found["failures"]
    return [
        "# Conformance: schemathesis over the OpenAPI description",
        f"{found['cases']} cases for {found['operations']} operations by schemathesis {VERSION}, with the checks "
        f"{', '.join(CHECKS)}, an admin key, and {HANG:g} s for each answer. It took {found['seconds']:.0f} s.",
        "No case failed: no status from 500 on, no hang, every answer as described."
        if not failures
        else "Failed:\n\n" + "\n".join(f"- {each}" for each in failures),
    ]


@app.command()
def main(
    context: typer.Context,
    examples: Annotated[int, typer.Option(min=1, help="Random bodies for each operation, besides the limits.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the cases.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 2,
    out: report.Out = report.RESULTS,
) -> None:
    """Send thousands of cases that schemathesis makes of the OpenAPI description to a server of the bundled pair.

    Writes conformance.json and .md. Some three minutes on two cores. Ends with 1 where a case failed.
    """
    numbers = report.conditions("conformance", dict(context.params))
    with tempfile.TemporaryDirectory() as scratch:
        folder, port = Path(scratch), free_port()
        file = configuration(folder, port)
        key = add_key(file, "root", "--role", "admin")
        command = [sys.executable, "-m", "waver", "serve", "--config", str(file)]
        url = f"http://127.0.0.1:{port}"
        with running(command, folder / "log", f"{url}/ready", START):
            found = send(url, key, folder, examples, seed, workers)
            up = httpx.get(f"{url}/ready").status_code == 200
    failures = found["shown"] or [f"{each['title']}: {', '.join(each['operations'])}" for each in found["failures"]]
    numbers["schemathesis"] = {
        "version": VERSION, "cases": found["test_cases"]["generated"], "operations": found["operations"]["tested"],
        "seconds": found["running_time"], "failures": failures + ([] if up else ["the server is gone"]),
    }  # fmt: skip
    report.write(out, "conformance", numbers, page(numbers))
    if numbers["schemathesis"]["failures"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
