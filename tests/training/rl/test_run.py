"""`waver train rl`: runs that end, go on exactly and are served; tasks and settings that are read right or refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("trl")

from typer.testing import CliRunner

from tests.conftest import ROOT, Running
from waver.cli import app
from waver.job import read_lines
from waver.training.options import RlRun
from waver.training.pair.world import draw
from waver.training.rl.run import learning_rate, parse_settings, questions
from waver.training.tasks.rewards import arithmetic

SMALL_RUN = ("--steps", "2", "--prompts", "2", "--group", "4", "--held-out", "4", "--every", "1", "--chain", "3", "4")


def waver(*options: Any) -> str:
    """Return what `waver train rl` prints; it must succeed."""
    result = CliRunner().invoke(app, ["train", "rl", *map(str, options)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_goes_on_exactly_and_is_served(
    tmp_path: Path, start: Callable[..., Running], tiny_config: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    recipe = ("--base", "dapo", "--set", "clip_high=0.25", "--set", "entropy=0.01", "--set", "dynamic_sampling=false")
    waver("--out", out, *recipe, *SMALL_RUN)
    whole, lines = load_file(out / "model" / "model.safetensors"), read_lines(out / "metrics.jsonl")
    assert [line["update"] for line in lines if "reward" in line] == [1, 3]
    assert [line["step"] for line in lines if "eval_reward" in line] == [0, 1, 2]
    assert (out / "curves.png").stat().st_size > 10_000
    assert list((out / "runs").rglob("events.out.tfevents.*"))
    assert json.loads((out / "run.json").read_text())["recipe"]["clip_high"] == 0.25

    shutil.rmtree(out / "checkpoint-4")
    shutil.rmtree(out / "model")
    assert "going on from" in waver("--out", out, *recipe, *SMALL_RUN).replace("\n", " ")
    again = load_file(out / "model" / "model.safetensors")
    assert all((again[name] == whole[name]).all() for name in whole)
    timed = ("time", "second", "runtime", "train_loss", "flos")
    plain = [
        [{k: v for k, v in x.items() if not any(t in k for t in timed)} for x in run]
        for run in (lines, read_lines(out / "metrics.jsonl"))
    ]
    assert plain[0] == plain[1]
    other = CliRunner().invoke(app, ["train", "rl", "--out", str(out), *SMALL_RUN], env={"COLUMNS": "500"})
    assert other.exit_code == 2
    assert "holds another run" in other.output

    engines = tiny_config["engines"] | {"trained": {"model": str(out / "model")}}
    with start(config={"engines": engines}).openai() as client:
        message = [{"role": "user", "content": "What is 12 + 30?"}]
        said = client.chat.completions.create(model="trained", messages=message, temperature=0, max_tokens=32)
    assert said.choices[0].message.content == "12 + 30 = 42. The answer is 42."


def test_settings_of_the_command_line_go_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("base: dapo\nmethods: [earl, {name: steer, smallest: 0.5}]\nkl: 0.1\n")
    given = ["kl=1e-3", "steer.smallest=0.25", "lab.mine.share=2"]
    assert parse_settings(None, ["lab.mine"], given, tmp_path / "recipe.yaml") == {
        "base": "dapo",
        "methods": [{"name": "earl"}, {"name": "steer", "smallest": 0.25}, {"name": "lab.mine", "share": 2}],
        "kl": 1e-3,
    }


def test_the_base_of_the_command_line_goes_over_the_file(tmp_path: Path) -> None:
    (file := tmp_path / "recipe.yaml").write_text("base: gspo\n")
    assert parse_settings("dapo", [], [], file)["base"] == "dapo"
    assert parse_settings("grpo", [], [], file)["base"] == "grpo"
    assert parse_settings(None, [], [], file)["base"] == "gspo"
    assert parse_settings(None, [], [])["base"] == "grpo"


def test_the_learning_rate_goes_by_the_model() -> None:
    assert learning_rate(RlRun()) == 1e-4
    assert learning_rate(RlRun(model="Qwen/Qwen2.5-0.5B")) == 1e-6
    assert learning_rate(RlRun(model="Qwen/Qwen2.5-0.5B", learning_rate=3e-5)) == 3e-5


@pytest.mark.parametrize(("given", "reason"), [("kl", "is not a setting"), ("steer.x=1", "add --method steer")])
def test_settings_that_cannot_be_are_refused(given: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_settings("grpo", [], [given])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--base", "nothing"), "no base 'nothing'"),
        (("--task", "gsm8k"), "needs --data"),
        (("--task", "riddles"), "no task 'riddles'"),
        (("--updates", "3"), "cannot be cut into 3 updates"),
        (("--correct", "0.5"), "--correct is for a reward of your own"),
        (("--peft", "qlora"), "--peft is lora, not 'qlora'"),
        (("--schedule", "steep"), "--schedule is linear, cosine"),
        (("--report-to", "paper"), "--report-to is tensorboard, wandb, none"),
        (("--weights", "int8"), "--weights is float32, bfloat16"),
        (("--reward-weight", "2"), "there are 0 --reward and 1 --reward-weight"),
        (("--refill", "2"), "refill draws groups anew that dynamic_sampling leaves out"),
        (("--vllm", "--method", "hapo"), "vLLM"),
    ],
)
def test_what_cannot_be_done_is_said(options: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "rl", "--out", str(tmp_path / "run"), *options], env={"COLUMNS": "500"})
    assert result.exit_code == 2
    assert reason in result.output
    assert not (tmp_path / "run").exists()


def test_a_reward_of_ones_own_says_what_is_right(tmp_path: Path) -> None:
    """Required if the recipe reads it; the rewards that come with Waver declare it themselves."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "1 + 1?", "answer": "2"}\n' * 3)
    own = ("--task", "custom", "--data", data, "--reward", "tests.training.rl.adapters.test_trl_correct:form")
    options = ["train", "rl", "--out", str(tmp_path / "run"), "--base", "dapo", "--held-out", "1", *map(str, own)]
    result = CliRunner().invoke(app, options, env={"COLUMNS": "500"})
    assert result.exit_code == 2
    assert "dynamic_sampling must know which answers are right" in result.output
    assert not (tmp_path / "run").exists()
    assert questions(RlRun(task="gsm8k", data=str(data), held_out=1)).correct == 1
    given = RlRun(task="custom", data=str(data), reward=(str(own[-1]),), held_out=1, correct=0.5)
    assert questions(given).correct == 0.5
    assert questions(RlRun()).correct == 1


