"""The pages that list things say what is there."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from waver.policies import registry
from waver.training.rl.registry import names as methods

ROOT = Path(__file__).resolve().parent.parent
UNCITED = {"random_switch", "route"}
"""Policies of no paper."""
KEPT = {"simplemem", "memgas", "scr", "safeharbor"}
"""Policies with stores."""
WEIGHTS = {"kappatune", "shred", "did", "distil", "crrelu", "entropy_guided_attention", "tool_light", "bebop",
           "rlsedit", "dynmole", "queryable_lora"}  # fmt: skip
"""Methods of commands of their own that change a model's weights."""
DATA = {"epiplexity", "instruction_selection", "learning_to_actively_learn"}
"""Methods that look into data, and choose what to train on or to ask."""

ADAPTED = {"adte", "entropyprune", "evopress", "mamba_fscil"}
"""Methods of commands of their own that adapt, compress or prune a model."""


@pytest.fixture(scope="module")
def generator() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        yield import_module("generate")
        for name in ("generate", "policy_tables", "api_reference", "sizing_tables", "option_tables"):
            sys.modules.pop(name, None)


def test_generated_pages_are_up_to_date(generator: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert generator.main(["--check"]) == 0, f"{capsys.readouterr().out}run python docs/generate.py"


def test_a_change_would_be_noticed(
    generator: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry.policies()["ead"], "__doc__", "Something else.")
    assert generator.main(["--check"]) == 1
    late = capsys.readouterr().out
    assert "docs/policies.md is out of date" in late
    assert "clients/policies.pyi is out of date" in late


def test_every_system_is_listed_with_files_that_exist(generator: Any) -> None:
    entries = generator.systems()
    names = [entry["system"] for entry in entries]
    assert len(names) == len(set(names)) == 46
    built = [entry for entry in entries if "code" in entry]
    for entry in built:
        assert (ROOT / entry["code"]).is_file(), entry["code"]
        assert (ROOT / entry["test"]).is_file(), entry["test"]
    listed = {name for entry in built for name in entry["system"].split(", ")}
    chosen = {"entropy_judger", "inv_entropy", "conformal_information_pursuit", "bes"}
    assert {"ead", "l_rag", "top_w", "diffadapt", *chosen, *KEPT, *WEIGHTS, *DATA, *ADAPTED, *methods()} == listed


def paths(text: str) -> set[str]:
    """Find the paths in backticks that begin with a folder of this repository; `data/` is what a server keeps,
    `waver/NAME` a preset."""
    found = re.findall(r"`([\w-]+(?:/[\w.-]+)+/?)`", text)
    kept = ("data/", "waver/NAME", "waver/calibrated")
    return {path for path in found if (ROOT / path.split("/")[0]).is_dir() and not path.startswith(kept)}


@pytest.mark.parametrize("page", [*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_paths_in_prose_exist(page: Path) -> None:
    """`<…>` in a path is a pattern, and left out."""
    assert {path for path in paths(page.read_text()) if not (ROOT / path).exists()} == set()


def test_a_path_that_is_gone_is_found() -> None:
    assert paths("`engines/gone.py`, `data/state`, `entropy/`, `policies/<stage>/`, `engines/x/y.py`") == {
        "engines/gone.py",
        "engines/x/y.py",
    }


def test_a_papers_system_is_what_its_module_cites(generator: Any) -> None:
    cited = {name: (policy.paper or "").removeprefix("arXiv ") for name, policy in registry.policies().items()}
    for entry in generator.systems():
        if entry["system"] in cited:
            assert cited[entry["system"]] == entry["arxiv"]
    assert {name for name, paper in cited.items() if not paper} == UNCITED
