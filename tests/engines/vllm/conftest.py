"""Fixtures of the plugin's tests: vLLM configurations, and one process group for the adapters' rank."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from tests.engines.driving import ROOT, copy_tokenizer
from waver.engines.grammar import Grammar
from waver.engines.tokens import TokenText
from waver.engines.vllm.ring import EntropyRing, set_ring_path
from waver.entropy import measure

HIDDEN = 64
"""Width of the models here."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A model's directory: the bundled tokenizer under an output layer of a given width; of the weights the input
    embeddings."""

    @cache
    def one(vocabulary: int) -> Path:
        folder = tmp_path_factory.mktemp(f"vocabulary-{vocabulary}")
        LlamaConfig(
            architectures=["LlamaForCausalLM"], vocab_size=vocabulary, hidden_size=HIDDEN, intermediate_size=64,
            num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=96,
            bos_token_id=None, eos_token_id=2, pad_token_id=0,
        ).save_pretrained(folder)  # fmt: skip
        copy_tokenizer(folder)
        matrix = torch.randn(vocabulary, HIDDEN, generator=torch.Generator().manual_seed(vocabulary))
        save_file({"model.embed_tokens.weight": matrix}, folder / "model.safetensors")
        return folder

    return one


@pytest.fixture(scope="session")
def configure(checkpoint: Callable[[int], Path], one_rank: None) -> Callable[..., Any]:
    """vLLM's configuration of such a model; `ring` is where the plugin should report, `speculative` is JSON."""
    from vllm.engine.arg_utils import EngineArgs

    @cache
    def one(vocabulary: int, ring: Path | None = None, speculative: str = "null") -> Any:
        args = EngineArgs(
            model=str(checkpoint(vocabulary)), dtype="float32", enforce_eager=True, max_num_seqs=16, max_model_len=96,
            speculative_config=json.loads(speculative),
        )  # fmt: skip
        config = args.create_engine_config()
        if ring is not None:
            set_ring_path(config, ring)
        return config

    return one


@pytest.fixture(scope="session")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The process groups of a worker that is alone."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state

    address = f"file://{tmp_path_factory.mktemp('group') / 'rank'}"
    with set_current_vllm_config(VllmConfig()):
        parallel_state.init_distributed_environment(1, 0, address, 0, "gloo")
        parallel_state.initialize_model_parallel(1, 1)
    yield
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()


@pytest.fixture(scope="session")
def grammar() -> Callable[[int], Grammar]:
    tokens = TokenText.load(str(ROOT / "models" / "small"))
    return cache(lambda vocabulary: Grammar(tokens, vocabulary))


@pytest.fixture
def ring() -> Iterator[EntropyRing]:
    ring = EntropyRing.create(HIDDEN)
    yield ring
    ring.close()


@pytest.fixture
def make(
    configure: Callable[..., Any], ring: EntropyRing, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, int], Any]:
    """A fresh runner of a kind (`runners.KINDS`) for a vocabulary, with the plugin in it."""
    from tests.engines.vllm.runners import V1, V2

    def one(kind: str, vocabulary: int) -> V1 | V2:
        config = configure(vocabulary, ring.path)
        if kind != "V2":
            return V1(config, "asynchronous" in kind)
        for module in (
            "waver.devices",
            "waver.entropy.rolling",
            "waver.engines.inverse_cdf",
            "waver.engines.vllm.batch_pass",
            "waver.engines.vllm.gate_windows",
        ):
            monkeypatch.setattr(f"{module}.array_namespace", lambda _: torch)  # as on a GPU
        monkeypatch.setattr("waver.engines.vllm.decoder.fastest_measure", lambda *_: measure)  # which compiles it
        return V2(config, monkeypatch)

    return one
