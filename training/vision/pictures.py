"""Draw pictures of coloured shapes and digits, with questions about them and the answers.

A picture has 32 by 32 pixels and one to three things of 8 by 8 on a dark, noisy ground; picture i of a seed is the same
wherever it is drawn.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

SIDE, THING, STEP = 32, 8, 4
"""Pixels of a picture's side and of a thing's, and of the grid that things stand on."""
COLOURS = {
    "red": (225, 45, 40),
    "green": (50, 190, 70),
    "blue": (60, 90, 235),
    "yellow": (235, 210, 50),
    "white": (235, 235, 235),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIGITS = "0123456789"
KINDS = (*SHAPES, *DIGITS)
COUNTS = ("None", "One", "Two", "Three")
FONT = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "11110 00001 00001 01110 00001 00001 11110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
"""Rows of the ten digits, 5 by 7 pixels."""
NO_DIGIT = "There is none."


@dataclass(frozen=True)
class Thing:
    """A shape or a digit: what it is, its colour, and its upper left corner in pixels."""

    kind: str
    colour: str
    x: int
    y: int

    @property
    def phrase(self) -> str:
        return f"a {self.colour} {self.kind}"

    @property
    def place(self) -> str:
        """Return the quarter that its centre is in."""
        middle, half = SIDE // 2, THING // 2
        return f"{'top' if self.y + half < middle else 'bottom'} {'left' if self.x + half < middle else 'right'}"


@dataclass(frozen=True)
class Picture:
    """Pixels `[32, 32, 3]` as bytes of red, green and blue, and the things in them, in reading order."""

    pixels: np.ndarray
    things: tuple[Thing, ...]

    def patches(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Label the square patches of so many pixels, row by row: the number of the thing's kind and of its colour,
        counted from 1; 0 where there is none."""
        kinds = np.zeros((SIDE // side, SIDE // side), dtype=np.int64)
        colours = kinds.copy()
        for thing in self.things:
            at = np.s_[thing.y // side : (thing.y + THING) // side, thing.x // side : (thing.x + THING) // side]
            kinds[at] = KINDS.index(thing.kind) + 1
            colours[at] = list(COLOURS).index(thing.colour) + 1
        return kinds.ravel(), colours.ravel()

    @property
    def caption(self) -> str:
        """Name what is there: "A red circle and a blue 7."."""
        phrases = [thing.phrase for thing in self.things]
        listed = " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
        return f"{listed[0].upper()}{listed[1:]}."


def stencil(kind: str) -> np.ndarray:
    """Return the pixels that a thing covers, `[8, 8]` booleans."""
    rows, columns = np.mgrid[0:THING, 0:THING] - (THING - 1) / 2
    if kind == "circle":
        return rows**2 + columns**2 <= 13.0
    if kind == "square":
        return np.maximum(abs(rows), abs(columns)) <= 3.0
    if kind == "triangle":
        return (abs(columns) <= (rows + 4.0) / 2) & (rows <= 3.0)
    if kind == "cross":
        return (abs(rows) <= 1.0) | (abs(columns) <= 1.0)
    covered = np.zeros((THING, THING), dtype=bool)
    covered[:7, 1:6] = [[bit == "1" for bit in row] for row in FONT[int(kind)].split()]
    return covered


def draw(seed: int, number: int) -> Picture:
    """Draw picture `number` of a seed."""
    lot = random.Random(f"{seed}:{number}")
    corners = [(x, y) for x in range(0, SIDE - THING + 1, STEP) for y in range(0, SIDE - THING + 1, STEP)]
    things: list[Thing] = []
    for _ in range(lot.choice((1, 1, 2, 2, 3))):
        free = [
            (x, y) for x, y in corners if all(abs(x - t.x) >= THING + STEP or abs(y - t.y) >= THING for t in things)
        ]
        used = {thing.kind for thing in things}
        kinds = [kind for kind in SHAPES if kind not in used]
        if not any(kind in DIGITS for kind in used) and lot.random() < 0.5:
            kinds = list(DIGITS)
        x, y = lot.choice(free)
        things.append(Thing(lot.choice(kinds), lot.choice(list(COLOURS)), x, y))
    things.sort(key=lambda thing: (thing.y, thing.x))
    noise = np.random.default_rng([seed, number])
    ground = np.array([lot.randrange(70) for _ in range(3)])
    pixels = ground + noise.integers(-12, 13, (SIDE, SIDE, 3))
    for thing in things:
        part = pixels[thing.y : thing.y + THING, thing.x : thing.x + THING]
        part[stencil(thing.kind)] = COLOURS[thing.colour]
    pixels = pixels + noise.integers(-8, 9, (SIDE, SIDE, 3))
    return Picture(pixels.clip(0, 255).astype(np.uint8), tuple(things))


def questions(picture: Picture) -> list[tuple[str, str]]:
    """Return every question about a picture, with its answer."""
    digits = [thing for thing in picture.things if thing.kind in DIGITS]
    asked = [
        ("What is in the picture?", picture.caption),
        ("How many things are there?", f"{COUNTS[len(picture.things)]}."),
        ("Which digit is there?", f"{digits[0].kind}." if digits else NO_DIGIT),
    ]
    for thing in picture.things:
        name = "digit" if thing in digits else thing.kind
        asked.append((f"What colour is the {name}?", f"{thing.colour.capitalize()}."))
        asked.append((f"Where is the {name}?", f"{thing.place.capitalize()}."))
    return asked


def conversation(picture: Picture, lot: random.Random, turns: int = 2) -> list[tuple[str, str]]:
    """Draw some questions about a picture; the second half of the time it is what is in it first."""
    asked = questions(picture)
    chosen = lot.sample(asked[1:], min(turns, len(asked) - 1))
    return [asked[0], *chosen[:-1]] if lot.random() < 0.5 else chosen
