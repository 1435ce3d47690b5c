"""A toy world of conversations: windows of facts among filler, and an encoder of hashed words."""

from __future__ import annotations

import zlib

import numpy as np

NAMES = "Alice Bob Carol Dan Erin Frank Grace Heidi".split()
VERBS = "bought sold lost found borrowed painted repaired hid".split()
OBJECTS = [f"Object{i}" for i in range(16)]
DATES = [f"2024-{1 + i // 3:02d}-{1 + 10 * (i % 3):02d}" for i in range(36)]
FILLER = (
    "hello there how are you|that sounds really nice|thanks a lot|oh i see what you mean|yes of course|"
    "let us talk later|sure no problem|haha that is funny|okay then|have a good one"
).split("|")
TURNS, WINDOWS, INFORMATIVE, DIMENSION = 10, 60, 0.35, 256


def encode(text: str) -> np.ndarray:
    """A signed, hashed bag of words, normalised: `[256]`."""
    out = np.zeros(DIMENSION)
    for word in text.lower().split():
        code = zlib.crc32(word.encode())
        out[code % DIMENSION] += 1 if code >> 16 & 1 else -1
    length = np.linalg.norm(out)
    return out / length if length else out


def entities(text: str) -> set[str]:
    """Capitalised words, dates and objects."""
    return {word for word in text.split() if word[0].isupper() or word[0].isdigit()}


def world(seed: int) -> tuple[list[list[str]], list[bool]]:
    """The windows of a conversation, and which of them hold facts."""
    draw = np.random.default_rng(seed)
    windows, informative = [], []
    for _ in range(WINDOWS):
        facts = bool(draw.random() < INFORMATIVE)
        informative.append(facts)
        windows.append([_turn(draw, facts and draw.random() < 0.5) for _ in range(TURNS)])
    return windows, informative


def _turn(draw: np.random.Generator, fact: bool) -> str:
    if not fact:
        return str(draw.choice(FILLER))
    name, verb, thing, date = (draw.choice(each) for each in (NAMES, VERBS, OBJECTS, DATES))
    return f"{name} {verb} the {thing} on {date}"
