"""A real `vllm serve`, on the bundled small model: with Waver's plugin, or as it comes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
STARTING = 600.0
"""Seconds that a start may take on a busy machine."""


@dataclass(frozen=True)
class Served:
    """A `vllm serve` that answers at `url` once it is up."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def until_up(self) -> None:
        """Raises:
        RuntimeError: it does not start."""
        deadline = time.monotonic() + STARTING
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            time.sleep(0.5)
        raise RuntimeError(f"vllm serve did not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    @property
    def running(self) -> float:
        """Requests that it is running or that wait in it."""
        return self._metric("vllm:num_requests_running{", "vllm:num_requests_waiting{")

    @property
    def written(self) -> float:
        """Tokens that it has generated."""
        return self._metric("vllm:generation_tokens_total{")

    def _metric(self, *names: str) -> float:
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


@contextmanager
def vllm_serving(folder: Path, plugin: bool, python: Path | None = None, cwd: Path | None = None) -> Iterator[Served]:
    """Begin to start it, and end it with all its processes. `folder` is for its log and for what it finds installed.

    With `python`, the interpreter of another environment runs it, which finds Waver by itself.
    """
    # The command asks for the version of `vllm`, and the CPU build is another package. Where the plugin is not
    # wanted, a record of Waver's package without its entry point comes first on the path.
    _distribution(folder, "vllm", "0.32.0+cpu")
    if not plugin:
        for plugin_of in {entry.dist.name for entry in entry_points(group="vllm.logits_processors") if entry.dist}:
            _distribution(folder, plugin_of, version(plugin_of))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [] if python else [os.environ.get("PYTHONPATH")])]),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    program = (
        [str(python), "-m", "vllm.entrypoints.cli.main"] if python else [str(Path(sys.executable).parent / "vllm")]
    )
    command = [*program, "serve", str(ROOT / "models" / "small")]
    command += ["--served-model-name", "small", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enforce-eager", "--dtype", "float32", "--max-model-len", "1024"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=cwd, start_new_session=True)
    try:
        yield Served(f"http://127.0.0.1:{port}", process, folder / "log")
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        _end_group(process.pid)


def _distribution(folder: Path, name: str, number: str) -> None:
    """Make a package look installed, without any entry point."""
    info = folder / f"{name.replace('-', '_')}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")


def _end_group(group: int) -> None:
    """Kill what is left of a process and its descendants, which share a process group."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
