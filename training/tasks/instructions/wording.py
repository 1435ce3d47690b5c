"""Constraints on how much is said and in which words: IFEval's families of length, keywords, case and language."""

from __future__ import annotations

import random
import unicodedata
from typing import ClassVar, Literal, Self

from pydantic import Field

from waver.training.tasks.instructions.base import (
    HARDEST,
    LOOSE,
    Constraint,
    Counted,
    Relation,
    count_word,
    listed,
    sentences_of,
    words_of,
)

KEYWORDS = ("time", "water", "hand", "morning", "road", "garden", "letter", "music", "paper", "river", "light", "stone")
AVOIDED = ("very", "thing", "good", "really", "important", "however", "also", "many")
RARE = "jqxz"
SCRIPTS = {"Russian": "CYRILLIC", "Greek": "GREEK", "Arabic": "ARABIC", "Hindi": "DEVANAGARI", "Korean": "HANGUL"}
"""Languages that a script of their own tells."""


def one_of(rng: random.Random, *relations: Relation) -> Relation:
    return rng.choice(relations)


class Words(Counted):
    kind: Literal["words"] = "words"
    count: int = Field(ge=1)
    rules: ClassVar[frozenset[str]] = frozenset({"length"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls(relation=one_of(rng, "at least", "at most"), count=rng.choice((20, 40, 60, 100, 150, 200)))

    def words(self) -> str:
        return f"Answer in {self.amount('word', 'words')}."

    def met(self, answer: str) -> bool:
        return self.holds(len(words_of(answer)))


class Sentences(Counted):
    kind: Literal["sentences"] = "sentences"
    count: int = Field(ge=1)
    rules: ClassVar[frozenset[str]] = frozenset({"length"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls(relation=one_of(rng, "at least", "at most", "exactly"), count=rng.randint(1, 6))

    def words(self) -> str:
        return f"Write {self.amount('sentence', 'sentences')}."

    def met(self, answer: str) -> bool:
        return self.holds(len(sentences_of(answer)))

    @property
    def worth(self) -> float:
        return HARDEST if self.relation == "exactly" else LOOSE


class Keywords(Constraint):
    kind: Literal["keywords"] = "keywords"
    keywords: list[str] = Field(min_length=1)
    gain: ClassVar[float] = LOOSE
    rules: ClassVar[frozenset[str]] = frozenset({"keywords"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls(keywords=rng.sample(KEYWORDS, rng.randint(1, 3)))

    def words(self) -> str:
        return f"Use each of these words: {listed(self.keywords)}."

    def met(self, answer: str) -> bool:
        return all(count_word(answer, each) for each in self.keywords)


class Frequency(Counted):
    kind: Literal["keyword_frequency"] = "keyword_frequency"
    keyword: str = Field(min_length=1)
    count: int = Field(ge=0)
    rules: ClassVar[frozenset[str]] = frozenset({"keywords"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        relation = one_of(rng, "at least", "at most", "exactly")
        return cls(keyword=rng.choice(KEYWORDS), relation=relation, count=rng.randint(1, 4))

    def words(self) -> str:
        return f'Use the word "{self.keyword}" {self.amount("time", "times")}.'

    def met(self, answer: str) -> bool:
        return self.holds(count_word(answer, self.keyword))


class Forbidden(Constraint):
    kind: Literal["forbidden_words"] = "forbidden_words"
    keywords: list[str] = Field(min_length=1)
    gain: ClassVar[float] = LOOSE
    rules: ClassVar[frozenset[str]] = frozenset({"avoided"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls(keywords=rng.sample(AVOIDED, rng.randint(1, 3)))

    def words(self) -> str:
        return f"Do not use any of these words: {listed(self.keywords)}."

    def met(self, answer: str) -> bool:
        return not any(count_word(answer, each) for each in self.keywords)


class LetterFrequency(Counted):
    """The number of times that a letter comes, ignoring case. At most 0 times forbids it."""

    kind: Literal["letter_frequency"] = "letter_frequency"
    letter: str = Field(min_length=1, max_length=1)
    count: int = Field(ge=0)
    rules: ClassVar[frozenset[str]] = frozenset({"letters"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        if rng.random() < 0.5:
            return cls(letter=rng.choice(RARE), relation="at most", count=0)
        return cls(letter=rng.choice("bcgmpw"), relation="at least", count=rng.randint(2, 8))

    def words(self) -> str:
        if self.count == 0 and self.relation != "at least":
            return f'Do not use the letter "{self.letter}".'
        return f'Use the letter "{self.letter}" {self.amount("time", "times")}.'

    def met(self, answer: str) -> bool:
        return self.holds(answer.lower().count(self.letter.lower()))

    @property
    def worth(self) -> float:
        return HARDEST if self.count == 0 and self.relation != "at least" else super().worth


class Language(Constraint):
    """The language, told by its script: nine of ten letters are of it."""

    kind: Literal["language"] = "language"
    language: Literal["Russian", "Greek", "Arabic", "Hindi", "Korean"]
    rules: ClassVar[frozenset[str]] = frozenset({"keywords", "avoided", "letters", "case", "end", "blocks", "start"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls(language=rng.choice(("Russian", "Greek", "Arabic", "Hindi", "Korean")))

    def words(self) -> str:
        return f"Write the whole answer in {self.language}."

    def met(self, answer: str) -> bool:
        letters = [each for each in answer if each.isalpha()]
        own = sum(unicodedata.name(each, "").startswith(SCRIPTS[self.language]) for each in letters)
        return bool(letters) and own >= 0.9 * len(letters)


class Upper(Constraint):
    kind: Literal["upper_case"] = "upper_case"
    rules: ClassVar[frozenset[str]] = frozenset({"case"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls()

    def words(self) -> str:
        return "Write everything in capital letters."

    def met(self, answer: str) -> bool:
        return answer.isupper()


class Lower(Constraint):
    kind: Literal["lower_case"] = "lower_case"
    rules: ClassVar[frozenset[str]] = frozenset({"case"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls()

    def words(self) -> str:
        return "Write everything in lower case, without a single capital letter."

    def met(self, answer: str) -> bool:
        return answer.islower()


class CapitalWords(Counted):
    kind: Literal["capital_words"] = "capital_words"
    count: int = Field(ge=0)
    rules: ClassVar[frozenset[str]] = frozenset({"case"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls(relation=one_of(rng, "at least", "at most"), count=rng.randint(1, 5))

    def words(self) -> str:
        return f"Write {self.amount('word', 'words')} in all capital letters."

    def met(self, answer: str) -> bool:
        return self.holds(sum(word.isupper() for word in words_of(answer)))


class NoCommas(Constraint):
    kind: Literal["no_commas"] = "no_commas"
    gain: ClassVar[float] = LOOSE
    rules: ClassVar[frozenset[str]] = frozenset({"commas"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls()

    def words(self) -> str:
        return "Use no commas."

    def met(self, answer: str) -> bool:
        return not any(comma in answer for comma in ",，、،")
