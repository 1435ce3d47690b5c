"""Make an Idefics3 with random weights, which reads pictures in tiles: of vLLM's vision models one that does not import
torchvision."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
)

from waver.training.vision.model import IMAGE, scattered, tokenizer

TILE, PATCH, SCALE = 32, 4, 2
"""Pixels of a tile's side and of a patch's, and by how much the patches of a side become fewer tokens."""
LONGEST = 2 * TILE
"""Pixels of a picture's longer side, to which it is resized."""
ROWS = 6
MARKS = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")


def save(folder: Path, seed: int = 0) -> None:
    """Save the model and its processor, as transformers and vLLM load them; a tile comes to 16 tokens."""
    tokens = deepcopy(tokenizer())
    places = [f"<row_{row + 1}_col_{column + 1}>" for row in range(ROWS) for column in range(ROWS)]
    tokens.add_special_tokens({"additional_special_tokens": ["<|im_start|>", IMAGE, *MARKS, *places]})
    text = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": PATCH,
    }
    config = Idefics3Config(
        text_config=text.to_dict(),
        vision_config=vision,
        scale_factor=SCALE,
        image_token_id=int(tokens.convert_tokens_to_ids(IMAGE)),  # type: ignore[arg-type]
        pad_token_id=tokens.pad_token_id,
    )
    model = scattered(lambda: Idefics3ForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": LONGEST}, max_image_size={"longest_edge": TILE}, image_mean=half, image_std=half
    )
    seen = (TILE // PATCH // SCALE) ** 2
    Idefics3Processor(pictures, tokens, image_seq_len=seen, chat_template=tokens.chat_template).save_pretrained(folder)
