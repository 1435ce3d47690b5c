"""Worker script that decodes pictures for `waver.server.pictures`: what a client sends may be made to fill the memory,
or to misuse a decoder."""

from __future__ import annotations

import io
import warnings
from typing import Any

from PIL import Image, ImageOps

from waver.isolation import serve

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
Image.MAX_IMAGE_PIXELS = None  # `most` bounds them, before anything is decoded


def handle(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Decode a picture of at most `most` pixels. Return `width`, `height` and its pixels as bytes of red, green and
    blue; or `flaw`, the end of a sentence that begins with "the picture", and for one that is too large its
    `pixels`."""
    warnings.simplefilter("ignore")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as found:
            width, height = found.size
            if width * height > request["most"]:
                return {"pixels": width * height, "flaw": f"has {width} by {height} pixels"}, b""
            if getattr(found, "is_animated", False):
                return {"flaw": "is an animation: send one of its frames"}, b""
            found.load()
            pixels = opaque(ImageOps.exif_transpose(found))
    except MemoryError:
        raise
    except Exception:  # decoders raise errors of every kind
        return {"flaw": f"cannot be decoded: it is damaged, cut off, or none of {', '.join(FORMATS)}"}, b""
    return {"width": pixels.width, "height": pixels.height}, pixels.tobytes()


def opaque(found: Image.Image) -> Image.Image:
    """Return a picture in red, green and blue; what is transparent is put on white."""
    if found.mode == "RGB":
        return found
    if "transparency" not in found.info and not found.mode.endswith(("A", "a")):
        return found.convert("RGB")
    layered = found.convert("RGBA")
    ground = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(ground, layered).convert("RGB")


if __name__ == "__main__":
    serve(handle)
