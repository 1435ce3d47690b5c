"""Commands that cannot go on: which package is missing, and what installs it; nothing is written where git looks."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest
import typer

from waver.benchmarks import report
from waver.cli.bench import BENCHMARKS
from waver.cli.endings import importing
from waver.extras import EXTRAS, how_to_install, how_to_install_vllm

ROOT = Path(__file__).parents[2]


def said(error: BaseException, extra: str | None, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(typer.Exit) as ended, importing(extra):
        raise error
    assert ended.value.exit_code == 1
    return capsys.readouterr().err.strip()


def test_the_command_that_installs_a_missing_package_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    lacking = ModuleNotFoundError("No module named 'psutil'", name="psutil")
    assert said(lacking, None, capsys) == f"psutil is missing: {how_to_install('bench')}"
    within = ModuleNotFoundError("No module named 'trl.trainer'", name="trl.trainer")
    assert said(within, None, capsys) == f"trl is missing: {how_to_install('train')}"
    assert said(ModuleNotFoundError(name="vllm"), None, capsys).endswith(how_to_install_vllm())
    assert said(ModuleNotFoundError(name="other"), "train", capsys) == f"other is missing: {how_to_install('train')}"


def test_a_lazy_import_that_hides_the_package_is_seen_through(capsys: pytest.CaptureFixture[str]) -> None:
    outer = ModuleNotFoundError("Could not import module 'Trainer'.")
    outer.__cause__ = ModuleNotFoundError(name="accelerate")
    assert said(outer, None, capsys).startswith("accelerate is missing: ")


def test_a_module_of_our_own_that_is_missing_is_a_failure() -> None:
    with pytest.raises(ModuleNotFoundError), importing("train"):
        raise ModuleNotFoundError(name="waver.gone")


def test_every_extra_that_brings_packages_is_one() -> None:
    import tomllib

    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) <= set(known)


def defaults_of_out() -> dict[str, str]:
    """Return where each benchmark writes if it is not told, as it stands in its source."""
    found = {}
    for file in (ROOT / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                named = node.args.args[len(node.args.args) - len(node.args.defaults) :]
                for argument, default in zip(named, node.args.defaults, strict=True):
                    if argument.arg == "out" and node.decorator_list:
                        found[f"{file.stem}.{node.name}"] = ast.unparse(default)
    return found


def test_benchmarks_do_not_write_into_tracked_files_by_themselves() -> None:
    commands = {name.replace("-", "_") for name in BENCHMARKS} | {"run"}  # faults/run.py
    written = {name: path for name, path in defaults_of_out().items() if name.split(".")[0] in commands}
    assert len(written) > 20
    others = {name: path for name, path in written.items() if path not in ("report.RESULTS", "RESULTS")}
    assert others == {"consistency.main": "Path('consistency')"}
    ignored = subprocess.run(["git", "check-ignore", "--quiet", str(report.RESULTS)], cwd=ROOT)
    assert ignored.returncode == 0, f"{report.RESULTS} is not ignored by git"
