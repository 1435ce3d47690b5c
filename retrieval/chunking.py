"""Texts to chunks of at most so many tokens, cut where paragraphs or sentences end wherever that can be.

The rows of tables (lines that begin with `waver.retrieval.tables.MARK`) are cut only where one is longer than a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from waver.retrieval.scanning import windows
from waver.retrieval.tables import MARK

Offsets = npt.NDArray[np.int64]

BLOCK = 16_384
"""Characters that are tokenised at once: a long text is tokenised in pieces."""
SOME = 2**16
"""Numbers that are copied from a list at once: the interpreter's lock is held meanwhile."""
_PARAGRAPH = re.compile(r"\n\s*\n\s*")
# Each alternative begins where a run of marks begins and gives nothing of it back, so that a run is read once.
_SENTENCE = re.compile(
    r"(?<![.!?…。！？])[.!?…。！？]++[\"'”’»)\]]*+\s++"
    r"|(?<![.!?…。！？])(?:[.!?…]*+[。！？])++"
    r"|\n++\s*+"
)
_ABBREVIATION = re.compile(r"(?:\b(?:[A-Za-z]|Dr|Mr|Mrs|Ms|Prof|St|No|vs|etc|e\.g|i\.e|cf|Fig|Eq|approx))\.\s*$")
LONG, PART = 64, 2
"""Characters of a span that counts as several tokens, and of each of these: rather too many tokens than too few."""
BROKEN_EARLY = 0.5
"""A chunk may end at a sentence's end once it is so full."""
INDENTED = 256
"""Characters before a chunk's first word that may be its line's indentation."""
PARAGRAPH_EARLY = 0.75
"""And at a paragraph's end rather than a later sentence's once it is so full."""


class Tokens(Protocol):
    """The part of a tokenizer that chunking needs."""

    def offsets(self, texts: Sequence[str]) -> list[Offsets]:
        """Return for each text the first and past-the-last character of its tokens, `[tokens, 2]`."""


@dataclass(frozen=True)
class Piece:
    """A chunk as the characters `start` to `end` of its text, and its length in tokens."""

    start: int
    end: int
    tokens: int


def chunks(text: str, tokens: Tokens, most: int, overlap: int) -> Iterator[str]:
    """Yield the chunks of a text, in order. Each but the first begins with about `overlap` tokens of the one before
    it."""
    for piece in pieces(text, tokens, most, overlap):
        yield text[piece.start : piece.end]


