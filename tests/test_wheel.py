"""The wheel beside a project of somebody else, whose folders have the names of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

import httpx
import pytest

from tests.engines.vllm_here import needs_vllm
from tests.engines.vllm_serving import vllm_serving

ROOT = Path(__file__).parents[1]
THEIRS = "engines entropy policies retrieval server clients training benchmarks models configs".split()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment: the wheel is installed there, its requirements are those of the tests.

    The tests' own environment lends its packages by a path that comes last, so that the checkout stays out of sight.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", with_pip=False)
    paths = sysconfig.get_paths("venv", vars={"base": str(folder / "env"), "platbase": str(folder / "env")})
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(wheels, check=True)
    (wheel,) = folder.glob("waver_llm-*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", paths["purelib"], str(wheel)]
    subprocess.run(install, check=True)
    (Path(paths["purelib"]) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # The tests' environment may know the checkout by another name, whose record would bring the plugin a second time.
    for name in {each.dist.name for each in entry_points(group="vllm.logits_processors") if each.dist}:
        if name != "waver-llm":
            info = Path(paths["purelib"]) / f"{name}-0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    return Path(paths["scripts"]) / "python"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of somebody else, with empty packages of our names in it."""
    folder = tmp_path / "project"
    for name in THEIRS:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    return folder


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(python: Path, project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), *arguments], cwd=project, env=environment(), capture_output=True, text=True, check=False
    )


def test_training_is_found_beside_a_package_of_that_name(python: Path, project: Path) -> None:
    code = "import waver.training.rl as rl, training; print(rl.__file__); print(training.__file__)"
    done = run(python, project, "-c", code)
    assert done.returncode == 0, done.stderr
    ours, theirs = done.stdout.splitlines()
    assert Path(ours).is_relative_to(python.parents[1])
    assert Path(theirs) == project / "training" / "__init__.py"


@contextmanager
def serving(python: Path, project: Path) -> Iterator[str]:
    """`waver serve` with its bundled pair; yields its address."""
    command = [str(python), "-m", "waver", "serve", "--port", "0"]
    with subprocess.Popen(
        command, cwd=project, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "Waver listens on" in line:
                    yield line.split()[-1]
                    return
            raise AssertionError("".join(lines))
        finally:
            process.terminate()


def test_a_server_answers(python: Path, project: Path) -> None:
    with serving(python, project) as url, httpx.Client(base_url=url, timeout=120) as http:
        until = time.monotonic() + 120
        while http.get("/ready").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.2)
        body = {"messages": [{"role": "user", "content": "What is 34 + 25 - 17?"}], "temperature": 0}
        answer = http.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"].endswith("42.")
    assert set(answer["waver"]["tokens"]) <= {"small", "large"}


@pytest.mark.parametrize("name", [[], ["frontier"], ["vllm-steps", "--help"]])
def test_benchmarks_are_said_to_be_elsewhere(name: list[str], python: Path, project: Path) -> None:
    done = run(python, project, "-m", "waver", "bench", *name)
    assert done.returncode == 1
    said = "The benchmarks come with Waver's repository, not with the installed package: clone it.\n"
    assert (done.stdout, done.stderr) == ("", said)


@needs_vllm
def test_vllm_serves_with_the_plugin_and_a_gate_fires(python: Path, project: Path, tmp_path: Path) -> None:
    with vllm_serving(tmp_path, plugin=True, python=python, cwd=project) as served:
        served.until_up()
        gate = {"threshold": 0.05, "window": 2}
        body = {
            "model": "small",
            "messages": [{"role": "user", "content": "What is 40 + 41 + 87 - 34 + 21 - 83?"}],
            "temperature": 0,
            "vllm_xargs": {"waver": json.dumps({"gate": gate})},
        }
        (choice,) = httpx.post(f"{served.v1}/chat/completions", json=body, timeout=120).json()["choices"]
    assert choice["message"]["content"] == "40 + 41 = 81. 81 + 87 = 1"
    assert (choice["finish_reason"], choice["stop_reason"] is None) == ("stop", False)
