"""Any causal language model that transformers loads: with slots where they suit it, else with its own memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from tests.engines.driving import VOCABULARY, generated, plain_state, prompts, save_random, steps, tokens
from waver.engines.native import NativeRunner
from waver.engines.slots import SlotRunner
from waver.engines.transformers import TransformersEngine

IDS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.2}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 40,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}

SLOTS: dict[str, tuple[type[tf.PreTrainedConfig], dict[str, Any]]] = {
    "llama": (tf.LlamaConfig, SHAPE),
    "qwen2": (tf.Qwen2Config, SHAPE | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": (tf.Qwen3Config, SHAPE),
    "mistral, short window": (tf.MistralConfig, SHAPE | {"sliding_window": 16}),
    "gemma2": (tf.Gemma2Config, SHAPE | {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    "gemma3": (tf.Gemma3TextConfig, SHAPE | {"sliding_window": 16, "query_pre_attn_scalar": 8, "layer_types": MIXED}),
    "gpt2, learned positions": (tf.GPT2Config, GPT),
    "phi3": (tf.Phi3Config, SHAPE | {"sliding_window": 16}),
    "mixtral, experts": (tf.MixtralConfig, SHAPE | {"num_local_experts": 4}),
    "gpt-oss, attention sinks": (tf.GptOssConfig, SHAPE | {"num_local_experts": 4, "sliding_window": 16}),
}
NATIVE: dict[str, tuple[type[tf.PreTrainedConfig], dict[str, Any]]] = {
    "bloom, ALiBi": (tf.BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}),
    "mamba": (tf.MambaConfig, {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}),
    "rwkv": (tf.RwkvConfig, {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}),
    "lfm2, hybrid": (tf.Lfm2Config, SHAPE | {"layer_types": ["conv", "full_attention", "conv"]}),
    "llama4, chunks": (
        tf.Llama4TextConfig,
        SHAPE | {"attention_chunk_size": 16, "num_local_experts": 2, "intermediate_size_mlp": 48},
    ),
    "phi3, long positions": (tf.Phi3Config, SHAPE | {"original_max_position_embeddings": 40, "rope_parameters": LONG}),
    "gpt, no cache at all": (tf.OpenAIGPTConfig, GPT),
}


async def check(engine: TransformersEngine) -> None:
    """Greedy answers of a crowd that arrives bit by bit, and of an answer that is cut and gone on with."""
    asked = prompts(6, seed=4)

    async def later(i: int) -> list[int]:
        await asyncio.sleep(0.004 * i)
        return await tokens(engine, asked[i], max_tokens=20, ignore_eos=True)

    expected = [generated(engine, prompt, 20, ignore_eos=True) for prompt in asked]
    assert await asyncio.gather(*map(later, range(6))) == expected
    begun = [*asked[0], *expected[0][:9]]
    rest = await tokens(engine, begun, max_tokens=20, ignore_eos=True, answer_start=len(asked[0]))
    assert rest == expected[0][9:]
    for depth in (None, 0.5):
        state = await engine.hidden_state(begun, depth)
        torch.testing.assert_close(state, plain_state(engine, begun, depth), atol=1e-5, rtol=1e-4)
    first, *_ = await steps(engine, [*begun[::-1], 9, 8, 7], max_tokens=1, state_of=tuple(begun[::-1]))
    torch.testing.assert_close(first.state, plain_state(engine, begun[::-1]), atol=1e-5, rtol=1e-4)
    await engine.aclose()


@pytest.mark.parametrize("family", SLOTS)
async def test_slots(family: str, tmp_path: Path, load: Callable[..., TransformersEngine]) -> None:
    kind, options = SLOTS[family]
    engine = load(save_random(tmp_path, kind(**IDS, **options)))
    assert isinstance(engine._runner, SlotRunner)
    await check(engine)


@pytest.mark.parametrize("family", NATIVE)
async def test_own_memory(
    family: str, tmp_path: Path, load: Callable[..., TransformersEngine], caplog: pytest.LogCaptureFixture
) -> None:
    kind, options = NATIVE[family]
    with caplog.at_level(logging.WARNING, "waver.engines.runner"):
        engine = load(save_random(tmp_path, kind(**IDS, **options)))
    assert isinstance(engine._runner, NativeRunner)
    assert len([record for record in caplog.records if record.name == "waver.engines.runner"]) == 1
    await check(engine)


@pytest.mark.parametrize("family", ["bloom, ALiBi", "mamba"])
async def test_own_memory_is_shared_where_it_can_be(
    family: str, tmp_path: Path, load: Callable[..., TransformersEngine]
) -> None:
    kind, options = NATIVE[family]
    directory = save_random(tmp_path, kind(**IDS, **options))
    engine = load(directory, max_sequences=2)
    first, tail = prompts(1, seed=5, longest=60)[0] * 3, [9, 8, 7]
    await tokens(engine, first, max_tokens=1)
    before = engine.read_tokens
    assert await tokens(engine, [*first, *tail], ignore_eos=True) == generated(engine, [*first, *tail], 24, True)
    assert engine.read_tokens - before == len(tail) + 23
    # A prefix that the memory cannot be cut back to is read anew.
    assert await tokens(engine, first[:40], ignore_eos=True) == generated(engine, first[:40], 24, True)
