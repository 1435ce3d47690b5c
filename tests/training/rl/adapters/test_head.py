"""Measures made where the logits are: the values and gradients of whole logits, in the memory of a few."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
)

pytest.importorskip("trl")

from torch.profiler import ProfilerActivity, profile
from trl.trainer.utils import add_fused_lm_head

from waver.benchmarks.rl_cost import peak_bytes
from waver.entropy import shannon_entropy
from waver.training.rl import Measure, Method, Recipe
from waver.training.rl.adapters import head
from waver.training.rl.adapters.forward import attention_of, from_head, watching
from waver.training.rl.adapters.head import add_measuring_head
from waver.training.rl.entropy_change import expected_discriminator
from waver.training.rl.methods.siren import NucleusEntropy

TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**TINY),
    "a soft cap": Gemma2Config(**TINY, final_logit_softcapping=3.0),
    "a factor": CohereConfig(**TINY, logit_scale=0.3),
    "a divisor": GraniteConfig(**TINY, logits_scaling=4.0),
}
MEASURES = (Measure("nec", expected_discriminator), Measure("nucleus", NucleusEntropy(), live=True))


def recipe_of(*measures: Measure) -> Recipe:
    return Recipe("grpo", [Method(name="one", paper="none", summary="for a test", measures=measures)])


def rows_of(config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    lengths = torch.tensor([[7], [3], [5]])
    return {
        "prompt_ids": torch.randint(3, config.vocab_size, (3, 4), generator=g),
        "prompt_mask": torch.ones(3, 4, dtype=torch.long),
        "completion_ids": torch.randint(3, config.vocab_size, (3, 7), generator=g),
        "completion_mask": (torch.arange(7) < lengths).long(),
    }


@pytest.mark.parametrize("kind", MODELS)
def test_chunks_are_whole_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of models that scale or cap their logits too; five tokens at a time, so that there are three chunks."""
    monkeypatch.setattr(head, "CHUNK", 5 * 61)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(MODELS[kind], attn_implementation="eager").double()
    rows, recipe = rows_of(MODELS[kind]), recipe_of(*MEASURES)
    valid = rows["completion_mask"] > 0
    whole = (
        model(
            torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1),
            torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1),
        ).logits[:, -8:-1]
        / 1.3
    )
    logprob = whole.log_softmax(-1).gather(-1, rows["completion_ids"].unsqueeze(-1)).squeeze(-1)
    add_fused_lm_head(model)
    add_measuring_head(model)
    old = from_head(model, rows, recipe, temperature=1.3, live=False)
    assert not old.logprob.requires_grad
    for found, expected in (
        (old.logprob, logprob),
        (old.entropy, shannon_entropy(whole)),
        (old.measures["nec"], expected_discriminator(whole)),
        (old.measures["nucleus"], NucleusEntropy()(whole)),
    ):
        torch.testing.assert_close(found, expected.detach().masked_fill(~valid, 0), atol=1e-10, rtol=0)
    now = from_head(model, rows, recipe, temperature=1.3, live=True)
    assert now.measures.keys() == {"nucleus"}
    wanted = torch.autograd.grad((logprob + NucleusEntropy()(whole)).masked_fill(~valid, 0).sum(), model.parameters())
    gradients = torch.autograd.grad((now.logprob + now.measures["nucleus"]).sum(), model.parameters())
    for found, expected in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert model(rows["prompt_ids"]).logits.shape == (3, 4, 61)


def test_attention_is_that_of_one_layer() -> None:
    """Only that layer is watched, and what is measured are the weights that the model would give away."""
    model: Any = LlamaForCausalLM._from_config(MODELS["llama"], attn_implementation="eager")
    rows = rows_of(MODELS["llama"])
    measure = Measure("first", lambda weights, _: weights[:, 0, :, 3], source="attention", layer=0)
    ids, mask = (torch.cat([rows[f"prompt_{x}"], rows[f"completion_{x}"]], 1) for x in ("ids", "mask"))
    with watching(model, rows, recipe_of(measure), live=False) as found:
        assert [len(attention_of(model, layer)._forward_hooks) for layer in (0, 1)] == [1, 0]
        model(ids, mask)
    assert not attention_of(model, 0)._forward_hooks
    expected = model(ids, mask, output_attentions=True).attentions[0][:, 0, -8:-1, 3]
    torch.testing.assert_close(found["first"], expected)
    with watching(model, rows, recipe_of(measure), live=True) as found:
        model(ids, mask)
    assert not found


def test_a_vocabulary_of_152_thousand_takes_the_memory_of_a_few_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole logits of these 256 tokens would be 148 MiB in float32, and measures with gradient several times that."""
    monkeypatch.setattr(head, "CHUNK", 2**21)
    config = LlamaConfig(**TINY | {"vocab_size": 151_936, "num_hidden_layers": 1})
    model: Any = LlamaForCausalLM(config)
    add_measuring_head(model)
    g = torch.Generator().manual_seed(0)
    ones = torch.ones(4, 64, dtype=torch.long)
    rows = {
        "prompt_ids": ones[:, :2],
        "prompt_mask": ones[:, :2],
        "completion_ids": torch.randint(3, 151_936, (4, 64), generator=g),
        "completion_mask": ones,
    }
    recipe = recipe_of(*MEASURES, Measure("entropy", shannon_entropy, old=False, live=True))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as old:
        from_head(model, rows, recipe, live=False)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as update:
        now = from_head(model, rows, recipe, live=True)
        (now.logprob + now.measures["nucleus"] + now.measures["entropy"]).sum().backward()
    whole = 4 * 256 * 151_936
    assert peak_bytes(old) < 0.7 * whole
    assert peak_bytes(update) < whole
