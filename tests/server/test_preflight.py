"""Errors that keep a server from starting are reported at once, in one sentence; Ctrl-C ends it quietly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from waver import __version__
from waver.extras import how_to_install
from waver.server import preflight
from waver.server.config import load_config

ROOT = Path(__file__).parents[2]

LIGHT = """
import sys
from waver.server.run import serve
status = serve({config!r}, **{flags!r})
heavy = [name for name in ("torch", "transformers", "sklearn", "vllm") if name in sys.modules]
sys.exit(f"loaded {{heavy}}" if heavy else status)
"""


def refused(config: Path | None, environment: dict[str, str] | None = None, **flags: Any) -> str:
    """Return the sentence with which a server ends that cannot start, and has loaded nothing for it."""
    code = LIGHT.format(config=None if config is None else str(config), flags=flags)
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | (environment or {}), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.rstrip()


def test_a_port_in_use_is_named_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refused(None, port=port)
    assert said == (
        f"Waver cannot listen on 127.0.0.1: port {port} is in use; choose another with --port, or 0 for a free one."
    )


def test_an_address_of_another_machine_is_refused() -> None:
    assert refused(None, host="192.0.2.1", allow_no_keys=True).startswith("Waver cannot listen on 192.0.2.1: ")


def test_a_port_out_of_range_names_where_it_was_given(tmp_path: Path) -> None:
    reason = "server.port: Input should be less than or equal to 65535, not 99999"
    assert refused(None, port=99999) == f"--port: {reason}"
    assert refused(None, {"WAVER_SERVER__PORT": "99999"}).startswith("WAVER_SERVER__PORT: server.port: Input should be")
    file = tmp_path / "mine.yaml"
    file.write_text("engines: {small: {model: models/small}}\nserver: {port: 99999}\n")
    assert refused(file) == f"{file}:2: {reason}"


@pytest.mark.parametrize("model", ["/no/such/model", "./here", "../there", "~/mine", "models/of/mine"])
def test_a_missing_model_folder_is_named_at_once(tmp_path: Path, model: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"engines: {{mine: {{model: {model}}}}}\n")
    assert refused(file, port=0) == f"Engine 'mine': there is no model at {model}."


def test_a_folder_without_a_model_is_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"engines: {{mine: {{model: {tmp_path}}}}}\n")
    assert refused(file, port=0) == f"Engine 'mine': {tmp_path} is no model: it has no config.json."


@pytest.mark.parametrize(
    ("content", "absent", "extra"),
    [
        ("engines: {a: {backend: vllm, model: some/model}}", "vllm", "vllm"),
        ("engines: {a: {model: some/model}}\npresets: {p: [{name: l_rag, collection: c}]}", "faiss", "retrieval"),
        ("engines: {a: {model: some/model}}\nretrieval: {embedder: some/encoder}", "faiss", "retrieval"),
        ("engines: {a: {model: some/model}}\nretrieval: {store: qdrant, url: 'http://q'}", "qdrant_client", "qdrant"),
    ],
)
def test_a_missing_extra_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, absent: str, extra: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{content}\nserver: {{port: 0}}\n")
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name == absent else object())
    with pytest.raises(ValueError, match=re.escape(how_to_install(extra))):
        preflight.check_start(load_config(file))
    monkeypatch.setattr(preflight, "find_spec", lambda name: object())
    preflight.check_start(load_config(file))


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_ctrl_c_ends_make_serve_quietly(tmp_path: Path) -> None:
    """As a terminal does it: SIGINT goes to make and to all that it has started."""
    for name in ("Makefile", "pyproject.toml", "uv.lock", "requirements/install.py", "requirements/uv.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    bins = tmp_path / ".venv" / "bin"
    bins.mkdir(parents=True)
    (bins / "python").symlink_to(sys.executable)
    (bins / "waver").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m waver "$@"\n')
    (bins / "waver").chmod(0o755)
    (tmp_path / ".venv" / ".serve").touch()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    log = tmp_path / "log"
    with log.open("w") as file:
        make = subprocess.Popen(
            ["make", "--no-print-directory", "serve", "ARGS=--port 0"],
            cwd=tmp_path, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            address = None
            while address is None and make.poll() is None:
                address = re.search(r"listens on (\S+)", log.read_text())
                time.sleep(0.2)
            assert address, log.read_text()
            while httpx.get(f"{address[1]}/ready", timeout=30).status_code != 200:
                time.sleep(0.2)
            # A grammar and a draw: libraries that would report what they leak.
            body = {
                "model": "small", "messages": [{"role": "user", "content": "What is 1 + 2?"}], "max_tokens": 4,
                "response_format": {"type": "json_object"},
            }  # fmt: skip
            assert httpx.post(f"{address[1]}/v1/chat/completions", json=body, timeout=60).status_code == 200
        finally:
            os.killpg(make.pid, signal.SIGINT)
            make.wait(60)
    lines = [line for line in log.read_text().splitlines() if not line.startswith('{"')]
    assert lines == [
        f"Waver {__version__} reads the configuration of the bundled pair.",
        "Waver loads its libraries and small, large.",
        f"Waver listens on {address[1]}",
        "Waver is ready: open the address in a browser, or run `waver chat` in another terminal. Ctrl-C stops it.",
        "Waver stops.",
        "Goodbye.",
    ]
    logged = [json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"')]
    assert {"loading an engine", "an engine is loaded", "ready", "request"} <= {line["event"] for line in logged}
    assert make.returncode in (0, -signal.SIGINT)
