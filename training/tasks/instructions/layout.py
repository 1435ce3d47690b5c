"""Constraints on the form of an answer: IFEval's families of format, content, combination, start and end."""

from __future__ import annotations

import json
import random
import re
from typing import ClassVar, Literal, Self

from pydantic import Field

from waver.training.tasks.instructions.base import LOOSE, Constraint, Counted, paragraphs_of, words_of

ENDINGS = ("That is all.", "Thank you for reading.", "Let me know if more is needed.")
CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
HIGHLIGHT = re.compile(r"\*[^\n*]+\*")
TITLE = re.compile(r"<<[^\n<>]+>>")
FENCE = re.compile(r"^```(?:json)?\n")
DIVIDER = "***"
SPLIT = "******"


class Paragraphs(Counted):
    """Paragraphs that `***` divides."""

    kind: Literal["paragraphs"] = "paragraphs"
    relation: Literal["exactly"] = "exactly"
    count: int = Field(ge=1)
    rules: ClassVar[frozenset[str]] = frozenset({"blocks", "stars"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls(count=rng.randint(2, 5))

    def words(self) -> str:
        return f"Write exactly {self.count} paragraphs, with a line {DIVIDER} between two of them."

    def met(self, answer: str) -> bool:
        parts = [part.strip() for part in answer.split(DIVIDER)]
        return len(parts) == self.count and all(parts)


class ParagraphStart(Constraint):
    """A number of paragraphs between empty lines, and the first word of one of them."""

    kind: Literal["paragraph_start"] = "paragraph_start"
    count: int = Field(ge=1)
    place: int = Field(ge=1)
    keyword: str = Field(min_length=1)
    rules: ClassVar[frozenset[str]] = frozenset({"blocks"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        count = rng.randint(2, 4)
        return cls(count=count, place=rng.randint(1, count), keyword=rng.choice(("Finally", "Today", "Often", "Here")))

    def words(self) -> str:
        return (
            f"Write exactly {self.count} paragraphs with an empty line between them; paragraph {self.place} begins "
            f'with the word "{self.keyword}".'
        )

    def met(self, answer: str) -> bool:
        parts = paragraphs_of(answer)
        if len(parts) != self.count or self.place > self.count:
            return False
        begins = words_of(parts[self.place - 1])
        return bool(begins) and begins[0].lower() == self.keyword.lower()


class Bullets(Counted):
    kind: Literal["bullets"] = "bullets"
    count: int = Field(ge=1)
    rules: ClassVar[frozenset[str]] = frozenset({"blocks"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls(relation="exactly", count=rng.randint(2, 5))

    def words(self) -> str:
        return f"Give {self.amount('bullet point', 'bullet points')}, each a line that begins with * or -."

    def met(self, answer: str) -> bool:
        return self.holds(sum(line.lstrip().startswith(("* ", "- ")) for line in answer.splitlines()))


class Sections(Counted):
    """Sections with headings such as "Section 1"."""

    kind: Literal["sections"] = "sections"
    heading: str = Field("Section", min_length=1)
    count: int = Field(ge=1)
    rules: ClassVar[frozenset[str]] = frozenset({"blocks"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls(heading=rng.choice(("Section", "Part", "Day")), relation="exactly", count=rng.randint(2, 4))

    def words(self) -> str:
        return f'Write {self.amount("section", "sections")}; begin each with "{self.heading} 1" and so on.'

    def met(self, answer: str) -> bool:
        begins = f"{self.heading.lower()} "
        lines = (line.lstrip("#* \t").lower() for line in answer.splitlines())
        return self.holds(sum(line.startswith(begins) and line[len(begins) :][:1].isdigit() for line in lines))


class Placeholders(Counted):
    kind: Literal["placeholders"] = "placeholders"
    count: int = Field(ge=1)
    rules: ClassVar[frozenset[str]] = frozenset({"brackets"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls(relation="at least", count=rng.randint(1, 3))

    def words(self) -> str:
        return f"Leave {self.amount('placeholder', 'placeholders')} in square brackets, such as [address]."

    def met(self, answer: str) -> bool:
        return self.holds(len(PLACEHOLDER.findall(answer)))


class Highlights(Counted):
    kind: Literal["highlights"] = "highlights"
    count: int = Field(ge=1)
    rules: ClassVar[frozenset[str]] = frozenset({"stars"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls(relation="at least", count=rng.randint(1, 3))

    def words(self) -> str:
        return f"Highlight {self.amount('part', 'parts')} with asterisks, such as *this one*."

    def met(self, answer: str) -> bool:
        return self.holds(sum(bool(each.strip("* ")) for each in HIGHLIGHT.findall(answer)))


class Title(Constraint):
    kind: Literal["title"] = "title"
    gain: ClassVar[float] = LOOSE
    rules: ClassVar[frozenset[str]] = frozenset({"title"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls()

    def words(self) -> str:
        return "Give a title in double angular brackets, such as <<a title>>."

    def met(self, answer: str) -> bool:
        return any(each.strip("<> ") for each in TITLE.findall(answer))


class Json(Constraint):
    kind: Literal["json"] = "json"
    rules: ClassVar[frozenset[str]] = frozenset({"blocks", "start", "end", "commas", "stars", "case", "title"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls()

    def words(self) -> str:
        return "Write the whole answer as JSON, with nothing around it."

    def met(self, answer: str) -> bool:
        plain = FENCE.sub("", answer.strip())
        try:
            json.loads(plain.removesuffix("```"))
        except (ValueError, RecursionError):
            return False
        return True


class Choice(Constraint):
    kind: Literal["choice"] = "choice"
    options: list[str] = Field(list(CHOICES), min_length=1)
    rules: ClassVar[frozenset[str]] = frozenset({"length", "keywords", "blocks", "letters", "case", "start", "end"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls()

    def words(self) -> str:
        return "Say one of these: " + " / ".join(f'"{each}"' for each in self.options)

    def met(self, answer: str) -> bool:
        return sum(each in answer for each in self.options) == 1


class Postscript(Constraint):
    kind: Literal["postscript"] = "postscript"
    rules: ClassVar[frozenset[str]] = frozenset({"end"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls()

    def words(self) -> str:
        return "Close with a postscript, a line that begins with P.S."

    def met(self, answer: str) -> bool:
        return any(line.strip().lower().startswith("p.s.") and line.strip()[4:] for line in answer.splitlines())


class Ending(Constraint):
    kind: Literal["ending"] = "ending"
    phrase: str = Field(min_length=1)
    rules: ClassVar[frozenset[str]] = frozenset({"end"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls(phrase=rng.choice(ENDINGS))

    def words(self) -> str:
        return f'End with exactly these words, and nothing behind them: "{self.phrase}"'

    def met(self, answer: str) -> bool:
        return answer.strip().strip('"').lower().endswith(self.phrase.strip().lower())


class Quotation(Constraint):
    kind: Literal["quotation"] = "quotation"
    rules: ClassVar[frozenset[str]] = frozenset({"start", "end"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls()

    def words(self) -> str:
        return "Put the whole answer into double quotation marks."

    def met(self, answer: str) -> bool:
        plain = answer.strip()
        return len(plain) > 1 and plain.startswith('"') and plain.endswith('"')


class Repeat(Constraint):
    kind: Literal["repeat"] = "repeat"
    phrase: str = Field(min_length=1)
    rules: ClassVar[frozenset[str]] = frozenset({"start", "length", "letters", "avoided", "blocks", "commas", "case"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls(phrase=request)

    def words(self) -> str:
        return "First repeat the request above word for word, without these rules, then answer it."

    def met(self, answer: str) -> bool:
        said = answer.strip().lower()
        return said.startswith(self.phrase.strip().lower()) and len(said) > len(self.phrase.strip())


class TwoAnswers(Constraint):
    kind: Literal["two_answers"] = "two_answers"
    rules: ClassVar[frozenset[str]] = frozenset({"blocks", "stars", "length", "start", "end"})

    @classmethod
    def draw(cls, rng: random.Random, request: str) -> Self:
        return cls()

    def words(self) -> str:
        return f"Give two different answers, divided by six asterisks: {SPLIT}"

    def met(self, answer: str) -> bool:
        parts = [part.strip() for part in answer.split(SPLIT)]
        return len(parts) == 2 and all(parts) and parts[0] != parts[1]
