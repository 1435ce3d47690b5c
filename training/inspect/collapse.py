"""Find the layer of a vision-language model before which image tokens may be dropped: where the matrix entropy of all
of a picture's tokens falls most (EntropyPrune, arXiv 2602.17196)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from waver.engines.base import reason
from waver.engines.pictures import Picture
from waver.engines.tokens import TokenText
from waver.engines.vision import Vision, takes_pictures
from waver.engines.visual_pruning import decoder_layers, find_layer
from waver.training.adaptation.views import read_image
from waver.training.vision.pictures import draw

ASKED = "What is in the picture?"
SEED = 10_000_033
"""The seed of drawn pictures, which no model was trained on."""


def inspect_collapse(model: str, images: Sequence[Path], drawn: int = 32) -> tuple[int, list[float]]:
    """Return the layer, and the mean matrix entropy of the image tokens behind each of the layers (over its largest).

    Args:
        images: files of pictures; `drawn` pictures of shapes and digits where there are none.

    Raises:
        ValueError: the model takes no pictures or cannot be pruned, or a picture cannot be read.
    """
    try:
        sees = takes_pictures(model)
        loaded = AutoModelForImageTextToText.from_pretrained(model, use_safetensors=True).eval() if sees else None
    except Exception as error:  # transformers and safetensors raise their own kinds
        raise ValueError(f"cannot load {model!r}: {reason(error)}") from error
    if loaded is None:
        raise ValueError(f"{model!r} takes no pictures")
    decoder_layers(loaded)
    tokens = TokenText.load(model)
    vision = Vision.load(model, tokens)
    if vision is None:
        raise ValueError(f"the processor of {model!r} cannot be used: the warning above says why")
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASKED}]}]
    prompts = []
    for picture in pictures(images, drawn):
        ids, placed = vision.place(tokens.chat(asked), [picture])
        prompts.append({"input_ids": torch.tensor([ids]), **vision.inputs(ids, placed)})
    return find_layer(loaded, vision.image_token, prompts)


def pictures(images: Sequence[Path], drawn: int) -> Iterator[Picture]:
    """Yield pictures of files, or drawn ones."""
    for file in images:
        with read_image(file) as image:
            yield Picture(image.width, image.height, image.tobytes(), str(file))
    for number in range(0 if images else drawn):
        pixels = draw(SEED, number).pixels
        yield Picture(pixels.shape[1], pixels.shape[0], pixels.tobytes(), f"drawn {number}")
