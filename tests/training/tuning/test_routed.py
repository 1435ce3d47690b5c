"""Adapters that route tokens: `waver tune` makes them, TRL's trainers train them, `waver serve` answers with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("trl")

import yaml
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from tests.conftest import ROOT, Running
from tests.training.tuning.conftest import LESSON, lines, waver
from waver.engines.tuners.dynmole import DynMoleConfig
from waver.engines.tuners.queryable import QueryableLoraConfig
from waver.job import read_lines
from waver.training.tuning.routed import routed, tuner_of

SMALL = ROOT / "models" / "small"
QUICK = "--rank 2 --count 4 --select all --steps 4 --batch 4 --learning-rate 3e-3 --dropout 0 --length 64".split()
QUIET: dict[str, Any] = {"max_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "bf16": False}


@pytest.mark.parametrize("adapter", ["dynmole", "queryable_lora"])
def test_an_adapter_is_made_and_served(
    adapter: str, tmp_path: Path, start: Callable[..., Running], tiny_config: dict[str, Any]
) -> None:
    data, out = lines(tmp_path / "data.jsonl", LESSON), tmp_path / "run"
    assert "engine.yaml" in waver(data, "--out", out, "--adapter", adapter, "--atoms", "4", *QUICK)
    report = json.loads((out / "report.json").read_text())
    assert report["losses"]["learned"]["after"] < report["losses"]["learned"]["before"]
    routing = report["routing"]["learned"]
    assert 0 < routing["entropy"] <= 1
    assert sum(routing["shares"]) == pytest.approx(1)
    assert routing["active"] >= 2
    assert not (out / "model").exists()
    assert len(read_lines(out / "metrics.jsonl")) == 4

    engine = yaml.safe_load((out / "engine.yaml").read_text())["engines"]["tuned"]
    plain = tiny_config["engines"] | {"plain": {"model": str(SMALL)}, "tuned": engine}
    with start(config={"engines": plain}).http() as client:
        asked = {"prompt": "Who keeps", "temperature": 0, "max_tokens": 4, "logprobs": 1}
        tuned, base = (
            client.post("/v1/completions", json=asked | {"model": name}).json() for name in ("tuned", "plain")
        )
    assert 0 < tuned["waver"]["routing"]["entropy"] <= 1
    assert "routing" not in base["waver"]
    assert tuned["choices"][0]["logprobs"]["token_logprobs"] != base["choices"][0]["logprobs"]["token_logprobs"]


def test_a_single_expert_is_merged(tmp_path: Path) -> None:
    data, out = lines(tmp_path / "data.jsonl", LESSON), tmp_path / "run"
    waver(data, "--out", out, "--adapter", "dynmole", "--experts", "1", *QUICK)
    assert (out / "model" / "config.json").exists()
    assert not (out / "engine.yaml").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--adapter", "moe", "--rank", "2"), "there is no adapter 'moe'"),
        (("--adapter", "dynmole"), "needs --rank"),
        (("--adapter", "queryable_lora", "--rank", "2", "--keep", "0.5"), "goes without --match and --keep"),
    ],
)
def test_what_cannot_be_done_is_said(options: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    data = lines(tmp_path / "data.jsonl", LESSON)
    assert reason in waver(data, "--out", tmp_path / "run", *options, code=1)


def config(kind: str, **more: Any) -> Any:
    common: dict[str, Any] = {
        "r": 2,
        "alpha": 4,
        "dropout": 0.0,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    if kind == "dynmole":
        return DynMoleConfig(**common, experts=3, **more)
    return QueryableLoraConfig(**common, atoms=3, **more)


def small() -> Any:
    return AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32)


def changed(model: Any) -> set[str]:
    """Return the kinds of weights that have a gradient or have been moved from 0."""
    return {
        name.split(".")[-2]
        for name, weight in model.named_parameters()
        if weight.requires_grad and "_B." in name and float(weight.detach().abs().sum()) > 0
    }


@pytest.mark.parametrize("kind", ["dynmole", "queryable_lora"])
def test_trls_sft_trainer_trains_it(kind: str, tmp_path: Path) -> None:
    rows = Dataset.from_list([{"text": "Door one is kept by Zelda."}, {"text": "Door two."}] * 2)
    checkpointing = kind == "dynmole"  # as TRL has it by default
    arguments = SFTConfig(
        str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=1,
        gradient_checkpointing=checkpointing, **QUIET,
    )  # fmt: skip
    tokens = AutoTokenizer.from_pretrained(SMALL)
    weights: dict[str, Any] = {"entropy_weight": 0.5, "balance_weight": 0.1}
    made: Any = routed(SFTTrainer)(
        small(), arguments, train_dataset=rows, processing_class=tokens, peft_config=config(kind, **weights)
    )
    made.train()
    assert changed(made.model) == {f"{'dynmole' if kind == 'dynmole' else 'queryable'}_B"}
    logged = made.state.log_history[0]
    assert 0 < logged["router_entropy"] <= 1
    assert logged["router_balance"] > 0


@pytest.mark.parametrize("kind", ["dynmole", "queryable_lora"])
def test_trls_grpo_trainer_trains_it(kind: str, tmp_path: Path) -> None:
    rows = Dataset.from_list([{"prompt": "Door one"}, {"prompt": "The mayor"}] * 2)
    arguments = GRPOConfig(
        str(tmp_path), per_device_train_batch_size=4, num_generations=4, max_completion_length=4, logging_steps=1,
        gradient_checkpointing=False, beta=0.1, **QUIET,
    )  # fmt: skip
    made: Any = routed(GRPOTrainer)(
        small(), lambda completions, **_: [float(i % 2) for i in range(len(completions))], arguments,
        train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(SMALL), peft_config=config(kind),
    )  # fmt: skip
    made.train()
    assert changed(made.model) == {f"{'dynmole' if kind == 'dynmole' else 'queryable'}_B"}
    assert 0 < made.state.log_history[0]["router_entropy"] <= 1


def test_the_losses_are_added_once_a_step() -> None:
    """Halving the batch and accumulating twice gives the gradient of the whole batch's losses."""

    class Steps:
        loss_is_scaled_for_ga = None
        model_accepts_loss_kwargs = True
        compute_loss_func = None
        current_gradient_accumulation_steps = 4

    ahead = routed(Trainer)._steps_ahead  # type: ignore[attr-defined]
    assert ahead(Steps, torch.tensor(12)) == 4  # the loss is not divided any more: the losses have to be
    assert ahead(Steps, None) == 1
    Steps.model_accepts_loss_kwargs = False
    assert ahead(Steps, torch.tensor(12)) == 1
    Steps.loss_is_scaled_for_ga = True  # type: ignore[assignment]
    assert ahead(Steps, None) == 4  # as in GRPO


def test_checkpointing_and_other_adapters_are_refused() -> None:
    from peft import get_peft_model

    model = get_peft_model(small(), config("queryable_lora"))
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient_checkpointing=False"):
        model.train()(input_ids=torch.arange(4).view(1, 4))
    with pytest.raises(ValueError, match="no adapter that routes"):
        tuner_of(get_peft_model(small(), LoraConfig(target_modules=["q_proj"])))
