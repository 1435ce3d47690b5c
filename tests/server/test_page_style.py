"""The page's colours: tints are evenly spaced, can be told apart without seeing colours, and leave text readable."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

CSS = (Path(__file__).parents[2] / "server" / "static" / "style.css").read_text()
Colour = tuple[float, float, float]


def oklab(text: str) -> Colour:
    """Read a colour of a style sheet as OKLab."""
    if found := re.fullmatch(r"oklch\(([\d.]+)% ([\d.]+) ([\d.]+)\)", text):
        light, chroma, hue = (float(each) for each in found.groups())
        return light / 100, chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    parts = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
    cones = (
        0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b,
        0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b,
        0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b,
    )
    x, y, z = (each ** (1 / 3) for each in cones)
    return (
        0.2104542553 * x + 0.7936177850 * y - 0.0040720468 * z,
        1.9779984951 * x - 2.4285922050 * y + 0.4505937099 * z,
        0.0259040371 * x + 0.7827717662 * y - 0.8086757660 * z,
    )


def luminance(colour: Colour) -> float:
    light, a, b = colour
    x = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    y = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    z = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    r = 4.0767416621 * x - 3.3077115913 * y + 0.2309699292 * z
    g = -1.2684380046 * x + 2.6097574011 * y - 0.3413193965 * z
    blue = -0.0041960863 * x - 0.7034186147 * y + 1.7076147010 * z
    return 0.2126 * r + 0.7152 * g + 0.0722 * blue


def contrast(one: Colour, other: Colour) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tints(scheme: str) -> None:
    root = CSS.split("@media (prefers-color-scheme: dark)")[scheme == "dark"].split("}")[0]
    colours = {name: oklab(value) for name, value in re.findall(r"--([\w-]+): (#\w{6}|oklch\([^)]*\));", root)}
    cold, hot, ink = colours["cold"], colours["hot"], colours["ink"]
    assert "color-mix(in oklab, var(--cold), var(--hot) calc(var(--h) * 100%))" in CSS  # a straight line, evenly walked
    steps = [tuple(a + (b - a) * part / 6 for a, b in zip(cold, hot, strict=True)) for part in range(7)]
    assert abs(hot[0] - cold[0]) > 0.18  # lightness alone tells them apart
    for step in steps:
        light, a, b = step
        assert contrast((light, a, b), ink) >= 4.5
    assert contrast(colours["soft"], colours["paper"]) >= 4.5
    assert contrast(colours["soft"], colours["card"]) >= 4.5
