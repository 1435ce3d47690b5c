"""Engines to test: the bundled pair, and a random model that draws every token there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tests.engines.driving import ROOT, VOCABULARY, save_random
from waver.engines import TransformersConfig
from waver.engines.transformers import TransformersEngine


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small lose time by sharing it."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def wild_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama model whose output layer is wider than its tokenizer."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return save_random(tmp_path_factory.mktemp("wild"), config)


@pytest.fixture
def load(wild_directory: Path) -> Callable[..., TransformersEngine]:
    """Load a fresh engine, of the random model unless told otherwise."""

    def one(directory: Path = wild_directory, **options: object) -> TransformersEngine:
        return TransformersEngine("wild", TransformersConfig(model=str(directory), **options))

    return one


@pytest.fixture(scope="session")
def wild(wild_directory: Path) -> TransformersEngine:
    return TransformersEngine("wild", TransformersConfig(model=str(wild_directory)))


@pytest.fixture(scope="session")
def small() -> TransformersEngine:
    return TransformersEngine("small", TransformersConfig(model=str(ROOT / "models" / "small")))
