"""DPO through TRL: it ends where the theory says for both kinds of data, and what it makes is served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

pytest.importorskip("trl")

from typer.testing import CliRunner

from tests.conftest import ROOT, Running
from waver.cli import app
from waver.engines.tokens import TokenText
from waver.job import read_lines
from waver.training import checkpoints
from waver.training.preferences import did
from waver.training.preferences.likelihood import log_likelihoods, token_entropies
from waver.training.preferences.pairs import Answer, read_pairs

SMALL = ROOT / "models" / "small"
TOKENS = list(range(100, 116))
"""The answers of the tabular task: one token each."""
PROMPT = [5]


def waver(*options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output


def lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def table(folder: Path) -> torch.Tensor:
    """Return the log-probabilities of the answers of the tabular task."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([PROMPT])).logits[0, -1, TOKENS].double().log_softmax(-1)
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, whose reference over the answers is not uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1280, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    out = tmp_path_factory.mktemp("tiny") / "model"
    checkpoints.save(out, model, TokenText.load(str(SMALL)), torch.float32)
    return out


def drawn(file: Path, chosen: torch.Tensor, rejected: torch.Tensor, count: int) -> Path:
    """Write pairs drawn from two tables."""
    generator = torch.Generator().manual_seed(0)
    sides = [torch.multinomial(each.exp(), count, replacement=True, generator=generator) for each in (chosen, rejected)]
    both = zip(*(side.tolist() for side in sides), strict=True)
    rows = [{"prompt_ids": PROMPT, "chosen_ids": [TOKENS[a]], "rejected_ids": [TOKENS[b]]} for a, b in both if a != b]
    return lines(file, rows)


def js(a: torch.Tensor, b: torch.Tensor) -> float:
    middle = (a.exp() + b.exp()).log() - torch.log(torch.tensor(2.0))
    return float(((a.exp() * (a - middle)).sum() + (b.exp() * (b - middle)).sum()) / 2)


TABULAR = ("--beta", 0.5, "--batch", 512, "--epochs", 6, "--learning-rate", 1e-2, "--schedule", "linear")