def pieces(text: str, tokens: Tokens, most: int, overlap: int) -> Iterator[Piece]:
    """Yield the chunks of a text as character ranges.

    Raises:
        ValueError: the overlap is not below half a chunk.
    """
    if not 0 <= overlap <= most // 2:
        raise ValueError(f"The overlap of {overlap} tokens should be at most half a chunk of {most} tokens.")
    spans = token_spans(text, tokens)
    if not len(spans):
        return
    starts = np.ascontiguousarray(spans[:, 0])
    # Tokens before which a text may be cut: the first of a paragraph, of a sentence, of a word.
    paragraphs = _first_tokens(starts, _ends(_PARAGRAPH, text))
    sentences = _merged(paragraphs, _first_tokens(starts, sentence_starts(text)))
    words = np.flatnonzero(np.r_[True, starts[1:] > spans[:-1, 1]])
    anywhere = words
    inside = _inside_rows(text, starts)
    if inside.any():
        paragraphs, sentences, words = (cuts[~inside[cuts]] for cuts in (paragraphs, sentences, words))
    n, begin = len(spans), 0
    while True:
        end = begin + most
        if end >= n:
            yield Piece(_indented(text, int(starts[begin])), int(spans[-1, 1]), n - begin)
            return
        end = (
            _last(paragraphs, begin + int(most * PARAGRAPH_EARLY), end)
            or _last(sentences, begin + int(most * BROKEN_EARLY), end)
            or _last(words, begin + most // 2, end)
            or (_last(words, begin, end) if inside.any() else 0)
            or _last(anywhere, begin + most // 2, end)
            or end
        )
        yield Piece(_indented(text, int(starts[begin])), int(spans[end - 1, 1]), end - begin)
        back = max(end - overlap, begin + 1)
        begin = _first(sentences, back, end) or _first(words, back, end) or end


def _inside_rows(text: str, starts: Offsets) -> npt.NDArray[np.bool_]:
    """Tell which tokens `[tokens]` stand in a row of a table behind its first one."""
    edges = np.zeros(len(starts) + 1, np.int64)
    place = 0 if text.startswith(MARK) else text.find(f"\n{MARK}") + 1 or -1
    while place >= 0:
        end = text.find("\n", place)
        first, last = np.searchsorted(starts, (place, end if end >= 0 else len(text)))
        if last > first + 1:
            edges[first + 1] += 1
            edges[last] -= 1
        place = text.find(f"\n{MARK}", end) + 1 or -1 if end >= 0 else -1
    return np.cumsum(edges)[:-1] > 0


def _indented(text: str, start: int) -> int:
    """Return where a chunk begins: with its line's indentation, if the word at `start` is a line's first."""
    line = text.rfind("\n", max(start - INDENTED, 0), start) + 1
    return line if (line or start <= INDENTED) and text[line:start].isspace() else start


def sentence_starts(text: str) -> list[int]:
    """Return the characters at which sentences begin, except the first."""
    return [
        match.end()
        for start, end in windows(text)
        for match in _SENTENCE.finditer(text, start, end)
        if not _ABBREVIATION.search(text, max(0, match.start() - 8), match.end())
    ]


def _ends(pattern: re.Pattern[str], text: str) -> list[int]:
    return [match.end() for start, end in windows(text) for match in pattern.finditer(text, start, end)]


def lead(text: str, tokens: Tokens, sentences: int = 2, most: int = 64) -> str:
    """Return the first sentences of a text, at most `most` tokens of them."""
    opening = text[: 64 * most]
    cuts = [*sentence_starts(opening), len(opening)]
    opening = opening[: cuts[min(sentences, len(cuts)) - 1]].strip()
    return " ".join(shortened(opening, tokens, most).split())


def shortened(text: str, tokens: Tokens, most: int) -> str:
    """Return the first `most` tokens of a text."""
    spans = tokens.offsets([text])[0]
    return text if len(spans) <= most else text[: int(spans[most - 1, 1])]


def headed(title: str, chunk: str) -> str:
    """Return a chunk as it is embedded and looked for: after its document's title, unless it begins with that."""
    return chunk if not title or chunk.startswith(title) else f"{title}\n{chunk}"


def token_spans(text: str, tokens: Tokens) -> Offsets:
    """Return the character ranges of all tokens of a text, `[tokens, 2]`, without tokens that have no characters."""
    blocks = list(_blocks(text))
    found = tokens.offsets([text[start:end] for start, end in blocks])
    spans = [span[span[:, 1] > span[:, 0]] + start for (start, _), span in zip(blocks, found, strict=True)]
    return _split_long(np.concatenate(spans)) if spans else np.zeros((0, 2), np.int64)


def _split_long(spans: Offsets) -> Offsets:
    """Split spans of more than `LONG` characters, to count as several tokens: some tokenizers make one unknown token of
    a very long word."""
    lengths = spans[:, 1] - spans[:, 0]
    parts = np.where(lengths > LONG, -(-lengths // PART), 1)
    if (parts == 1).all():
        return spans
    first = np.repeat(np.cumsum(parts) - parts, parts)
    starts = np.repeat(spans[:, 0], parts) + PART * (np.arange(parts.sum()) - first)
    return np.stack(
        [
            starts,
            np.minimum(
                np.where(np.repeat(parts, parts) > 1, starts + PART, np.iinfo(np.int64).max),
                np.repeat(spans[:, 1], parts),
            ),
        ],
        axis=1,
    )


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Yield the ranges of blocks of at most `BLOCK` characters, cut at white space if there is any."""
    start = 0
    while start < len(text):
        end = min(start + BLOCK, len(text))
        if end < len(text):
            cut = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
            end = cut if cut > start else end
        yield start, end
        start = end


def _first_tokens(starts: Offsets, characters: Sequence[int]) -> Offsets:
    """Return for each character the first token that begins there or later."""
    some = [np.array(characters[i : i + SOME], np.int64) for i in range(0, len(characters), SOME)]
    found = _distinct(np.searchsorted(starts, np.concatenate(some))) if some else np.zeros(0, np.int64)
    return found[found < len(starts)]


def _merged(first: Offsets, second: Offsets) -> Offsets:
    """Return the numbers of two sorted lists, in order, each once."""
    return _distinct(np.sort(np.concatenate([first, second]), kind="stable"))


def _distinct(places: Offsets) -> Offsets:
    """Return sorted numbers without those that come again. `np.unique` keeps the interpreter's lock while it counts: a
    quarter of a second for a text of 8 MB, in which every stream stands still."""
    return places[np.r_[True, places[1:] != places[:-1]]] if len(places) else places


def _last(cuts: Offsets, low: int, high: int) -> int:
    """Return the last of the sorted cuts in `(low, high]`, or 0."""
    i = int(np.searchsorted(cuts, high, side="right")) - 1
    return int(cuts[i]) if i >= 0 and cuts[i] > low else 0


def _first(cuts: Offsets, low: int, high: int) -> int:
    """Return the first of the sorted cuts in `[low, high)`, or 0."""
    i = int(np.searchsorted(cuts, low))
    return int(cuts[i]) if i < len(cuts) and cuts[i] < high else 0
