"""Make the untrained model that reads pictures, and its processor: CLIP's vision transformer before a Llama, as LLaVA
joins them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import TypeVar

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from waver.training.pair.tokenizer import build_tokenizer
from waver.training.vision.pictures import COLOURS, COUNTS, DIGITS, SHAPES, SIDE, draw, questions

Model = TypeVar("Model", bound=torch.nn.Module)

CONTEXT_LENGTH = 1024
PATCH = 4
IMAGE = "<image>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if not (loop.last and continue_final_message is defined and continue_final_message) %}"
    "{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer, on what is asked and answered; once."""
    texts = list(chain.from_iterable(chain.from_iterable(questions(draw(0, i)) for i in range(2000))))
    words = [f" {word}" for word in (*COLOURS, *SHAPES, *DIGITS, *COUNTS)]
    made = build_tokenizer([*texts, *("user\n", "assistant\n", "system\n") * 100, *words * 20], CONTEXT_LENGTH)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", IMAGE]})
    made.chat_template = CHAT_TEMPLATE
    return made


def processor(tokens: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Make the processor: pictures of any size come to 32 by 32 pixels."""
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        pictures,
        tokens,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def build(tokens: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Make the model with random weights. The text's heads have 32 numbers, which vLLM's CPU attention supports."""
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        projection_dim=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=int(tokens.convert_tokens_to_ids(IMAGE)),  # type: ignore[arg-type]
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def scattered(make: Callable[[], Model], seed: int) -> Model:
    """Make a model whose matrices are drawn anew from a seed, so wide that every token and pixel tells."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        for weights in model.parameters():
            if weights.ndim > 1:
                torch.nn.init.normal_(weights, std=0.2)
    return model
