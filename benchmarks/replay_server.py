"""Start servers of the bundled pair from any checkout of Waver, also from one that imports nothing as `waver.…`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from waver.benchmarks.processes import free_port, running

HERE = Path(__file__).resolve().parents[1]
"""The checkout that this file belongs to."""
KEY = "replay"
KEYS_VARIABLE = "WAVER_REPLAY_KEYS"
START = 900.0
"""Seconds that a server may take to start."""
GROUP = "vllm.logits_processors"
DISTRIBUTIONS = ("waver", "waver-llm")
"""Names that Waver has had on a package index."""
RELEASE = "0.1.0"
"""The version in the metadata that is written; nothing depends on it."""
VLLM_ARGS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_num_seqs": 32,
    "kv_cache_memory_bytes": 2**28,
}
BACKENDS: dict[str, dict[str, Any]] = {
    "transformers": {"backend": "transformers"},
    "vllm": {"backend": "vllm", "args": VLLM_ARGS},
}


PRESETS: dict[str, list[dict[str, Any]]] = {
    "frugal": [{"name": "ead", "threshold": 0.1, "threshold_down": 0.001, "window": 2, "min_tokens": 1}],
    "careful": [
        {"name": "ead", "threshold": 0.2, "window": 1, "min_tokens": 1, "threshold_down": None},
        {"name": "top_p", "p": 0.8},
    ],
    "coin": [{"name": "random_switch", "rate": 0.4}],
    "warm": [{"name": "adaptive_temperature"}, {"name": "min_p", "p": 0.05}],
}
POLICIES: dict[str, dict[str, Any]] = {
    "l_rag": {"threshold": 0.18, "top_k": 1},
    "diffadapt": {
        "easy": {"words": "Simple task: answer now.", "temperature": None},
        "normal": {"words": "Work through it in order, one step at a time.", "temperature": None, "top_p": None},
        "hard": {"words": "Complex task: sketch the key route only, keep it short.", "temperature": None},
    },
    "forced_answer": {"words": " The answer is", "tokens": 8, "temperature": None, "until": "."},
}
"""Defaults of policies, as the pair has learned them. They stay: another configuration gives other answers."""


def config(tree: Path, backend: str, data: Path) -> dict[str, Any]:
    """The bundled pair of a checkout, with presets, probes and defaults that are the same for every checkout.

    Args:
        data: a folder for collections.
    """
    models = tree / "models"
    probes = {
        f"{name}-{kind}": str(models / name / "probe" / kind.replace("-", "_"))
        for name in ("large", "small")
        for kind in ("oracle", "paper", "strict-easy")
    }
    return {
        "engines": {name: {"model": str(models / name), **BACKENDS[backend]} for name in ("small", "large")},
        "presets": PRESETS,
        "default_preset": "frugal",
        "probes": probes,
        "policies": POLICIES,
        "retrieval": {"path": str(data)},
        "server": {"port": free_port(), "api_keys_env": KEYS_VARIABLE},
    }


def environment(tree: Path, folder: Path) -> dict[str, str]:
    """Return variables under which Python imports that checkout, and vLLM loads its plugin and not that of an installed
    one.

    vLLM finds plugins by the metadata of installed distributions: for each name that Waver's has had, one is written to
    `folder`, which hides an installed one; that of the checkout's pyproject.toml names its plugin.

    Raises:
        RuntimeError: another plugin would be loaded.
    """
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    plugin = project["entry-points"][GROUP]["waver"]
    for name in {*DISTRIBUTIONS, project["name"]}:
        info = folder / f"{name.replace('-', '_')}-{RELEASE}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {RELEASE}\n")
        if name == project["name"]:
            (info / "entry_points.txt").write_text(f"[{GROUP}]\nwaver = {plugin}\n")
    found = {"PYTHONPATH": f"{folder}{os.pathsep}{tree}", KEYS_VARIABLE: KEY}
    module = plugin.split(":")[0]
    code = (
        "import importlib.metadata as m, importlib.util as u, json;"
        f"print(json.dumps([[e.value for e in m.entry_points(group={GROUP!r})], u.find_spec({module!r}).origin]))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | found, cwd=tree, capture_output=True, text=True, check=True
    )
    names, origin = json.loads(said.stdout)
    if names != [plugin] or not Path(origin).resolve().is_relative_to(tree.resolve()):
        raise RuntimeError(f"vLLM would load {names} ({origin}) instead of the plugin of {tree}")
    return found


def python(tree: Path, *words: str) -> list[str]:
    """Return the command that runs `waver WORDS` from a checkout."""
    script = tree / "waver.py"
    start = [str(script)] if script.exists() else ["-P", "-m", "waver"]  # -P: not what lies in the working directory
    return [sys.executable, *start, *words]


@contextmanager
def serving(tree: Path, backend: str, folder: Path) -> Iterator[httpx.Client]:
    """Yield a server from a checkout with that backend's engines, and a client with its key.

    Args:
        folder: an empty one for its configuration, collections and log.
    """
    settings = config(tree, backend, folder / "collections")
    file = folder / "waver.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    address = f"http://127.0.0.1:{settings['server']['port']}"
    env: Mapping[str, str] = environment(tree, folder / "metadata")
    command = python(tree, "serve", "--config", str(file))
    with running(command, folder / "server.log", f"{address}/ready", START, env):
        headers = {"authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=address, headers=headers, timeout=300) as client:
            yield client
