"""`waver train distil`: each expert teaches a real model, runs go on exactly, models load, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("trl")

from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.conftest import ROOT
from waver.cli import app
from waver.engines.base import Sampling
from waver.engines.config import TransformersConfig
from waver.engines.transformers import TransformersEngine
from waver.job import read_lines
from waver.training.distil.average import Averaged
from waver.training.distil.experts import Samples, TopTokens
from waver.training.distil.feedback import AGAIN, hints, known_answer, with_hint

SMALL_RUN = ("--steps", "2", "--prompts", "2", "--group", "2", "--held-out", "0", "--every", "1", "--chain", "1", "2")
BRIEF = (*SMALL_RUN, "--length", "24", "--report-to", "none", "--updates", "1")


def waver(*options: Any, code: int = 0) -> str:
    """Return what `waver train distil` prints."""
    result = CliRunner().invoke(app, ["train", "distil", *map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output


def engine(name: str) -> TransformersEngine:
    return TransformersEngine(name, TransformersConfig(model=str(ROOT / "models" / name), dtype="float32"))


def test_a_larger_engine_teaches_and_the_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--out", out, *BRIEF, "--updates", "2")
    waver(*options)
    whole, lines = load_file(out / "model" / "model.safetensors"), read_lines(out / "metrics.jsonl")
    logged = [line for line in lines if "distil/cost" in line]
    assert [line["step"] for line in logged] == [1, 2]
    for line in logged:
        assert line["distil/cost"] >= line["distil/expert_entropy"] > 0
        assert line["distil/expert_entropy"] <= line["distil/expert_entropy_most"]
        assert 0 <= line["distil/tail"] < 0.2
        assert line["distil/usable"] == 1
    before = load_file(ROOT / "models" / "small" / "model.safetensors")
    assert any(not torch.equal(before[name].float(), whole[name].float()) for name in before)
    shutil.rmtree(out / "checkpoint-4")
    shutil.rmtree(out / "model")
    assert "going on from" in waver(*options)
    again = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert "holds another run" in waver(*options, "--top-k", "5", code=1)
    served = TransformersEngine("student", TransformersConfig(model=str(out / "model")))
    served.check(Sampling(), begun=False)


def test_a_model_that_is_told_more_teaches_itself(tmp_path: Path) -> None:
    """The teacher follows slowly, and goes through a checkpoint."""
    out = tmp_path / "run"
    told = ("--feedback", "waver.training.distil.feedback:known_answer")
    options = ("--out", out, "--expert", "feedback", *told, *BRIEF)
    waver(*options)
    whole = load_file(out / "model" / "model.safetensors")
    teacher = torch.load(out / "checkpoint-2" / "teacher.pt", weights_only=True)
    before = load_file(ROOT / "models" / "small" / "model.safetensors")
    name = next(name for name in before if name in teacher and not torch.equal(before[name].float(), teacher[name]))
    moved = (teacher[name] - before[name].float()).abs().max()
    assert 0 < moved < 0.2 * (whole[name].float() - before[name].float()).abs().max()
    shutil.rmtree(out / "checkpoint-2")
    shutil.rmtree(out / "model")
    waver(*options)
    again = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert all(line["distil/usable"] == 1 for line in read_lines(out / "metrics.jsonl") if "distil/usable" in line)


def test_nothing_told_teaches_nothing(tmp_path: Path) -> None:
    """No answer reaches a reward of 9 and there is no feedback: the weights stay as they were."""
    waver("--out", tmp_path / "run", "--expert", "feedback", "--success", "9", *BRIEF)
    before = load_file(ROOT / "models" / "small" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(before[name].float(), after[name].float()) for name in before)


def test_samples_of_a_black_box_teach(tmp_path: Path) -> None:
    out = tmp_path / "run"
    steps = ("--steps", "1", "--length", "8", "--states", "0.5", "--future-cost", "ce", "--top-k", "0")
    waver("--out", out, "--expert", "samples", *BRIEF, *steps)
    (line,) = [line for line in read_lines(out / "metrics.jsonl") if "distil/cost" in line]
    assert line["distil/expert_entropy"] == 0
    assert json.loads((out / "run.json").read_text())["distil"]["states"] == 0.5


def test_top_tokens_are_those_of_the_model() -> None:
    """Against the logits of transformers, at each position of an answer, behind prompts of different lengths."""
    expert = engine("small")
    model = expert.tokens
    asked = [
        model.chat([{"role": "user", "content": text}]) for text in ("What is 2 + 3?", "Hello there, who are you?")
    ]
    answers = [model.encode("2 + 3 = 5.", add_special_tokens=False), model.encode("I am", add_special_tokens=False)]
    source = TopTokens(expert, expert.tokens.tokenizer.get_vocab(), 4)
    told = source.tell(asked, answers, 12, step=1)
    assert told.weight.sum(1).tolist() == [len(each) for each in answers]
    plain = AutoModelForCausalLM.from_pretrained(ROOT / "models" / "small", dtype=torch.float32)
    for row, (prompt, answer) in enumerate(zip(asked, answers, strict=True)):
        with torch.no_grad():
            logp = plain(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        values = logp.topk(4).values
        torch.testing.assert_close(told.expert.logq[row, : len(answer)], values, atol=1e-4, rtol=0)
    source.close()


def test_samples_are_drawn_as_the_expert_draws() -> None:
    """The same state asked many times: frequencies are its probabilities; half of the states are asked, at twice the
    weight."""
    expert = engine("small")
    prompt = expert.tokens.chat([{"role": "user", "content": "Hello!"}])
    source = Samples(expert, expert.tokens.tokenizer.get_vocab(), 1.0, 3)
    told = source.tell([prompt] * 200, [[5]] * 200, 1, step=1)
    again = source.tell([prompt] * 200, [[5]] * 200, 1, step=1)
    assert torch.equal(told.expert.ids, again.expert.ids)
    top = source.wait(expert.score([*prompt, 5], 1))[-1].top_logprobs[0]
    share = float((told.expert.ids == top[0]).float().mean())
    assert share == pytest.approx(math.exp(top[1]), abs=0.12)
    source.share = 0.5
    half = source.tell([prompt] * 100, [[5]] * 100, 1, step=1)
    assert set(half.weight.flatten().tolist()) == {0.0, 2.0}
    source.close()


def test_who_is_told_what() -> None:
    """The first other success; feedback where there is none, or beside it; nothing for those with neither."""
    answers, rewards = ["<think>hm</think> right", "wrong", "also right", "lost", "lost too"], [1.0, 0, 1.0, 0, 0]
    group, told = [0, 0, 0, 1, 1], [None, "off by one", None, "no number", None]
    found = hints(answers, rewards, group, told)
    assert [None if each is None else each.splitlines()[1:] for each in found] == [
        ["also right"],
        ["right"],
        ["right"],
        ["no number"],
        None,
    ]
    both = hints(answers, rewards, group, told, both=True)[1]
    assert both is not None
    assert "right" in both
    assert "off by one" in both
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    hinted = with_hint(messages, "It is even.")
    assert hinted[0] == messages[0]
    assert hinted[1]["content"] == f"2 + 2?\n\nIt is even.\n\n{AGAIN}"
    assert with_hint("2 + 2?", "It is even.").startswith("2 + 2?\n\nIt is even.")
    assert messages[1]["content"] == "2 + 2?"
    assert known_answer(["5"], answer=["4"]) == ["The right answer is 4."]


def test_the_average_follows_and_leaves_the_model_alone() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    teacher = Averaged(model, 0.25)
    model.weight.data.fill_(5.0)
    teacher.follow()
    with teacher.installed():
        assert model.weight.item() == 2.0
    assert model.weight.item() == 5.0
    live = Averaged(model, 1.0)
    with live.installed():
        assert model.weight.item() == 5.0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--expert", "oracle"), "--expert is engine, samples, feedback, not 'oracle'"),
        (("--divergence", "tv"), "--divergence is forward, reverse, js"),
        (("--future-cost", "tv"), "--future-cost is kl, ce"),
        (("--aggregation", "sum"), "--aggregation is token-mean, seq-mean-token-sum"),
        (("--expert", "samples"), "do not tell its entropy"),
        (("--expert", "samples", "--divergence", "js"), "forward cross-entropy only"),
        (("--top-k", "0"), "give --top-k"),
        (("--engine", "nobody"), "there is no engine 'nobody'"),
        (("--vllm",), "leave --vllm out"),
        (("--feedback", "nowhere:nothing"), "no function 'nowhere:nothing'"),
    ],
)
def test_what_cannot_be_done_is_said(options: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    assert reason in waver("--out", tmp_path / "run", *BRIEF, *options, code=1)
    assert not (tmp_path / "run").exists()


def test_an_expert_with_other_tokens_is_refused() -> None:
    expert = engine("small")
    with pytest.raises(ValueError, match="has another tokenizer"):
        TopTokens(expert, {"a": 0}, 4)
