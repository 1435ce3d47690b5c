"""Read image files within bounds, and cut them into views: a centre crop and random crops."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MOST_PIXELS = 64_000_000
"""Pixels of the largest image that is decoded."""
ASPECTS = (3 / 4, 4 / 3)
"""Narrowest and widest random crop."""


def find_images(folder: Path) -> list[Path]:
    """List the image files of a folder and the folders in it, by name.

    Raises:
        ValueError: there are none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    found = sorted(each for each in folder.rglob("*") if each.suffix.lower() in ENDINGS and each.is_file())
    if not found:
        raise ValueError(f"{folder} holds no images ({', '.join(sorted(ENDINGS))})")
    return found


def read_image(file: Path) -> Image.Image:
    """Decode an image as RGB; of several frames the first.

    Raises:
        ValueError: it is no image, damaged, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise ValueError(f"{file} has {opened.width} by {opened.height} pixels; at most {MOST_PIXELS:,}")
                return opened.convert("RGB")
    except UnidentifiedImageError:
        raise ValueError(f"{file} is no image that can be read") from None
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None


def crops(
    image: Image.Image, size: int, count: int, smallest: float, mirror: float, seed: str
) -> Iterator[Image.Image]:
    """Cut `count` square views of `size` pixels: the centre, then random crops that depend on the seed alone.

    Args:
        smallest: least share of the area in a random crop. mirror: probability that one is mirrored.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    yield _resized(image, (left, top, left + side, top + side), size)
    rng = random.Random(seed)
    for _ in range(count - 1):
        view = _resized(image, _box(image.size, smallest, rng), size)
        yield view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < mirror else view


def _box(shape: tuple[int, int], smallest: float, rng: random.Random) -> tuple[int, int, int, int]:
    """Draw a crop: a share of the area in [smallest, 1], and an aspect in `ASPECTS`, even in its logarithm; the centre
    where ten tries do not fit."""
    width, height = shape
    for _ in range(10):
        area = width * height * rng.uniform(smallest, 1.0)
        aspect = math.exp(rng.uniform(*map(math.log, ASPECTS)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    side = min(shape)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _resized(image: Image.Image, box: tuple[int, int, int, int], size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
