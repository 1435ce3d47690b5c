"""Make, read and check puzzles of knights, who say nothing but what is true, and knaves, who say nothing but lies."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product

NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gwen", "Hugo")
HEAD = "On an island everybody is a knight, who always tells the truth, or a knave, who always lies."
TAIL = "Who is what? Write one sentence for each, such as: Ann is a knight."
STATEMENT = re.compile(
    r"([A-Z][a-z]+) says: ([A-Z][a-z]+) (?:is a (knight|knave)|and ([A-Z][a-z]+) are (alike|unlike))\."
)
CLAIM = re.compile(r"\b([A-Z][a-z]+) is a (knight|knave)\b")
MOST_TRIES = 1000


@dataclass(frozen=True)
class Statement:
    """A statement: that `first` is a knight or a knave (`kind`), or is like `second` or not (`alike`)."""

    speaker: str
    first: str
    kind: bool | None = None
    second: str | None = None
    alike: bool | None = None

    @property
    def text(self) -> str:
        if self.second is None:
            return f"{self.speaker} says: {self.first} is a {'knight' if self.kind else 'knave'}."
        return f"{self.speaker} says: {self.first} and {self.second} are {'alike' if self.alike else 'unlike'}."

    def fits(self, kinds: Mapping[str, bool]) -> bool | None:
        """Return whether it fits who is a knight (True) or a knave; None where somebody in it is not known."""
        people = [self.speaker, self.first, *([self.second] if self.second else [])]
        if any(each not in kinds for each in people):
            return None
        if self.second is None:
            true = kinds[self.first] == self.kind
        else:
            true = (kinds[self.first] == kinds[self.second]) == self.alike
        return kinds[self.speaker] == true


@dataclass(frozen=True)
class Puzzle:
    """People, and what they say."""

    people: tuple[str, ...]
    statements: tuple[Statement, ...]

    @property
    def text(self) -> str:
        return " ".join((HEAD, *(each.text for each in self.statements), TAIL))

    def solved_by(self, said: str) -> bool:
        """Return whether a text says of everybody what they are, and every statement fits."""
        kinds = claims(said, self.people)
        return len(kinds) == len(self.people) and all(each.fits(kinds) for each in self.statements)

    def solutions(self) -> list[dict[str, bool]]:
        """Return all ways in which every statement fits."""
        every = (
            dict(zip(self.people, kinds, strict=True)) for kinds in product((True, False), repeat=len(self.people))
        )
        return [kinds for kinds in every if all(each.fits(kinds) for each in self.statements)]


def make(people: int, seed: int) -> Puzzle:
    """Make a puzzle with one solution, of 2 to 8 people of whom each says one thing.

    Raises:
        ValueError: there are not 2 to 8 people.
    """
    if not 2 <= people <= len(NAMES):
        raise ValueError(f"there are 2 to {len(NAMES)} people in a puzzle")
    rng, names = random.Random(f"knights:{people}:{seed}"), NAMES[:people]
    for _ in range(MOST_TRIES):
        puzzle = Puzzle(names, tuple(_statement(rng, each, names) for each in names))
        if len(puzzle.solutions()) == 1:
            return puzzle
    raise ValueError("no puzzle with one solution was found")


def _statement(rng: random.Random, speaker: str, names: tuple[str, ...]) -> Statement:
    others = [each for each in names if each != speaker]
    if len(others) > 1 and rng.random() < 0.5:
        first, second = rng.sample(others, 2)
        return Statement(speaker, first, second=second, alike=rng.random() < 0.5)
    if rng.random() < 0.3:
        return Statement(speaker, speaker, second=rng.choice(others), alike=rng.random() < 0.5)
    return Statement(speaker, rng.choice(others), rng.random() < 0.5)


def read(question: str) -> Puzzle:
    """Read a puzzle in a question.

    Raises:
        ValueError: there is none.
    """
    statements = tuple(
        Statement(speaker, first, None if kind == "" else kind == "knight", second or None,
                  None if how == "" else how == "alike")
        for speaker, first, kind, second, how in STATEMENT.findall(question)
    )  # fmt: skip
    if not statements:
        raise ValueError("there is no puzzle of knights and knaves in the question, such as: Ann says: Ben is a knave.")
    people = [each for s in statements for each in (s.speaker, s.first, s.second) if each]
    return Puzzle(tuple(dict.fromkeys(people)), statements)


def claims(text: str, people: Collection[str]) -> dict[str, bool]:
    """Return who is a knight (True) or a knave by a text; of several claims about one the last holds."""
    return {name: kind == "knight" for name, kind in CLAIM.findall(text) if name in people}
