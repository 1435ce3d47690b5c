"""Define an episode: one whole conversation, stored at four grains (MemGAS, arXiv 2505.19549).

The grains are its full text, its turns, a summary and keywords. A turn is an exchange: two utterances after another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from waver.retrieval.base import BadDocument, Vectors
from waver.retrieval.memory.turns import MOST_TEXT
from waver.retrieval.memory.unit import MOST_WORD, Time, encodable, sentence

FORMAT = 1
"""Version of the exported form."""
GRAINS = ("episode", "turn", "summary", "keyword")
OUTSIDE = ("object", "format", "id", "created", "updated", "score")
"""Keys of an export that are not the episode's."""
MOST_TURNS = 512
MOST_NOTE = 8192
"""Characters of a summary, and of keywords."""
PIECE = 1000
"""Characters of a text that the embedder reads at a time; a longer text has the mean direction of its pieces."""


class Utterance(BaseModel):
    """Something that one side said; `source` names it for whoever brought it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    speaker: Annotated[str, Field(min_length=1, max_length=MOST_WORD), AfterValidator(encodable)]
    text: Annotated[str, Field(min_length=1, max_length=MOST_TEXT), AfterValidator(encodable)]
    source: Annotated[str, Field(max_length=MOST_WORD), AfterValidator(encodable)] = ""

    @property
    def line(self) -> str:
        return f"{self.speaker}: {self.text}"


class Episode(BaseModel):
    """A conversation, from `time` to `until`, with what an engine made of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    turns: Annotated[tuple[Utterance, ...], Field(min_length=1, max_length=MOST_TURNS)]
    summary: Annotated[str, Field(max_length=MOST_NOTE), AfterValidator(encodable)] = ""
    keywords: Annotated[str, Field(max_length=MOST_NOTE), AfterValidator(encodable)] = ""
    time: Time | None = None
    until: Time | None = None

    @property
    def text(self) -> str:
        """Return the whole conversation, an utterance a line."""
        return "\n".join(each.line for each in self.turns)

    @property
    def exchanges(self) -> list[str]:
        """Return the utterances two by two."""
        lines = [each.line for each in self.turns]
        return ["\n".join(lines[i : i + 2]) for i in range(0, len(lines), 2)]

    @property
    def head(self) -> str:
        """Return a short line about it: its summary, or how it begins."""
        return " ".join((self.summary or self.turns[0].line).split())[:200]

    @property
    def digest(self) -> str:
        """Return what two episodes of the same words have in common."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Kept(BaseModel):
    """An episode in a store: its id, when it was first and last written, and the links `(own grain, episode, grain)`
    that it made with others."""

    model_config = ConfigDict(frozen=True)

    id: int
    created: Time
    updated: Time
    episode: Episode
    links: tuple[tuple[int, int, int], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON object of an export."""
        own = self.episode.model_dump(mode="json", exclude_defaults=True)
        stamps = {"created": self.created.isoformat(), "updated": self.updated.isoformat()}
        return {"object": "episode", "format": FORMAT, "id": self.id, **stamps, **own}


def read_episode(data: Any) -> Episode:
    """Read the JSON object of an export, or one written by hand: its `turns`, and what else is known.

    Raises:
        BadDocument: it is none.
    """
    if not isinstance(data, Mapping) or data.get("object") != "episode" or data.get("format", FORMAT) != FORMAT:
        raise BadDocument(f"This is no episode of format {FORMAT}.")
    kept = {key: value for key, value in data.items() if key not in OUTSIDE}
    try:
        return Episode.model_validate_json(json.dumps(kept), strict=False)
    except ValidationError as error:
        raise BadDocument(f"An episode cannot be kept: {sentence(error)}.") from None


def grains(episodes: Sequence[Episode], embed: Callable[[Sequence[str]], Vectors]) -> Vectors:
    """Compute the vectors of episodes at each grain, `[episodes, 4, dimension]`.

    That of the turns is the mean of theirs, as in the paper; those of the text, the summary and the keywords are unit
    vectors, or zero where there is no text.

    Args:
        embed: makes unit vectors `[texts, dimension]`.
    """
    texts: list[str] = []
    places: list[tuple[int, int, bool, int, int]] = []
    for i, each in enumerate(episodes):
        for grain, parts in enumerate((pieces(each.text), each.exchanges, pieces(each.summary), pieces(each.keywords))):
            places.append((i, grain, grain == GRAINS.index("turn"), len(texts), len(texts) + len(parts)))
            texts += parts
    vectors = embed(texts)
    out = np.zeros((len(episodes), len(GRAINS), vectors.shape[1]), np.float32)
    for i, grain, mean, begin, end in places:
        if begin == end:
            continue
        middle = vectors[begin:end].mean(axis=0)
        out[i, grain] = middle if mean else middle / max(float(np.linalg.norm(middle)), 1e-12)
    return out


def pieces(text: str) -> list[str]:
    """Cut a text where the embedder would stop reading."""
    return [text[i : i + PIECE] for i in range(0, len(text), PIECE) if text[i : i + PIECE].strip()]
