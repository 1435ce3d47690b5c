"""Heads that share keys and values attend together: the same numbers as transformers' own way, without copies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.engines.driving import VOCABULARY, prompts, save_random, tokens
from waver.engines import TransformersConfig
from waver.engines.grouped import NAME, attend, group
from waver.engines.transformers import TransformersEngine


class Layer(nn.Module):
    """An attention layer as transformers' functions see it."""

    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize(("heads", "groups"), [(14, 2), (6, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize("queries", [1, 7])
def test_the_same_as_with_copies(
    queries: int, heads: int, groups: int, scaling: float | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(heads + queries)
    query = torch.randn(5, heads, queries, 16, dtype=dtype)
    key, value = torch.randn(2, 5, groups, 40, 16, dtype=dtype)
    mask = torch.zeros(5, 1, queries, 40, dtype=dtype).masked_fill(torch.rand(5, 1, queries, 40) < 0.4, -torch.inf)
    mask[..., 0] = 0.0
    layer = Layer(heads // groups)
    wanted, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=scaling)
    given, weights = attend(layer, query, key, value, mask, scaling=scaling)
    assert weights is None
    assert given.shape == wanted.shape == (5, queries, heads, 16)
    assert given.is_contiguous()
    close = 1e-6 if dtype is torch.float32 else 2**-6
    assert torch.allclose(given, wanted, atol=close, rtol=close)
    there = mask > -torch.inf
    told, _ = attend(layer, query, key, value, there, scaling=scaling)
    assert torch.allclose(told, wanted, atol=close, rtol=close), "true where they count"
    without, _ = attend(layer, query, key, value, None, scaling=scaling)
    assert torch.equal(without, sdpa_attention_forward(layer, query, key, value, None, scaling=scaling)[0])


@pytest.fixture(scope="module", params=[2, 4])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A random model of four heads, and of how many keys and values."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=request.param, max_position_embeddings=256, initializer_range=0.3, bos_token_id=None,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return save_random(tmp_path_factory.mktemp("model"), config), request.param


async def test_an_engine_decodes_as_the_plain_model_does(model: tuple[Path, int]) -> None:
    folder, groups = model
    engine = TransformersEngine("some", TransformersConfig(model=str(folder)))
    plain = LlamaForCausalLM.from_pretrained(folder).eval()
    assert engine.model.config._attn_implementation == (NAME if groups < 4 else "sdpa")
    some = prompts(6)
    made = await asyncio.gather(*(tokens(engine, each, max_tokens=20, ignore_eos=True) for each in some))
    for prompt, own in zip(some, made, strict=True):
        with torch.inference_mode():
            logits = plain(input_ids=torch.tensor([prompt + own])).logits[0, len(prompt) - 1 : -1]
            logits[:, engine.tokens.vocab_size :] = -torch.inf  # ids that the tokenizer does not know are never drawn
        best, taken = logits.max(-1).values, logits[torch.arange(len(own)), torch.tensor(own)]
        assert torch.all(best - taken <= 1e-4)
    await engine.aclose()


def test_other_ways_to_attend_are_left_alone(model: tuple[Path, int]) -> None:
    plain = LlamaForCausalLM.from_pretrained(model[0], attn_implementation="eager")
    assert not group(plain)
    assert plain.config._attn_implementation == "eager"
