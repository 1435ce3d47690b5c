"""Define one memory, and its form outside of the store: a JSON object, one to a line of an export."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from waver.retrieval.base import BadDocument
from waver.retrieval.words import words

FORMAT = 1
"""Version of the exported form."""
OUTSIDE = ("object", "format", "id", "created", "archived_by", "score")
"""Keys of an export that are not the unit's."""
MOST_CONTENT, MOST_WORD, MOST_WORDS, MOST_SOURCES = 2048, 128, 64, 256


def in_utc(time: datetime) -> datetime:
    """Return a moment in UTC; without a time zone it is taken for that.

    Raises:
        ValueError: UTC has no such year.
    """
    try:
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        raise ValueError("the time is out of range") from None


def exact(clock: Callable[[], float]) -> Callable[[], float]:
    """Return a clock (seconds since 1970) whose times stay what they are when they are written in ISO 8601 and read."""
    return lambda: datetime.fromtimestamp(clock(), UTC).timestamp()


def encodable(text: str) -> str:
    """Return a text that can be written as UTF-8.

    Raises:
        ValueError: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the string holds half of a surrogate pair, which is not valid Unicode") from None
    return text


Time = Annotated[datetime, AfterValidator(in_utc)]
"""A moment; without a time zone it is taken for UTC."""
Word = Annotated[str, Field(max_length=MOST_WORD), AfterValidator(encodable)]
Words = Annotated[tuple[Word, ...], Field(max_length=MOST_WORDS)]


class Unit(BaseModel):
    """A self-contained sentence in three views: its `content` (a vector), its words (BM25 over content and keywords),
    and the symbolic fields.

    `abstract`: it stands for `count` memories between `time` and `until`, which it has archived.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    content: Annotated[str, Field(min_length=1, max_length=MOST_CONTENT), AfterValidator(encodable)]
    keywords: Words = ()
    time: Time | None = None
    until: Time | None = None
    location: Word | None = None
    persons: Words = ()
    entities: Words = ()
    topic: Word = ""
    salience: Literal["low", "medium", "high"] = "medium"
    sources: Annotated[tuple[Word, ...], Field(max_length=MOST_SOURCES)] = ()
    abstract: bool = False
    count: int = Field(default=1, ge=1)

    @property
    def lexical(self) -> list[str]:
        """Return the words of its lexical view."""
        return words(" ".join((self.content, *self.keywords)))

    @property
    def digest(self) -> str:
        """Return what two memories of the same words have in common."""
        return hashlib.sha256(" ".join(words(self.content)).encode() or self.content.encode()).hexdigest()


class Memory(BaseModel):
    """A unit in a store: its id, when it was remembered, and the abstract that archived it, if one did."""

    model_config = ConfigDict(frozen=True)

    id: int
    created: Time
    unit: Unit
    archived_by: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON object of an export."""
        own = self.unit.model_dump(mode="json", exclude_defaults=True)
        out = {"object": "memory", "format": FORMAT, "id": self.id, "created": self.created.isoformat(), **own}
        return out if self.archived_by is None else out | {"archived_by": self.archived_by}


def read_unit(data: Any) -> Unit:
    """Read the JSON object of an export, or one written by hand: its `content`, and what else is known.

    Raises:
        BadDocument: it is none.
    """
    if not isinstance(data, Mapping):
        raise BadDocument("A memory is a JSON object with a 'content'.")
    if data.get("object", "memory") != "memory" or data.get("format", FORMAT) != FORMAT:
        raise BadDocument(f"This is no memory of format {FORMAT}.")
    kept = {key: value for key, value in data.items() if key not in OUTSIDE}
    try:
        return Unit.model_validate_json(json.dumps(kept), strict=False)
    except ValidationError as error:
        raise BadDocument(f"A memory cannot be kept: {sentence(error)}.") from None


def sentence(error: ValidationError) -> str:
    """Return the place and the words of the first complaint."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part)[:64] for part in first["loc"])
    return f"{place}: {first['msg']}"
