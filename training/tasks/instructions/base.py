"""Define what a constraint is, and how words, sentences and paragraphs are counted."""

from __future__ import annotations

import random
import re
from typing import Any, ClassVar, Literal, Self

from waver.training.strict import Strict

Relation = Literal["at least", "at most", "exactly"]
LOOSE, TIGHT, HARDEST = 0.05, 0.1, 0.2
"""Gains of a constraint that is met (arXiv 2508.03178, released scorer): one-sided bounds and absences; two-sided or
exact counts, endings and layouts; an exact number of sentences, and a letter that is forbidden."""
SENTENCE_ENDS = re.compile(r"(?:(?<=[.!?。！？])|(?<=[.!?][\"”')\]]))\s")
WORD = re.compile(r"\w+")


class Constraint(Strict):
    """One rule for an answer. Subclasses have a literal `kind`, and say what they rule."""

    kind: str
    gain: ClassVar[float] = TIGHT
    rules: ClassVar[frozenset[str]] = frozenset()
    """Aspects of an answer that it decides: two constraints that share one are not drawn together."""

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        """Draw one for a request."""
        raise NotImplementedError

    def words(self) -> str:
        """Return the sentence that tells it."""
        raise NotImplementedError

    def met(self, answer: str) -> bool:
        """Tell whether an answer, which is not empty, meets it."""
        raise NotImplementedError

    @property
    def worth(self) -> float:
        """The gain of meeting it."""
        return self.gain


class Counted(Constraint):
    """A constraint on a number of things."""

    relation: Relation
    count: int

    def holds(self, found: int) -> bool:
        """Compare a number with the one that is asked for."""
        match self.relation:
            case "at least":
                return found >= self.count
            case "at most":
                return found <= self.count
            case "exactly":
                return found == self.count

    @property
    def worth(self) -> float:
        return TIGHT if self.relation == "exactly" else LOOSE

    def amount(self, one: str, many: str) -> str:
        """Return words such as "at least 3 bullet points"."""
        return f"{self.relation} {self.count} {one if self.count == 1 else many}"


def words_of(text: str) -> list[str]:
    """Return the runs of letters, digits and underscores, as IFEval counts words."""
    return WORD.findall(text)


def sentences_of(text: str) -> list[str]:
    """Split at spaces behind `.`, `!`, `?` or their wide forms. Abbreviations ("Dr. No") are cut, too."""
    return [part for part in SENTENCE_ENDS.split(text) if WORD.search(part)]


def paragraphs_of(text: str) -> list[str]:
    """Split at empty lines."""
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            parts[-1].append(line)
        elif parts[-1]:
            parts.append([])
    return ["\n".join(part) for part in parts if part]


def count_word(text: str, word: str) -> int:
    """Count a word or phrase as whole words, ignoring case."""
    return len(re.findall(rf"(?<!\w){re.escape(word.lower())}(?!\w)", text.lower()))


def listed(words: Any) -> str:
    """Return `"a", "b"`."""
    return ", ".join(f'"{word}"' for word in words)
