"""The command line, run as a person runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from waver import __version__

ROOT = Path(__file__).parents[2]


def waver(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "waver", *arguments],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["--version"], ["serve", "--help"], ["chat", "-h"], ["ingest", "-h"], ["bench", "-h"]),
        *(
            ["calibrate", "l_rag", "-h"],
            ["train", "rl", "-h"],
            ["train", "probe", "-h"],
            ["train", "bundled", "-h"],
            ["tune", "-h"],
            ["edit", "-h"],
            ["forget", "-h"],
            ["preferences", "-h"],
            ["train", "dpo", "-h"],
            ["inspect", "attention", "-h"],
            ["train", "tool-light", "-h"],
            ["train", "draft", "-h"],
        ),
    ],
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    done = waver(*arguments)
    assert done.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "typer" in loaded
    assert not loaded & {"torch", "transformers", "openai", "fastapi", "uvicorn"}


def test_help_lists_the_commands() -> None:
    shown = waver("--help").stdout
    assert all(command in shown for command in ("serve", "chat", "ingest", "--version"))
    assert waver("--version").stdout == f"waver {__version__}\n"


def test_without_arguments_the_help_is_shown() -> None:
    assert "Usage:" in waver().stdout


def test_a_shell_completes_commands() -> None:
    environment = os.environ | {"_WAVER_COMPLETE": "complete_bash", "COMP_WORDS": "waver calibrate ", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", "from waver.cli import app; app(prog_name='waver')"],
        capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert {"l_rag", "arms"} <= set(done.stdout.split())


def test_exit_statuses_are_documented() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    assert all(f"| {status} |" in page for status in (0, 1, 2, 3, 130, 143))
    assert "while it still loads its libraries, before it listens, with 130" in page
    assert "130 stopped by ctrl-C" in " ".join(waver("--help").stdout.replace("│", " ").split())


def test_a_bad_configuration_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "waver.yaml"
    file.write_text("engines: {small: {backend: transformers, model: models/small}}\nmodel: x\n")
    done = waver("serve", "--config", str(file), "--port", "0")
    assert done.returncode == 1
    assert "unknown key 'model'" in done.stderr
    assert "Traceback" not in done.stderr


STOPPED = """
import sys, time, types
from pathlib import Path
from waver.cli.bench import benchmark
from waver.benchmarks.processes import free_port, running

def work(args, prog_name):
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with running(command, Path(sys.argv[1]), f"http://127.0.0.1:{port}/", 60) as process:
        print(process, flush=True)
        time.sleep(60)

sys.modules["waver.benchmarks.fake"] = types.SimpleNamespace(app=work)
benchmark("fake")(types.SimpleNamespace(args=[]))
"""


def test_a_benchmark_that_is_told_to_stop_ends_what_it_has_started(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        os.kill(server, 0)  # it is there
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
