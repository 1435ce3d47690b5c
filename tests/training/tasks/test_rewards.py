"""Tasks whose questions come from a file, through `waver train rl`: GSM8K's form, one's own reward, Verilog."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tests.training.tasks.test_verilog import DESIGN, TESTBENCH
from waver import knights
from waver.answers import last_number
from waver.cli import app
from waver.job import read_lines
from waver.training.pair.world import draw
from waver.training.tasks.rewards import from_file, passes_tests, puzzles, same_number

SMALL = Path(__file__).parents[3] / "models" / "small"
STEP = ("--prompts", 2, "--group", 4, "--updates", 1)
QUESTION = "Write an inverter."
REWARD = """
def brief(completions, limit, **columns):
    return [float(len(message[-1]["content"]) <= most) for message, most in zip(completions, limit)]
"""


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trained(out: Path, *options: Any) -> list[dict[str, Any]]:
    """The metrics of a run of `waver train rl`; it must end well."""
    result = CliRunner().invoke(app, ["train", "rl", "--out", str(out), *map(str, options)])
    assert result.exit_code == 0, result.output
    assert (out / "model" / "model.safetensors").exists()
    return read_lines(out / "metrics.jsonl")


def rewards(metrics: Sequence[dict[str, Any]]) -> list[float]:
    return [line["reward"] for line in metrics if "reward" in line]


def refused(*options: Any) -> str:
    result = CliRunner().invoke(app, ["train", "rl", *map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == 2
    return result.output


def test_gsm8k(tmp_path: Path) -> None:
    items = draw("arithmetic", 3, 8, steps=1)
    data = lines(tmp_path / "d.jsonl", [{"question": i.prompt, "answer": f"So.\n#### {i.answer}"} for i in items])
    metrics = trained(
        tmp_path / "run", "--task", "gsm8k", "--data", data, *STEP, "--steps", 2, "--held-out", 4, "--every", 1
    )
    assert all(reward > 0.7 for reward in rewards(metrics))  # the small model knows sums of one step
    assert [line["step"] for line in metrics if line.get("eval_reward", 0) > 0.7] == [0, 1, 2]


def test_a_reward_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    data = lines(tmp_path / "d.jsonl", [{"question": "hello", "limit": limit} for limit in (0, 1000)])
    options = ("--task", "custom", "--data", data, *STEP, "--steps", 1, "--held-out", 0)
    assert rewards(trained(tmp_path / "run", *options, "--reward", "lab_reward:brief")) == [0.5]
    assert "no function 'lab_reward:long'" in refused("--out", "r", *options, "--reward", "lab_reward:long")
    assert "needs --reward" in refused("--out", "r", *options)


@pytest.mark.skipif(not (shutil.which("iverilog") and shutil.which("vvp")), reason="Icarus Verilog is not installed")
def test_verilog(tmp_path: Path) -> None:
    """A model that writes a right and a wrong design in turn comes to write the right one."""
    model = taught(tmp_path / "taught", [DESIGN, DESIGN.replace("~a", "a")])
    data = lines(tmp_path / "d.jsonl", [{"question": QUESTION, "testbench": TESTBENCH, "samples": 200}])
    options = ("--task", "verilog", "--data", data, "--model", model, *STEP, "--group", 16, "--held-out", 0)
    found = rewards(trained(tmp_path / "run", *options, "--steps", 6, "--learning-rate", 2e-4))
    assert 0.1 < found[0] < 0.5  # a wrong one compiles: 0.1
    assert sum(found[-3:]) / 3 > 0.75


def test_verilog_without_a_simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = lines(tmp_path / "d.jsonl", [{"question": QUESTION, "testbench": TESTBENCH}])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install iverilog" in refused("--out", tmp_path / "r", "--task", "verilog", "--data", data)


def taught(folder: Path, answers: Sequence[str]) -> Path:
    """The bundled small model, taught to give one of these answers to the question, each as often."""
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    model = AutoModelForCausalLM.from_pretrained(SMALL)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
    )
    written = [[*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id] for answer in answers]
    width = max(map(len, written))
    ids = torch.tensor([asked + answer + [0] * (width - len(answer)) for answer in written])
    labels = torch.tensor([[-100] * len(asked) + answer + [-100] * (width - len(answer)) for answer in written])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_answers_as_gsm8k_writes_them() -> None:
    assert last_number("48/2 = <<48/2=24>>24 clips.\n#### 1,072") == "1072"
    assert last_number("none") is None
    completions = [[{"role": "assistant", "content": text}] for text in ("so $1,072.00", "1073", "no idea")]
    assert same_number(completions, ["#### 1072"] * 3) == [1, 0, 0]


def test_a_file_is_gone_through_in_passes_and_its_end_is_held_out(tmp_path: Path) -> None:
    path = lines(tmp_path / "data.jsonl", [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(5)])
    task = from_file(path, rows=7, held_out=2, seed=0)
    asked = [row["question"] for row in task.train]
    assert sorted(asked[:3]) == sorted(asked[3:6]) == ["q0", "q1", "q2"]
    assert [row["question"] for row in task.held_out] == ["q3", "q4"]
    for line, reason in (
        ("{", "line 1: not JSON"),
        ('{"q": 1}', "string `question`"),
        ('{"question": "a"}', "no number"),
    ):
        path.write_text(line)
        with pytest.raises(ValueError, match=reason):
            from_file(path, rows=1, held_out=0, seed=0)


def test_puzzles_of_any_seed() -> None:
    task = puzzles(6, 3, 4, (2, 4))
    assert task == replace(puzzles(6, 3, 4, (2, 4)), reward=task.reward)
    assert {each["question"] for each in task.train}.isdisjoint(each["question"] for each in task.held_out)
    asked = [each["question"] for each in task.train]
    right, wrong = [], []
    for each in asked:
        (solution,) = knights.read(each).solutions()
        told = [f"{name} is a {'knight' if kind else 'knave'}." for name, kind in solution.items()]
        right.append(" ".join(told))
        wrong.append(" ".join(told[1:]))
    assert task.reward(completions=right, question=asked) == [1.0] * 6
    assert task.reward(completions=wrong, question=asked) == [0.0] * 6
    assert task.goals is not None
    assert len(task.goals(asked[0]).names) > 2


def test_python_tests(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    tests = ["assert double(2) == 4", "assert double(3) == 6"]
    file.write_text("\n".join(json.dumps({"question": f"{i}", "tests": tests}) for i in range(2)) + "\n")
    task = from_file(file, 2, 1, 0, passes_tests)
    assert task.correct == 1.0
    said = ["```python\ndef double(n):\n    return 2 * n\n```", "def double(n):\n    return n + 2", "no code"]
    assert passes_tests(completions=said, tests=[tests] * 3) == [1.0, 0.5, 0.0]
    file.write_text('{"question": "x", "tests": []}\n')
    with pytest.raises(ValueError, match="line 1: there is no `tests`"):
        from_file(file, 1, 0, 0, passes_tests)
