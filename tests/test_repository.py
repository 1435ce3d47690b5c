"""What a person clones: the pins, the wheel, and a `make` that installs once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHIPPED = "entropy engines policies retrieval server clients training cli models configs".split()


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("group", ["dependencies", "retrieval", "qdrant", "bench", "test"])
def test_every_requirement_is_pinned_within_its_range(group: str) -> None:
    wanted = PROJECT["dependencies"] if group == "dependencies" else PROJECT["optional-dependencies"][group]
    for requirement in map(Requirement, wanted):
        if requirement.name != "waver":
            assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)]), str(requirement)


def test_pins_fit_any_build() -> None:
    """A local label such as +cpu would bar the machines that need another build of the same release."""
    assert not [name for name, version in pins().items() if "+" in version]


def test_the_wheel_holds_the_packages_and_the_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("waver-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"waver", f"waver-{PROJECT['version']}.dist-info"}
    assert {name.split("/")[1] for name in names if name.count("/") > 1 and name.startswith("waver/")} == {*SHIPPED}
    assert not [name for name in names if re.search(r"\.pth$|\.pyc$|\.bin$|(^|/)tests/", name)]
    for pair in ("small", "large"):
        assert f"waver/models/{pair}/config.json" in names


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_serve_installs_once(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch()

    def plan() -> str:
        """What `make serve` would do, without doing it."""
        return subprocess.run(
            ["make", "--no-print-directory", "-n", "serve"], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert "pip" in plan()
    (tmp_path / ".venv/.serve").touch()
    assert plan() == ".venv/bin/waver serve \n"
    later = (tmp_path / ".venv/.serve").stat().st_mtime + 60
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert "pip" in plan()