def test_adapters_are_trained_and_merged(tmp_path: Path) -> None:
    """With what people set besides: a schedule, bfloat16, checkpointed activations, two rewards and no reports."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"question": "{a} + 25 - 8", "answer": "{a + 17}"}}\n' for a in range(20, 29)))
    out = tmp_path / "run"
    rewards = ("--reward", "majority", "--reward", "gsm8k", "--reward-weight", "0.5", "--reward-weight", "2")
    lora = ("--peft", "lora", "--lora-rank", "2", "--lora-target", "q_proj", "--learning-rate", "0.01")
    plain = ("--weights", "bfloat16", "--gradient-checkpointing", "--schedule", "linear", "--warmup", "0.5")
    run = ("--steps", "1", "--prompts", "2", "--group", "4", "--held-out", "2", "--length", "32", "--report-to", "none")
    waver("--out", out, "--task", "gsm8k", "--data", data, *rewards, *lora, *plain, *run)
    merged, before = (load_file(folder / "model.safetensors") for folder in (out / "model", ROOT / "models" / "small"))
    changed = {name for name in before if not torch.equal(merged[name].float(), before[name].bfloat16().float())}
    assert changed
    assert all("q_proj" in name for name in changed)
    assert (out / "adapter" / "adapter_config.json").exists()
    assert (out / "model" / "tokenizer.json").exists()
    assert not (out / "runs").exists()
    lines = read_lines(out / "metrics.jsonl")
    (line,) = (line for line in lines if "rewards/majority/mean" in line)
    assert line["reward"] == pytest.approx(
        0.5 * line["rewards/majority/mean"] + 2 * line["rewards/same_number/mean"], abs=1e-6
    )
    assert {line["learning_rate"] for line in lines if "learning_rate" in line} == {0.0, 0.01}


def test_training_sums_are_not_those_held_out() -> None:
    task = arithmetic(200, 50, seed=3, steps=(2, 4))
    assert [row["question"] for row in task.held_out] == [i.prompt for i in draw("arithmetic", 3, 50, steps=(2, 4))]
    assert not {row["question"] for row in task.train} & {row["question"] for row in task.held_out}
    row = task.train[0]
    texts = [f"The answer is {row['answer']}.", "The answer is 1000."]
    assert task.reward(texts, question=[row["question"]] * 2, answer=[row["answer"]] * 2) == [1, 0]


@pytest.mark.starts_vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_rows_are_drawn_by_vllm(tmp_path: Path) -> None:
    """In a process of its own, which vLLM's engine then shares; uncompiled, for it is soon over."""
    command = [sys.executable, "-m", "waver", "train", "rl", "--vllm", "--out", str(tmp_path / "run"), *SMALL_RUN]
    env = {**os.environ, "TORCH_COMPILE_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "reward" in line]
    assert len(lines) == 2
    for line in lines:  # the engine had the weights of the policy, rounded to bfloat16
        assert line["sampling/sampling_logp_difference/mean"] < 0.02
