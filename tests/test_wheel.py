"""The wheel beside a project of somebody else, whose folders have the names of ours; it serves without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.engines.vllm_here import needs_vllm
from tests.engines.vllm_serving import Served


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(python: Path, project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), *arguments], cwd=project, env=environment(), capture_output=True, text=True, check=False
    )


def test_training_is_found_beside_a_package_of_that_name(installed: Path, their_project: Path) -> None:
    code = "import waver.training.rl as rl, training; print(rl.__file__); print(training.__file__)"
    done = run(installed, their_project, "-c", code)
    assert done.returncode == 0, done.stderr
    ours, theirs = done.stdout.splitlines()
    assert Path(ours).is_relative_to(installed.parents[1])
    assert Path(theirs) == their_project / "training" / "__init__.py"


INSIDE = """
import fcntl, json, os, socket, struct, subprocess, sys, time, urllib.request

alone = sys.argv[1] == "alone"
if alone:
    interfaces = {name for _, name in socket.if_nameindex()}
    assert interfaces == {"lo"}, interfaces
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:  # what "ip link set lo up" does
        fcntl.ioctl(s, 0x8914, struct.pack("16sH14s", b"lo", 0x1 | 0x40, b""))

command = [sys.executable, "-m", "waver", "serve", "--port", "0"]
server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
try:
    said = []
    for line in server.stderr:
        said.append(line)
        if "Waver listens on" in line:
            break
    else:
        sys.exit("".join(said))
    url = line.split()[-1]
    for _ in range(240):
        try:
            urllib.request.urlopen(url + "/ready", timeout=5)
            break
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.5)
    body = {"messages": [{"role": "user", "content": "What is 34 + 25 - 17?"}], "temperature": 0}
    request = urllib.request.Request(
        url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    print(urllib.request.urlopen(request, timeout=60).read().decode())
finally:
    server.terminate()
    server.communicate(timeout=60)
"""


def unshare() -> list[str] | None:
    """The command that runs another one without a network, if this machine lets us."""
    for flags in (["--net"], ["--net", "--map-root-user"]):
        command = [shutil.which("unshare") or "unshare", *flags]
        try:
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
        except OSError:
            return None
    return None


def test_a_first_answer_of_the_installed_server_without_a_network(installed: Path, their_project: Path) -> None:
    """The bundled pair, in an empty network namespace where the machine lets a test make one."""
    alone = unshare()
    command = [*(alone or []), str(installed), "-c", INSIDE, "alone" if alone else "as it is"]
    done = subprocess.run(
        command, cwd=their_project, env=environment(), capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"].endswith("42.")
    assert set(answer["waver"]["tokens"]) <= {"small", "large"}
    if alone is None:
        pytest.skip("it answers; this machine does not let a test make a network namespace")


@pytest.mark.parametrize("name", [[], ["frontier"], ["vllm-steps", "--help"]])
def test_benchmarks_are_said_to_be_elsewhere(name: list[str], installed: Path, their_project: Path) -> None:
    done = run(installed, their_project, "-m", "waver", "bench", *name)
    assert done.returncode == 1
    said = "The benchmarks come with Waver's repository, not with the installed package: clone it.\n"
    assert (done.stdout, done.stderr) == ("", said)


@needs_vllm
@pytest.mark.timeout(1500)  # two servers start first
def test_vllm_serves_with_the_plugin_and_a_gate_fires(vllm_serve: Served, installed: Path) -> None:
    assert vllm_serve.process.args[0] == str(installed)  # type: ignore[index]
    gate = {"threshold": 0.05, "window": 2}
    body = {
        "model": "small",
        "messages": [{"role": "user", "content": "What is 40 + 41 + 87 - 34 + 21 - 83?"}],
        "temperature": 0,
        "vllm_xargs": {"waver": json.dumps({"gate": gate})},
    }
    (choice,) = httpx.post(f"{vllm_serve.v1}/chat/completions", json=body, timeout=120).json()["choices"]
    assert choice["message"]["content"] == "40 + 41 = 81. 81 + 87 = 1"
    assert (choice["finish_reason"], choice["stop_reason"] is None) == ("stop", False)
