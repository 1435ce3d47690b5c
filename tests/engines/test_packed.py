"""Linear layers in the order that the processor reads: the same products, faster, of what is worth it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.engines.driving import VOCABULARY, save_random, tokens
from waver.engines import TransformersConfig
from waver.engines.packed import PackedLinear, can_pack, pack
from waver.engines.transformers import TransformersEngine

pytestmark = pytest.mark.skipif(not can_pack(), reason="this processor has no packed bfloat16 products")


@pytest.mark.parametrize("shape", [(1,), (8,), (300,), (2, 5), (2, 0)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_maps_as_the_layer_does(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(640, 512, bias=bias).bfloat16()
    rows = torch.randn(*shape, 640).bfloat16()
    with torch.inference_mode():
        given, wanted = PackedLinear(linear)(rows), linear(rows)
        exact = nn.functional.linear(rows.double(), linear.weight.double(), linear.bias.double() if bias else None)
    assert (given.shape, given.dtype) == (wanted.shape, torch.bfloat16)
    assert torch.allclose(given.double(), exact, rtol=2**-7, atol=2**-7)


def test_large_bfloat16_layers_of_the_processor_are_packed_and_no_others() -> None:
    wide, narrow = nn.Linear(1024, 256), nn.Linear(16, 16)
    model = nn.Sequential(wide, nn.Sequential(nn.Linear(256, 1024), narrow.bfloat16()))
    assert pack(model) == 0  # float32
    own = model[1][0].bfloat16()
    assert pack(model) == 1
    assert (model[0], model[1][1]) == (wide, narrow)
    assert isinstance(model[1][0], PackedLinear)
    assert (model[1][0].in_features, model[1][0].out_features) == (own.in_features, own.out_features)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in bfloat16, wide enough for packed layers, its output layer tied to its embeddings."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=768, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, initializer_range=0.05, bos_token_id=None, eos_token_id=2,
        pad_token_id=0, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    return save_random(tmp_path_factory.mktemp("half"), config)


async def test_an_engine_decodes_with_packed_layers(half: Path) -> None:
    engine = TransformersEngine("half", TransformersConfig(model=str(half), dtype="bfloat16"))
    plain = LlamaForCausalLM.from_pretrained(half, dtype=torch.bfloat16).eval()
    packed = [each for each in engine.model.modules() if isinstance(each, PackedLinear)]
    assert len(packed) == sum(
        isinstance(each, nn.Linear) and each.weight.numel() >= 1 << 18 for each in plain.modules()
    )
    assert engine.parameters == plain.num_parameters()
    assert torch.equal(engine.embedding_matrix(), plain.get_input_embeddings().weight.float())
    prompt = [5, 9, 40, 3]
    made = await tokens(engine, prompt, max_tokens=12, ignore_eos=True)
    with torch.inference_mode():
        logits = plain(input_ids=torch.tensor([prompt + made])).logits[0, len(prompt) - 1 : -1].float()
        logits[:, engine.tokens.vocab_size :] = -torch.inf  # ids that the tokenizer does not know are never drawn
    # Each is the best of the plain model's, but for what rounding makes of a tie.
    best, taken = logits.max(-1).values, logits[torch.arange(len(made)), torch.tensor(made)]
    assert torch.all(best - taken <= 0.03)
    await engine.aclose()