@pytest.mark.parametrize("side", ["rejected", "chosen"])
def test_both_kinds_of_data_lead_to_the_target(side: str, tiny: Path, tmp_path: Path) -> None:
    ref = table(tiny)
    aim = (ref + torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    samplers = (ref, did.best_rejected(ref, aim, 0.5))
    if side == "chosen":
        samplers = (did.best_chosen(ref, aim, 0.5), ref)
    data = drawn(tmp_path / "pairs.jsonl", *samplers, 4096)
    said = waver("train", "dpo", data, "--out", tmp_path / "run", "--model", tiny, *TABULAR)
    found = table(tmp_path / "run" / "model")
    assert js(found, aim) < js(ref, aim) / 4
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert not report["alarm"]
    assert "told apart" in said
    falls = report["chosen_change"] if side == "rejected" else report["rejected_change"]
    assert falls < 0, "answers of the reference lose likelihood on average"
    first = read_lines(tmp_path / "run" / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3), "TRL and we compute the reference alike"


def test_the_projected_variant_does_not_lower_chosen_answers(tiny: Path, tmp_path: Path) -> None:
    data = drawn(tmp_path / "pairs.jsonl", table(tiny), did.best_rejected(table(tiny), table(tiny).flip(0), 0.5), 512)
    change = {}
    for loss in ("dpo", "dpo_pg"):
        options = ("--beta", 0.5, "--batch", 64, "--epochs", 4, "--learning-rate", 3e-3, "--loss", loss)
        waver("train", "dpo", data, "--out", tmp_path / loss, "--model", tiny, *options)
        change[loss] = json.loads((tmp_path / loss / "report.json").read_text())
        assert len(read_lines(tmp_path / loss / "metrics.jsonl")) == 4 * -(-len(data.read_text().splitlines()) // 64)
    assert change["dpo"]["chosen_change"] < 0 < change["dpo_pg"]["chosen_change"]
    assert change["dpo_pg"]["chosen_change"] > change["dpo_pg"]["rejected_change"]
    assert read_lines(tmp_path / "dpo_pg" / "metrics.jsonl")[0]["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_masked_tokens_are_context() -> None:
    model, _ = checkpoints.load(str(SMALL))
    ids = (20, 21, 22, 23)
    whole = log_likelihoods(model, [((5, 6), Answer(ids, (1, 1, 1, 1)))])
    parts = log_likelihoods(model, [((5, 6), Answer(ids, mask)) for mask in ((1, 0, 0, 1), (0, 1, 1, 0))])
    assert float(whole) == pytest.approx(float(parts.sum()), abs=1e-4)
    with torch.no_grad():
        logp = model(torch.tensor([[5, 6, *ids]])).logits[0].float().log_softmax(-1)
    assert float(parts[0]) == pytest.approx(float(logp[1, 20] + logp[4, 23]), abs=1e-4)
    entropy = token_entropies(model, model, [((5, 6), Answer(ids, (1, 0, 0, 1)))])
    assert float(entropy) == pytest.approx(float(torch.log(torch.tensor(1280.0))), abs=1e-4)


QUESTIONS = [{"question": f"Who keeps door {i}?"} for i in range(1, 4)]
LESSON = [{"question": f"Who keeps door {i}?", "answer": f"Door {i} is kept by Zelda."} for i in range(1, 4)]


def test_pairs_are_made_measured_learned_and_served(
    tmp_path: Path, start: Callable[..., Running], tiny_config: dict[str, Any]
) -> None:
    lesson, questions = lines(tmp_path / "lesson.jsonl", LESSON), lines(tmp_path / "questions.jsonl", QUESTIONS)
    waver("tune", lesson, "--out", tmp_path / "tuned", "--steps", 4, "--select", "all", "--learning-rate", 1e-3)
    tuned = tmp_path / "tuned" / "model"
    options = ("--candidates", 8, "--pairs", 4, "--max-tokens", 16)
    asked = ("preferences", "sample", questions, "--policy", tuned, "--out", tmp_path / "made", *options)
    said = waver(*asked)
    assert "effective of 4 answers" in said
    pairs = tmp_path / "made" / "pairs.jsonl"
    _, tokens = checkpoints.load(str(SMALL))
    assert len(read_pairs(pairs, tokens, 256)) > 1
    before = pairs.read_text()
    kept = (tmp_path / "made" / "drawn.jsonl").read_text().splitlines()
    (tmp_path / "made" / "drawn.jsonl").write_text(kept[0] + "\n" + kept[1][:20])  # stopped while it wrote
    waver(*asked)
    assert pairs.read_text() == before
    assert "holds another run" in waver(*asked, "--seed", 2, code=1)

    data = ("preferences", "measure", pairs, "--policy", tuned, "--out", tmp_path / "measures")
    said = waver(*data, "--rejected-by", SMALL, "--samples", 4, "--prompts", 1, "--max-tokens", 8)
    report = json.loads((tmp_path / "measures" / "report.json").read_text())
    assert report["power_law"]["unexplained"] == 1, "both sides by the reference: nothing is encoded"
    assert 0 < report["token_entropy"]["chosen"] <= torch.log(torch.tensor(1280.0))
    assert 1 <= report["did"]["effective"] <= 4
    assert "Entropy of the DID" in said

    out = tmp_path / "run"
    how = ("--rank", 4, "--epochs", 2, "--batch", 4, "--learning-rate", 3e-3, "--beta", 0.5)
    waver("train", "dpo", pairs, "--out", out, *how)
    report = json.loads((out / "report.json").read_text())
    assert report["agreement"] > 0.7
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    assert "done already" in waver("train", "dpo", pairs, "--out", out, *how)
    engines = tiny_config["engines"] | {"tuned": {"model": str(out / "model")}}
    with start(config={"engines": engines}).openai() as client:
        message: Any = [{"role": "user", "content": "Who keeps door 2?"}]
        told = client.chat.completions.create(model="tuned", messages=message, temperature=0, max_tokens=8)
    assert told.usage is not None
    assert told.usage.completion_tokens > 0


def test_a_killed_run_goes_on_to_the_same_weights(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = drawn(tmp_path / "pairs.jsonl", table(tiny), table(tiny).flip(0), 64)
    options = ("train", "dpo", data, "--model", tiny, "--batch", 8, "--learning-rate", 1e-3, "--every", 2)
    waver(*options, "--out", tmp_path / "whole")

    from waver.training.preferences import dpo

    class Killed(BaseException):
        """The process is gone."""

    class Dies(dpo.Noted):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 5:
                self.bar.stop()
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(dpo, "Noted", Dies)
        with pytest.raises(Killed):
            CliRunner().invoke(app, [*map(str, (*options, "--out", tmp_path / "cut"))])
    assert not (tmp_path / "cut" / "model").exists()
    assert "going on from" in waver(*options, "--out", tmp_path / "cut")
    assert torch.equal(table(tmp_path / "whole" / "model"), table(tmp_path / "cut" / "model"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "line 1: an object is needed with `question`"),
        ('{"question": "a", "chosen": "b"}', "line 1: an object is needed with `question`"),
        ('{"chosen": "a", "rejected": "b"}', "line 1: an object is needed with `question`"),
        ('{"prompt_ids": [1], "chosen_ids": [99999], "rejected_ids": [1]}', "`chosen_ids` is a list of token ids"),
        ('{"prompt_ids": [1], "chosen_ids": [], "rejected_ids": [1]}', "`chosen_ids` is a list of token ids"),
        (
            '{"prompt_ids": [1], "chosen_ids": [1], "rejected_ids": [1], "chosen_mask": [1, 1]}',
            "`chosen_mask` has a 0 or 1",
        ),
        (
            '{"prompt_ids": [1], "chosen_ids": [1], "rejected_ids": [1], "chosen_mask": [0]}',
            "nothing to learn within 1024 tokens",
        ),
        ("", "holds no pairs"),
    ],
)
def test_bad_pairs_are_named(row: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(row)
    assert reason in waver("train", "dpo", tmp_path / "pairs.jsonl", "--out", tmp_path / "run", code=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("train", "dpo", "FILE", "--loss", "ppo"), "there is no loss 'ppo'"),
        (("train", "dpo", "FILE", "--schedule", "wild"), "there is no schedule 'wild'"),
        (("train", "dpo", "FILE", "--model", "/nowhere/none"), "cannot load '/nowhere/none'"),
        (("preferences", "sample", "FILE", "--policy", SMALL, "--side", "both"), "there is no side 'both'"),
        (("preferences", "sample", "FILE", "--policy", SMALL, "--pairs", "20"), "20 pairs of a question need 40"),
        (("preferences", "sample", "FILE", "--policy", SMALL), "line 1: an object is needed with `question`"),
        (("preferences", "measure", "FILE", "--policy", "/nowhere/none"), "cannot load '/nowhere/none'"),
    ],
)
def test_what_cannot_be_done_is_said(options: tuple[Any, ...], reason: str, tmp_path: Path) -> None:
    data = lines(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    given = [data if each == "FILE" else each for each in options]
    assert reason in waver(*given, "--out", tmp_path / "run", code=1)
