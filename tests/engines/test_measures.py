"""Entropies and log-probabilities are those of the model's raw distribution, whatever is sampled from it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import waver.engines.transformers
from tests.engines.driving import plain_logits, prompts, steps
from waver.engines.base import Step, Unsupported
from waver.engines.transformers import TransformersEngine

CLOSE = 1e-4
"""nats"""


def check(out: list[Step], logits: torch.Tensor, close: float = CLOSE) -> None:
    """Compare steps with float64 logits `[steps, vocab]` of the same positions."""
    logprobs = logits.log_softmax(-1)
    entropies = -(logprobs.exp() * logprobs.clamp(min=-1e9)).sum(-1)
    assert len(out) == len(logits)
    for step, row, entropy in zip(out, logprobs, entropies.tolist(), strict=True):
        assert step.entropy == pytest.approx(entropy, abs=close)
        assert step.entropy_bounds is None
        assert step.logprob == pytest.approx(row[step.token].item(), abs=close)
        best = row.topk(len(step.top_logprobs)).values.tolist() if step.top_logprobs else []
        assert [logprob for _, logprob in step.top_logprobs] == pytest.approx(best, abs=close)
        for token, logprob in step.top_logprobs:
            assert logprob == pytest.approx(row[token].item(), abs=close)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 1.0, "seed": 4},
        {"temperature": 0.3, "top_p": 0.5, "top_k": 5, "min_p": 0.1},
        {"temperature": 2.0, "presence_penalty": 1.5, "frequency_penalty": 1.0, "repetition_penalty": 1.8},
        {"temperature": 1.0, "logit_bias": dict.fromkeys(range(20, 25), 50.0), "min_tokens": 12},
    ],
)
async def test_raw(wild: TransformersEngine, how: dict[str, Any]) -> None:
    prompt = prompts(1, seed=15)[0]
    out = await steps(wild, prompt, ignore_eos=True, max_tokens=20, top_logprobs=20, **how)
    assert all(len(step.top_logprobs) == 20 for step in out)
    ids = [*prompt, *(step.token for step in out)]
    check(out, plain_logits(wild, ids)[len(prompt) - 1 : -1])


async def test_a_confident_model(small: TransformersEngine) -> None:
    prompt = small.tokens.chat([{"role": "user", "content": "What is 34 + 25 - 17?"}])
    out = await steps(small, prompt, max_tokens=60, top_logprobs=3)
    ids = [*prompt, *(step.token for step in out)]
    # Two float32 passes of a trained model differ by up to 1e-4 where it is torn, whoever measures them.
    check(out, plain_logits(small, ids)[len(prompt) - 1 : -1], close=1e-3)
    assert all(step.entropy >= 0 for step in out)


@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0, 300.0])
def test_the_same_logits_in_float64(wild: TransformersEngine, scale: float) -> None:
    logits = torch.randn(50, wild.vocabulary, generator=torch.Generator().manual_seed(1)) * scale + 5 * scale
    logits[:, wild.tokens.vocab_size :] = -torch.inf
    drawn = logits.double().softmax(-1).multinomial(1, generator=torch.Generator().manual_seed(2))[:, 0]
    check(wild._measure(logits, drawn, [3] * 50), logits.double(), close=1e-5)


async def test_score(wild: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompts(1, seed=16)[0] + list(range(300, 340))
    whole = await wild.score(ids, top_logprobs=4)
    assert [step.token for step in whole] == ids[1:]
    assert all(len(step.top_logprobs) == 4 for step in whole)
    check(whole, plain_logits(wild, ids)[:-1])
    monkeypatch.setattr(waver.engines.transformers, "LOGITS", 7 * wild.vocabulary)
    for part, step in zip(await wild.score(ids), whole, strict=True):
        assert part.logprob == pytest.approx(step.logprob, abs=CLOSE)
    assert await wild.score(ids[:1]) == []


async def test_more_alternatives_than_there_are(wild: TransformersEngine) -> None:
    [step] = await steps(wild, prompts(1)[0], max_tokens=1, top_logprobs=5000)
    assert len(step.top_logprobs) == wild.tokens.vocab_size
    assert all(math.isfinite(logprob) for _, logprob in step.top_logprobs)


async def test_hidden_state(wild: TransformersEngine) -> None:
    ids = prompts(1, seed=17)[0]
    state = await wild.hidden_state(ids)
    with torch.inference_mode():
        expected = wild.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
    assert state.dtype == torch.float32
    torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-5)
    matrix = wild.model.get_output_embeddings().weight
    torch.testing.assert_close(matrix.double() @ state.double(), _raw_last(wild, ids), atol=1e-4, rtol=1e-4)


async def test_the_hidden_state_of_a_middle_layer(wild: TransformersEngine) -> None:
    ids = prompts(1, seed=18)[0]
    with torch.inference_mode():
        all_of_them = wild.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    for depth, layer in ((0.0, 0), (0.5, 1), (1.0, 2)):
        state = await wild.hidden_state(ids, depth)
        torch.testing.assert_close(state, all_of_them[layer][0, -1], atol=1e-5, rtol=1e-5)


async def test_attention_weights(wild: TransformersEngine) -> None:
    """Those of the last layer, from a pass that goes another way than decoding does; decoding is as before."""
    ids, start = prompts(1, seed=19)[0], 4
    before = await steps(wild, ids, max_tokens=5)
    weights = await wild.attention(ids, start)
    assert weights.shape == (4, len(ids) - start, len(ids))
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]), atol=1e-5, rtol=0)
    assert not weights.triu(start + 1).any(), "nothing is seen before it is written"
    implementation = wild.model.config._attn_implementation
    wild.model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            expected = wild.model(input_ids=torch.tensor([ids]), output_attentions=True).attentions[-1][0, :, start:]
    finally:
        wild.model.set_attn_implementation(implementation)
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-5)
    assert await steps(wild, ids, max_tokens=5) == before
    assert wild.exposes == {"hidden_state", "hidden_states", "attention"}


def test_the_embedding_matrix_is_that_of_the_input(wild: TransformersEngine) -> None:
    matrix = wild.embedding_matrix()
    read = wild.model.get_input_embeddings()(torch.arange(wild.vocabulary))
    assert torch.equal(matrix, read)


@torch.inference_mode()
def _raw_last(engine: TransformersEngine, ids: list[int]) -> torch.Tensor:
    return engine.model(input_ids=torch.tensor([ids])).logits[0, -1].double()


@pytest.mark.parametrize(
    ("ids", "options", "param", "says"),
    [
        ([], {}, "prompt", "empty"),
        ([5] * 256, {}, "prompt", "256 tokens"),
        ([5, 1280], {}, "prompt", "no token 1280"),
        ([5, -1], {}, "prompt", "no token -1"),
        ([5], {"logit_bias": {1285: 1.0}}, "logit_bias", "no token 1285"),
        ([5], {"stop_token_ids": (99999,)}, "stop_token_ids", "no token 99999"),
    ],
)
async def test_what_cannot_be_served(
    wild: TransformersEngine, ids: list[int], options: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(Unsupported, match=says) as caught:
        await steps(wild, ids, **options)
    assert caught.value.param == param
    assert wild.active == 0
