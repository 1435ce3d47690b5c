"""docs/results.md: verdicts that name the baseline that wins, and results that are made anew from their answers."""

from __future__ import annotations

import json
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from waver.benchmarks import quality_stored, summary
from waver.benchmarks.quality_choice import Wanted, choose, found_of
from waver.benchmarks.quality_peers import Names, families, read
from waver.benchmarks.quality_tasks import Item
from waver.benchmarks.summary import RESULTS, kind, page, renew, results
from waver.benchmarks.summary_sections import READERS, diffadapt, l_rag, pareto

INTERVAL = [0.1, 0.9]


def way(name: str, accuracy: float, tokens: float) -> dict[str, Any]:
    return {"way": name, "accuracy": accuracy, "accuracy_interval": INTERVAL, "tokens": tokens, "seconds": 1.0,
            "saving": 1 - tokens / 100}  # fmt: skip


@pytest.mark.parametrize(
    ("hard", "words"),
    [
        (way("hard", 0.9, 40), "`hard` has 90.0 % with 40.0. **The fixed setting wins.**"),
        (way("hard", 0.9, 70), "It takes more tokens."),
        (way("hard", 0.7, 40), "no fixed setting has as many right answers"),
    ],
)
def test_diffadapt_is_told_against_the_best_fixed_setting(hard: dict[str, Any], words: str) -> None:
    rows = [way("normal", 0.85, 100), hard, way("diffadapt, oracle", 0.88, 50), way("shuffled", 0.95, 10)]
    assert words in diffadapt({"rows": rows}, "x").verdict


def test_always_looking_up_is_in_the_verdict() -> None:
    rows = [
        {"policy": name, "accuracy": accuracy, "accuracy_interval": INTERVAL, "rate": rate}
        for name, accuracy, rate in (("never", 0.5, 0), ("always", 0.99, 1), ("entropy", 0.9, 0.3))
    ]
    told = l_rag({"engines": {"large": {"rows": rows}}}, "x").verdict
    assert "90.0 % (10.0–90.0) right with lookups for 30.0 %" in told
    assert "always looking up has 99.0 %, never 50.0 %" in told


def test_a_front_holds_what_nothing_beats() -> None:
    rows = [
        {"share": share, "accuracy": accuracy} for share, accuracy in ((0.5, 0.9), (0.1, 0.6), (0.2, 0.5), (0.4, 0.9))
    ]
    assert [(row["share"], row["accuracy"]) for row in pareto(rows)] == [(0.1, 0.6), (0.4, 0.9)]


def test_every_committed_result_is_on_the_page() -> None:
    told = page(RESULTS, "../benchmarks/results")
    found = list(results(RESULTS))
    assert {"frontier", "l-rag", "diffadapt", "truncation"} <= {kind(each) for _, each in found}
    for file, each in found:
        assert f"(../benchmarks/results/{file.stem}.md)" in told
        assert (f"\n## {file.stem}\n" in told) == (kind(each) in READERS)
    assert "TODO" not in told


def test_quality_is_made_anew_from_answers(tmp_path: Path) -> None:
    """A result whose numbers were spoilt is as before once it is made anew."""
    wanted_of = families(["small", "ead={threshold: [0.1, 1]}", "random"], Names())
    items = [Item(i, str(i), ("1",), "exact") for i in range(14)]
    wanted = Wanted(wanted_of, items[8:], items[:8], 0.02, Names(), False)
    known: dict[tuple[str, int], dict[str, Any]] = {}

    def answer(key: str, line: int, large: int) -> None:
        known[key, line] = {
            "peer": key, "line": line, "right": (line + large) % 3 != 0,
            "tokens": {"small": 10 - large, "large": large},
            "decode": 10 + large, "read": 4, "began": float(line), "seconds": 0.5, "finish": "stop", "switches": large,
            "text": "né", "server": "waver-x",
        }  # fmt: skip

    for family in wanted_of:
        for place, peer in enumerate(family.peers):
            for item in items:
                answer(peer.key, item.line, 10 if family.name == "large" else place + 2)
    picked, chosen = choose(wanted, known)
    for item in items:
        answer(picked[-1].peers[0].key, item.line, 3)
    told = {
        "title": "t", "questions_file": "q", "toy": False, "file": "quality_x", "note": None, "engines": [],
        "calibration": 6, "date": "2026-01-01", "command": "waver bench quality q", "versions": {},
        "settings": {"within": 0.02, "every": False, "seed": 0, "temperature": 0.0, "max_tokens": 9, "at_once": 2},
        "machine": {"cores": 2, "processor": "p", "memory_gib": 1, "load": 0.0},
    }  # fmt: skip
    made = {**told, **found_of(picked, wanted, known), "chosen": chosen, **quality_stored.kept_of(wanted)}
    quality_stored.write(tmp_path / f"quality_x{quality_stored.ENDING}", picked, wanted, known)
    spoilt = made | {"rows": [row | {"accuracy": 0.0} for row in made["rows"]], "chosen": []}
    (tmp_path / "quality_x.json").write_text(json.dumps(spoilt))
    assert renew(tmp_path) == ["quality_x"]
    again = json.loads((tmp_path / "quality_x.json").read_text())
    assert again == json.loads(json.dumps(made))
    summary.write(tmp_path, tmp_path / "results.md", ".")
    assert "## quality_x" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize("name", summary.QUICK)
def test_quick_options_are_those_of_the_benchmark(name: str, tmp_path: Path) -> None:
    module = import_module(f"waver.benchmarks.{name.replace('-', '_')}")
    work = ["--work", str(tmp_path)] if name in summary.RESUMABLE else []
    options = [*shlex.split(summary.QUICK[name]), *work, "--out", str(tmp_path)]
    typer.main.get_command(module.app).make_context(name, options)  # raises where one is not known
    for peer in (options[i + 1] for i, word in enumerate(options) if word == "--peer"):
        assert read(peer, Names()).peers


def test_quick_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[str] = []

    class Ended:
        def __init__(self, returncode: int) -> None:
            self.returncode = returncode

    def fake(command: list[str], check: bool) -> Ended:
        assert not check
        run.append(command[4])
        if command[4] == "frontier" and run.count("frontier") == 1:
            return Ended(130)
        (tmp_path / f"{command[4].replace('-', '_')}.json").write_text("{}")
        return Ended(0)

    monkeypatch.setattr("waver.benchmarks.summary.subprocess.run", fake)
    with pytest.raises(typer.Exit):
        summary.run_quickly(tmp_path)
    summary.run_quickly(tmp_path)
    assert run == ["quality", "speed", "frontier", "frontier", "l-rag", "diffadapt", "truncation"]
