"""Sizes of models from their configurations: parameters as transformers builds them, KV as a cache holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from waver.engines.footprint import FAMILIES, KNOWN, count_parameters, read_shape

ROOT = Path(__file__).parents[2]
SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("more", [{}, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}])
def test_parameters_are_those_that_transformers_builds(kind: str, more: dict[str, Any]) -> None:
    reads_bias = kind in ("llama", "qwen3", "qwen3_moe")
    given = {key: value for key, value in more.items() if reads_bias or "bias" not in key}
    given = {key: value for key, value in given.items() if kind == "llama" or key != "mlp_bias"}
    config = {"model_type": kind, **SMALL, **EXPERTS.get(kind, {}), **given}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert count_parameters(config) == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize(
    ("name", "billions"),
    [("0.6B", 0.60), ("1.7B", 1.72), ("4B", 4.02), ("8B", 8.19), ("14B", 14.77), ("32B", 32.76)],
)
def test_known_models_have_the_size_in_their_name(name: str, billions: float) -> None:
    shape = read_shape(f"qwen/qwen3-{name}")
    assert shape.name == f"Qwen/Qwen3-{name}"
    assert round(shape.parameters / 1e9, 2) == billions
    assert shape.weights() == 2 * shape.parameters
    assert shape.weights("int4") == shape.parameters / 2
    assert len(KNOWN) == 6


def test_a_folder_tells_what_its_files_hold_and_the_cache_is_as_large_as_said() -> None:
    shape = read_shape(str(ROOT / "models" / "large"))
    model = AutoModelForCausalLM.from_pretrained(ROOT / "models" / "large", dtype=torch.float32)
    assert shape.parameters == sum(each.numel() for each in model.parameters())
    assert shape.weights() == sum(each.numel() * 4 for each in model.parameters())
    cache = DynamicCache()
    model(torch.ones(1, 7, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)  # type: ignore[union-attr]
    assert shape.kv(7) == held
    assert shape.context == 1024


def test_a_cache_beside_small_weights_has_sixteen_bits(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "llama", **SMALL, "dtype": "fp8"}))
    shape = read_shape(str(file))
    assert shape.weights() == shape.parameters
    assert shape.kv(1) == 2 * 3 * 2 * 12 * 2
    assert shape.kv(1, "fp8") == 2 * 3 * 2 * 12


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is no configuration"),
        ({"model_type": "llama"}, "does not give hidden_size"),
        ({"model_type": "mamba", **SMALL}, "cannot be counted from the configuration alone"),
        ({"model_type": "deepseek_v3", **SMALL, "kv_lora_rank": 8}, "not one of keys and values for each head"),
    ],
)
def test_what_cannot_be_computed_is_said(tmp_path: Path, content: Any, sentence: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=sentence):
        read_shape(str(file))


def test_a_model_that_is_not_there_is_said() -> None:
    with pytest.raises(ValueError, match=r"no model or config\.json at some/model.*download its config\.json"):
        read_shape("some/model")
