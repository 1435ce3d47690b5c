"""Pictures and a tiny vision-language model with random weights, for tests."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

from PIL import Image

from waver.engines.pictures import Picture
from waver.training.vision.model import build, processor, scattered, tokenizer
from waver.training.vision.pictures import draw


def save_seeing(folder: Path, seed: int = 0) -> Path:
    """Save the bundled vision model's untrained twin, as transformers loads it; an image has 64 tokens."""
    tokens = tokenizer()
    model = scattered(lambda: build(tokens), seed)
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.save_pretrained(folder)
    processor(tokens).save_pretrained(folder)
    return folder


def picture(number: int = 0) -> Picture:
    """Return a drawn picture as an engine takes it."""
    data = draw(5, number).pixels.tobytes()
    return Picture(32, 32, data, hashlib.blake2b(data).hexdigest())


def drawn(number: int = 0) -> Image.Image:
    return Image.fromarray(draw(5, number).pixels)


def data_url(image: Image.Image, form: str = "PNG", kind: str | None = None, **options: Any) -> str:
    """Return an image as a data URL."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return as_url(file.getvalue(), kind or f"image/{form.lower()}")


def as_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: dict[str, Any] | str) -> list[dict[str, Any]]:
    """Return a conversation of one message, of these parts."""
    content = [{"type": "text", "text": each} if isinstance(each, str) else each for each in parts]
    return [{"role": "user", "content": content}]
