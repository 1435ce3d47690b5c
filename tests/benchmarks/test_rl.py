"""The benchmarks of training methods once from end to end, tiny."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl")

from tests.benchmarks.test_scripts import pair, run
from waver.benchmarks import rl_cost, rl_frontier, rl_methods, rl_text
from waver.benchmarks.frontier import Point
from waver.training.options import RlRun

__all__ = ["pair"]


def test_methods_on_the_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl_methods, "VALUES", {})
    found = run(rl_methods, tmp_path, "--methods", "earl,spine,hapo", "--seeds", 2, "--steps", 1)
    assert list(found["plain"]) == ["`grpo`", "`grpo`, by vote", "`dapo`"]
    assert [row["ground"] for row in found["rows"]] == ["`grpo`", "`grpo`, by vote", "`dapo`"]
    assert found["rows"][0]["tokens_updated"]["difference"] < 0
    with pytest.raises(SystemExit):
        rl_methods.app(args=["--methods", "attention_entropy", "--out", str(tmp_path)])


def test_text(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl_frontier, "SETTINGS", ({"window": 1, "min_tokens": 1, "threshold": 3.0},))
    options = ("--models", pair, "--work", tmp_path / "work", "--only", "grpo,earl", "--steps", 1, "--every", 1)
    options += ("--prompts", 1, "--group", 2, "--length", 12, "--n", 3, "--held-out-n", 2, "--frontier-n", 2)
    found = run(rl_text, tmp_path / "one", *options)
    assert list(found["cases"]) == ["grpo", "earl"]
    for case in found["cases"].values():
        assert [step for step, _ in case["held_out"]] == [0, 1]
        assert len(case["curves"]["reward"]) == 1
    assert found["cases"]["grpo"]["greedy"]["difference"] == 0
    assert [row["method"] for row in found["frontier"]["rows"]] == ["small alone", "ead", "large alone"]
    assert {file.suffix for file in (tmp_path / "one").iterdir()} == {".json", ".md", ".png", ".svg"}


def test_what_is_done_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Path] = []
    monkeypatch.setattr(rl_text, "train", lambda run, out: (out.mkdir(), trained.append(out)))
    for _ in range(2):
        rl_text.run_once(RlRun(model="m", recipe={}), tmp_path / "one")
    assert trained == [tmp_path / "one"]


def test_a_frontier_moves_where_a_point_lies_above_the_line() -> None:
    n, total = 400, np.full(400, 10.0)

    def point(method: str, right: float, share: float) -> Point:
        settings = {"threshold": 0.1} if method == "ead" else {}
        return Point(
            method, settings, (np.arange(n) < right * n).astype(float), share * total, total, np.zeros(n), np.zeros(n)
        )

    before = [point("small alone", 0.6, 0.0), point("ead", 0.8, 0.5), point("large alone", 1.0, 1.0)]
    after = [point("small alone", 0.8, 0.0), point("ead", 0.9, 0.25), point("large alone", 1.0, 1.0)]
    row = rl_frontier.numbers(before, after)["rows"][1]
    assert row["above"]["value"] == pytest.approx(0.9 - 0.7)
    assert row["above"]["interval"][0] > 0.1
    assert row["share"]["value"] == pytest.approx(-0.25)
    page = rl_frontier.page({"rows": rl_frontier.numbers(before, after)["rows"], "questions": n, "seed": 1}, "grpo")
    assert "It moves the frontier, most at threshold 0.1: +20.0 (" in page[1]
    page = rl_frontier.page({"rows": rl_frontier.numbers(before, before)["rows"], "questions": n, "seed": 1}, "grpo")
    assert "It does not move the frontier." in page[1]


def test_cost(tmp_path: Path) -> None:
    options = ("--methods", "hapo", "--rounds", 1, "--prompts", 1, "--group", 4, "--length", 16)
    found = run(rl_cost, tmp_path, *options)
    assert list(found["rows"]) == ["grpo", "grpo, fused attention", "TRL's own trainer", "hapo"]
    assert found["rows"]["grpo"]["step"] == {"median": 1.0, "lowest": 1.0, "highest": 1.0, "runs": 1}
    assert all(row["peak"] > 1e5 and row["learning"]["median"] > 0 for row in found["rows"].values())
    assert 0.5 < found["price"]["median"] < 2
    assert found["seconds"]["median"] > found["learning_seconds"]["median"] > 0


def test_turns_go_round_and_pass_over_who_leaves() -> None:
    turns, steps = rl_cost.RoundRobin(["a", "b", "c"]), []

    def take(name: str, rounds: int) -> None:
        with rl_cost.leaving(turns, name):
            for _ in range(rounds):
                turns.wait(name)
                steps.append(name)
                turns.passes()

    threads = [threading.Thread(target=take, args=(name, rounds)) for name, rounds in (("a", 3), ("b", 1), ("c", 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert steps == ["a", "b", "c", "a", "c", "a", "c"]
