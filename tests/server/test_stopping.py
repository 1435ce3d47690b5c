"""A server that is told to stop: what still runs when the time is over is told so, and the process ends in time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import ROOT, until
from waver.benchmarks.processes import free_port
from waver.server.run import CLOSE, FLUSH

GRACE = 1
SLACK = 60
"""Seconds more than a server has to end, for machines that do much else: without an end it would take minutes."""
LONG = {"prompt": "The", "max_tokens": 1000, "ignore_eos": True, "policy": [], "model": "small"}
SLOW = """
import sys, time
from waver.retrieval.collection import Collection
from waver.server.run import serve

def prepare(self, *args, **options):
    print("ingesting", flush=True)
    time.sleep(600)

Collection.prepare_all = prepare
sys.exit(serve(sys.argv[1]))
"""

Begin = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def begin(tiny_config: dict[str, Any], tmp_path: Path) -> Iterator[Begin]:
    """Start a server whose requests are given `GRACE` seconds; its process and its address."""
    processes = []

    def one(code: str) -> tuple[subprocess.Popen[str], str]:
        port, file = free_port(), tmp_path / "waver.yaml"
        content = {**tiny_config, "server": {"port": port, "shutdown_grace": GRACE}}
        content["retrieval"] = {"path": str(tmp_path / "data")}
        file.write_text(yaml.safe_dump(content))
        log = (tmp_path / "log").open("w")
        command = [sys.executable, "-c", code, str(file)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        log.close()
        processes.append(process)
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(url), "the server", 120)
        return process, url

    yield one
    for process in processes:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.HTTPError:
        return False


def test_streams_end_with_an_error_and_answers_with_a_status(begin: Begin) -> None:
    process, url = begin("import sys; from waver.server.run import serve; sys.exit(serve(sys.argv[1]))")
    whole = list[httpx.Response]()
    many = {**LONG, "n": 32}  # longer than the grace on any machine
    other = threading.Thread(target=lambda: whole.append(httpx.post(f"{url}/v1/completions", json=many, timeout=120)))
    other.start()
    with httpx.stream("POST", f"{url}/v1/completions", json={**many, "stream": True}, timeout=120) as answer:
        lines = answer.iter_lines()
        next(lines)
        until(lambda: "waver_requests_running 2.0" in httpx.get(f"{url}/metrics", timeout=120).text, "both requests")
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        rest = [line for line in lines if line]
    assert time.monotonic() - told > GRACE * 0.9
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "server_stopping"
    other.join()
    assert whole[0].status_code == 503
    assert whole[0].json()["error"]["code"] == "server_stopping"
    process.wait(FLUSH + CLOSE + SLACK)
    assert time.monotonic() - told < GRACE + FLUSH + CLOSE + SLACK


def test_an_ingest_does_not_keep_the_process(begin: Begin, tmp_path: Path) -> None:
    """Its thread cannot be stopped; what it has not acknowledged is not there."""
    process, url = begin(SLOW)
    assert httpx.post(f"{url}/v1/collections", json={"name": "c"}, timeout=120).status_code == 200
    answered = list[httpx.Response]()
    body = {"documents": [{"id": "d", "text": "Some text."}]}
    bringing = threading.Thread(
        target=lambda: answered.append(httpx.post(f"{url}/v1/collections/c/documents", json=body, timeout=120))
    )
    bringing.start()
    until(lambda: "ingesting" in (tmp_path / "log").read_text(), "the ingest")
    process.terminate()
    told = time.monotonic()
    process.wait(GRACE + FLUSH + CLOSE + SLACK)
    assert time.monotonic() - told < GRACE + FLUSH + CLOSE + SLACK
    bringing.join()
    assert answered[0].status_code == 503
