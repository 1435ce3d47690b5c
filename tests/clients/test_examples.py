"""Every worked example runs as it stands, against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "clients" / "examples"


def run(name: str, base_url: str, said: str = "") -> str:
    """Return the output of an example to whom `said` is typed."""
    program = "sh" if name.endswith(".sh") else sys.executable
    done = subprocess.run(
        [program, str(EXAMPLES / name)],
        capture_output=True, text=True, timeout=120, input=said,
        env=os.environ | {"WAVER_BASE_URL": base_url, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    tested = {"curl.sh", "openai_sdk.py", "streaming.py", "async_openai.py", "asking_back.py"}
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == tested


def test_curl(base_url: str) -> None:
    response = json.loads(run("curl.sh", base_url))
    assert response["choices"][0]["message"]["content"]
    assert sum(response["waver"]["tokens"].values()) == response["usage"]["completion_tokens"]


def test_openai_sdk(base_url: str) -> None:
    assert "'relative_cost'" in run("openai_sdk.py", base_url)


def test_streaming(base_url: str) -> None:
    *tokens, summary = run("streaming.py", base_url).splitlines()
    assert tokens
    assert all(line.endswith("nats") for line in tokens)
    assert "relative cost" in summary


def test_async_openai(base_url: str) -> None:
    printed = run("async_openai.py", base_url)
    for policy in ("small alone", "ead", "random_switch", "route"):
        assert f"{policy}: " in printed


def test_asking_back(base_url: str) -> None:
    *questions, guess, last = [
        each.removeprefix("> ") for each in run("asking_back.py", base_url, "no\n" * 40).splitlines() if each.strip()
    ]
    assert any("?" in each for each in questions)
    assert "still possible: " in guess
    assert last == "Thank you, I did not know."
