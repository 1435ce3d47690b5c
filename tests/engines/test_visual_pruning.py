"""Image tokens are dropped inside a vision-language model: what goes on, what the cache holds, and what stays exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from waver.engines.base import Unsupported
from waver.engines.pictures import Pruning
from waver.engines.visual_pruning import VisualPruner, decoder_layers, find_layer, runs
from waver.entropy.matrix import keep_tokens, tokens_to_keep

IMAGE, LAYERS, PATCHES = 60, 4, 16


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    """A tiny LLaVA with random weights; an image has 16 tokens."""
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
        made: LlavaForConditionalGeneration = LlavaForConditionalGeneration(config).eval()
    return made


def prompt(images: int = 1) -> dict[str, torch.Tensor]:
    ids = [1, 5]
    for _ in range(images):
        ids += [IMAGE] * PATCHES + [7, 9]
    generator = torch.Generator().manual_seed(3)
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": torch.randn(images, 3, 16, 16, generator=generator),
    }


def answer(model: Any, given: dict[str, torch.Tensor], tokens: int = 6) -> Any:
    return model.generate(
        **given,
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )


@torch.inference_mode()
def test_all_tokens_kept_change_nothing(model: Any) -> None:
    given = prompt()
    plain = answer(model, given)
    pruner = VisualPruner(model, IMAGE, Pruning(1, 1.0))
    with pruner.watching(given["input_ids"]):
        kept = answer(model, given)
    assert pruner.done is not None
    assert (pruner.done.before, pruner.done.after) == (PATCHES, PATCHES)
    assert torch.equal(torch.stack(plain.logits), torch.stack(kept.logits))


@torch.inference_mode()
@pytest.mark.parametrize("images", [1, 2])
def test_the_tokens_of_largest_entropy_go_on(model: Any, images: int) -> None:
    given, how = prompt(images), Pruning(2, 0.625)
    length = given["input_ids"].shape[1]
    seen: dict[str, torch.Tensor] = {}
    attention: Any = decoder_layers(model)[1].self_attn

    def see(_: Any, __: Any, out: torch.Tensor) -> None:
        seen.setdefault("q", out[0].clone())

    hook = attention.q_proj.register_forward_hook(see)
    pruner = VisualPruner(model, IMAGE, how)
    with pruner.watching(given["input_ids"]):
        made = answer(model, given)
    hook.remove()
    keep = tokens_to_keep(LAYERS, 2, PATCHES, 0.625 * PATCHES)
    assert keep == 4
    assert pruner.done is not None
    assert (pruner.done.before, pruner.done.after) == (images * PATCHES, images * keep)
    expected = []
    for start, end in runs((given["input_ids"][0] == IMAGE).tolist()):
        expected += (start + keep_tokens(seen["q"][start:end].reshape(PATCHES, 4, 8), keep)).tolist()
    text = [i for i, token in enumerate(given["input_ids"][0].tolist()) if token != IMAGE]
    assert pruner.done.places.tolist() == sorted(expected + text)
    cached = [layer.keys.shape[-2] for layer in made.past_key_values.layers]
    short = length - images * (PATCHES - keep)
    assert cached == [length + 5, length + 5, short + 5, short + 5]
    assert not torch.equal(torch.stack(made.logits), torch.stack(answer(model, given).logits))


@torch.inference_mode()
def test_decoding_equals_a_prompt_that_is_read_at_once(model: Any) -> None:
    """Tokens decoded one by one against the pruned cache get the logits that they get as part of the prompt."""
    given, how = prompt(), Pruning(1, 0.5)
    pruner = VisualPruner(model, IMAGE, how)
    with pruner.watching(given["input_ids"]):
        made = answer(model, given)
    longer = made.sequences[:, :-1]
    with pruner.watching(longer):
        out = model(
            input_ids=longer, attention_mask=torch.ones_like(longer), pixel_values=given["pixel_values"]
        ).logits[0, -6:]
    assert torch.allclose(out, torch.cat(list(made.logits)), atol=1e-4)


@torch.inference_mode()
def test_prompts_without_images_and_refusals(model: Any) -> None:
    given = {"input_ids": torch.tensor([[1, 5, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    pruner = VisualPruner(model, IMAGE, Pruning(1, 0.5))
    with pruner.watching(given["input_ids"]):
        made = answer(model, given)
    assert pruner.done is None
    assert torch.equal(torch.stack(made.logits), torch.stack(answer(model, given).logits))
    for how, words in ((Pruning(0, 0.5), "from 1 to 3, not 0"), (Pruning(4, 0.5), "not 4"), (Pruning(1, 0.0), "not 0")):
        with pytest.raises(Unsupported, match=words):
            VisualPruner(model, IMAGE, how)
    with pytest.raises(ValueError, match="one prompt at a time"), pruner.watching(torch.ones(2, 3)):
        pass
    with pytest.raises(Unsupported, match="Linear has no decoder"):
        decoder_layers(torch.nn.Linear(2, 2))


def test_the_layer_is_found(model: Any) -> None:
    layer, means = find_layer(model, IMAGE, [prompt(), prompt()])
    assert len(means) == LAYERS
    assert layer == 1
    assert all(0 < each < 1 for each in means)
