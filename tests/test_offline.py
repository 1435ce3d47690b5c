"""After installation nothing needs a network: the bundled pair is served inside an empty network namespace."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

INSIDE = """
import fcntl, json, os, socket, struct, subprocess, sys, time, urllib.request

interfaces = {name for _, name in socket.if_nameindex()}
assert interfaces == {"lo"}, interfaces
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:  # what "ip link set lo up" does
    fcntl.ioctl(s, 0x8914, struct.pack("16sH14s", b"lo", 0x1 | 0x40, b""))

server = subprocess.Popen([sys.executable, "-m", "waver", "serve", "--port", "8123"], stdout=subprocess.DEVNULL)
try:
    for _ in range(120):
        try:
            urllib.request.urlopen("http://127.0.0.1:8123/ready", timeout=5)
            break
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(1)
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0}
    request = urllib.request.Request(
        "http://127.0.0.1:8123/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    answer = json.load(urllib.request.urlopen(request, timeout=60))
    print(answer["choices"][0]["message"]["content"])
finally:
    server.terminate()
    server.wait(60)
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


def test_a_first_answer_without_a_network() -> None:
    command = unshare()
    if command is None:
        pytest.skip("this machine does not let a test make a network namespace")
    done = subprocess.run(
        [*command, sys.executable, "-c", INSIDE], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("Hello!")
