"""Properties of a checkpoint that are read without loading it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from waver.engines.transformers import TransformersEngine
from waver.engines.weights import (
    embedding_flaw,
    input_embeddings,
    parameter_count,
    parameter_count_in_name,
    stored_parameters,
)


def checkpoint(folder: Path, matrix: torch.Tensor, name: str = "model.embed_tokens.weight") -> str:
    """In two files, as large ones come."""
    folder.mkdir()
    save_file({"lm_head.weight": torch.zeros(3, 2)}, folder / "one.safetensors")
    save_file({name: matrix}, folder / "two.safetensors")
    index = {"weight_map": {"lm_head.weight": "one.safetensors", name: "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)


def test_the_matrix_and_the_count_are_the_models(wild: TransformersEngine, wild_directory: Path) -> None:
    assert torch.equal(input_embeddings(str(wild_directory)), wild.embedding_matrix())
    assert stored_parameters(str(wild_directory)) == wild.parameters
    assert embedding_flaw(str(wild_directory), None, wild.vocabulary) is None


def test_a_matrix_that_cannot_be_whitened(tmp_path: Path) -> None:
    matrix = torch.randn(9000, 4).to(torch.bfloat16)
    for i, value in enumerate((torch.nan, torch.inf, -1e30)):
        broken = matrix.clone()
        broken[8999, 3] = value
        assert "not finite" in (embedding_flaw(checkpoint(tmp_path / str(i), broken), None, 9000) or "")
    whole = checkpoint(tmp_path / "whole", matrix)
    assert embedding_flaw(whole, None, 9000) is None
    assert "(9000, 4), for 9001 tokens" in (embedding_flaw(whole, None, 9001) or "")
    assert "shape (4,)" in (embedding_flaw(checkpoint(tmp_path / "flat", torch.ones(4)), None, 4) or "")
    assert "under a name" in (embedding_flaw(checkpoint(tmp_path / "odd", matrix, "table"), None, 4) or "")
    assert "not on this machine" in (embedding_flaw(str(tmp_path / "nowhere"), None, 4) or "")


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights in safetensors"):
        stored_parameters(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen3-8B", 8e9),
        ("qwen3-0.6b", 6e8),
        ("Llama-3.2-1B-Instruct", 1e9),
        ("google/gemma-3-270m-it", 270e6),
        ("Mixtral-8x7B-v0.1", 56e9),
        ("Qwen3-30B-A3B-AWQ-4bit", 30e9),
        ("/models/7b/opt-125m/", 125e6),
    ],
)
def test_size_in_name(name: str, expected: float) -> None:
    assert parameter_count_in_name(name) == expected


@pytest.mark.parametrize("name", ["small", "phi-4", "gpt-4bit", "8B/model", "m5-v2"])
def test_no_size_in_name(name: str) -> None:
    with pytest.raises(ValueError, match="set `parameters`"):
        parameter_count_in_name(name)


def test_the_name_speaks_where_there_are_no_weights(
    tmp_path: Path, wild: TransformersEngine, wild_directory: Path
) -> None:
    named = tmp_path / "wild-7b"
    named.symlink_to(wild_directory)
    assert parameter_count(str(named)) == wild.parameters
    assert parameter_count(str(tmp_path / "gone-7b")) == 7e9
    with pytest.raises(ValueError, match="set `parameters`"):
        parameter_count(str(tmp_path / "gone"))
