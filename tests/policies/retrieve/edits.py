"""A toy world of facts, some of which were edited, with a reader that is misled by facts that only look alike."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RELATIONS = {"capital": "The capital of {}", "founder": "The founder of {}", "leader": "The leader of {}",
             "currency": "The currency of {}"}  # fmt: skip
REPHRASED = {"capital": "Which city is the capital of {}?", "founder": "Who founded {}?", "leader": "Who leads {}?",
             "currency": "Which currency uses {}?"}  # fmt: skip
NOUNS = {"founded": "founder", "leads": "leader", "uses": "currency"}
FUNCTION = frozenset("the of is which city who what a".split())
ENTITIES, EDITS, DIMENSION = 150, 200, 512
RIGHT, MISLED = 0.95, 0.5
Pair = tuple[str, str]
"""An entity and a relation."""


def encode(text: str) -> np.ndarray:
    """A signed, hashed bag of words; function words count little, verbs as their nouns."""
    out = np.zeros(DIMENSION)
    for word in re.findall(r"\w+", text.lower()):
        code = zlib.crc32(NOUNS.get(word, word).encode())
        out[code % DIMENSION] += (0.3 if word in FUNCTION else 1.0) * (1 if code >> 16 & 1 else -1)
    length = np.linalg.norm(out)
    return out / length if length else out


@dataclass
class World:
    """Old answers of all pairs, and the new answers of the edited ones, each with its sentence."""

    old: dict[Pair, str]
    new: dict[Pair, str]
    draw: np.random.Generator

    @classmethod
    def made(cls, seed: int) -> World:
        draw = np.random.default_rng(seed)
        pairs = [(f"entity{i}", relation) for i in range(ENTITIES) for relation in RELATIONS]
        edited = [pairs[i] for i in draw.choice(len(pairs), EDITS, replace=False)]
        return cls({p: f"old{i}" for i, p in enumerate(pairs)}, {p: f"new{i}" for i, p in enumerate(edited)}, draw)

    @property
    def sentences(self) -> list[str]:
        return [f"{RELATIONS[relation].format(entity)} is {thing}" for (entity, relation), thing in self.new.items()]

    def answer(self, pair: Pair, context: str | None) -> str:
        """The reader: from the old table, or from a sentence; one about the same entity or relation misleads it."""
        if context is None:
            return self.old[pair]
        subject, relation, thing = parsed(context)
        match = (subject == pair[0]) + (relation == pair[1])
        if match == 2 or (match == 1 and self.draw.random() < MISLED):
            return thing
        return self.old[pair]

    async def confirm(self, pair: Pair, prompt: str) -> str:
        """The reader's answer to a prompt that confirms, right most of the time."""
        right = self.draw.random() < RIGHT
        if "Statements:" in prompt:
            lines = re.findall(r"^(\d+)\. (The \w+ of \w+ is \w+)$", prompt, re.M)
            fits = [number for number, line in lines if parsed(line)[:2] == pair]
            others = [number for number, _ in lines if number not in fits]
            if right:
                return fits[0] if fits else "0"
            return str(self.draw.choice([*others, *(["0"] if fits else [])]))
        line = re.search(r"^Statement: (.*)$", prompt, re.M)
        assert line is not None
        return "yes" if (parsed(line[1])[:2] == pair) == right else "no"


def parsed(sentence: str) -> tuple[str, str, str]:
    """The entity, the relation and the answer of a sentence."""
    found = re.fullmatch(r"The (\w+) of (\w+) is (\w+)", sentence)
    assert found is not None
    return found[2], found[1], found[3]


def asked(pair: Pair, words: dict[str, str] = RELATIONS) -> str:
    return words[pair[1]].format(pair[0])


def share(found: Sequence[bool]) -> float:
    return float(np.mean(found))
