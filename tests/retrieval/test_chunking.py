"""Chunks: nothing is lost, none is too long, and they end where sentences do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waver.retrieval.chunking import BLOCK, Offsets, chunks, lead, pieces, token_spans
from waver.retrieval.embedder import Embedder


class Words:
    """One token for each word, one for each other visible character."""

    def offsets(self, texts: Sequence[str]) -> list[Offsets]:
        return [
            np.array([m.span() for m in re.finditer(r"\w+|[^\w\s]", text)], np.int64).reshape(-1, 2) for text in texts
        ]


texts = st.lists(
    st.sampled_from(["The river ", "flows. ", "Dr. Who? ", "Yes!\n", "\n\n", "word ", "3.5 km. ", "naïve ", "日本。"])
).map("".join)


@given(texts, st.integers(8, 40), st.floats(0, 0.5))
@settings(max_examples=300, deadline=None)
def test_all_of_a_text_in_order_and_within_bounds(text: str, most: int, share: float) -> None:
    overlap = int(most * share)
    found = list(pieces(text, Words(), most, overlap))
    covered = np.zeros(len(text), bool)
    for piece in found:
        assert 0 < piece.tokens <= most
        assert len(Words().offsets([text[piece.start : piece.end]])[0]) == piece.tokens
        covered[piece.start : piece.end] = True
    assert not "".join(c for c, there in zip(text, covered, strict=True) if not there).strip()
    starts, ends = [p.start for p in found], [p.end for p in found]
    assert starts == sorted(set(starts))
    assert ends == sorted(set(ends))
    for one, two in pairwise(found):
        shared = text[two.start : one.end] if two.start < one.end else ""
        assert len(Words().offsets([shared])[0]) <= overlap


def test_ends_at_paragraphs_then_sentences_then_words() -> None:
    sentences = "One two three four five. " * 3
    assert next(chunks(sentences + "\n\n" + "Next " * 30, Words(), 20, 0)) == sentences.strip()
    assert next(chunks("One two three four five. " * 9, Words(), 20, 0)) == "One two three four five. " * 2 + (
        "One two three four five."
    )
    assert all(re.fullmatch(r"(word ?)+", chunk) for chunk in chunks("word " * 90, Words(), 20, 5))


def test_abbreviations_and_numbers_do_not_end_a_sentence() -> None:
    text = "Dr. Smith saw 3.5 km of it, e.g. in spring. Then he left. And that was all of it."
    assert lead(text, Words()) == "Dr. Smith saw 3.5 km of it, e.g. in spring. Then he left."
    assert lead("word " * 500, Words(), most=10) == "word " * 9 + "word"
    assert lead("", Words()) == ""


def test_a_word_longer_than_a_chunk_is_cut(embedder: Embedder) -> None:
    for word, many in (("x7" * 40, 3), ("x7" * 4000, 50), ("日本" * 200, 20)):
        found = list(chunks(word, embedder, 16, 4))
        assert len(found) >= many
        assert max(embedder.count(found)) <= 32  # of a word that is unknown as a whole, tokens are guessed
        assert max(map(len, found)) <= 128


def test_the_embedders_tokens(embedder: Embedder) -> None:
    text = "The Arn is 412 km long, says Dr. Ålund! Velmora's naïve cartographers (1921) disagreed… " * 60
    found = list(chunks(text, embedder, 128, 32))
    assert max(embedder.count(found)) <= 128
    assert min(embedder.count(found[:-1])) >= 64
    assert all(chunk.endswith(("!", "…")) for chunk in found)


def test_blocks_change_nothing(embedder: Embedder) -> None:
    text = "The Arn flows north through Velmora. " * (3 * BLOCK // 37)
    whole = embedder.offsets([text])[0]
    assert np.array_equal(token_spans(text, embedder), whole)


@pytest.mark.parametrize(("most", "overlap"), [(10, 6), (10, -1)])
def test_an_overlap_leaves_room(most: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="half a chunk"):
        list(pieces("a b", Words(), most, overlap))


@pytest.mark.parametrize("before", ["", "Some words stand before it. " * 4 + "\n\n"])
def test_rows_of_tables_are_not_cut(before: str) -> None:
    rows = [f"| Name: person {i}. And so on! | Text: {'word ' * (i % 7)}. |" for i in range(60)]
    found = list(chunks(before + "\n".join(rows) + "\n\nThe end.", Words(), 40, 12))
    assert len(found) > 20
    for chunk in found:
        for line in chunk.splitlines():
            assert line in rows or not line.startswith("| ")
            assert "person" not in line or line in rows
    assert {line for chunk in found for line in chunk.splitlines()} >= set(rows)
    long = "| a: " + "word " * 100 + "|"
    assert {"| b: 1 |", "| c: 2 |"} <= {
        line for chunk in chunks(f"| b: 1 |\n{long}\n| c: 2 |", Words(), 30, 0) for line in chunk.splitlines()
    }


def test_a_chunk_keeps_the_indentation_of_its_first_line() -> None:
    code = "\n".join(f"    call({i})" for i in range(100))
    for chunk in chunks(f"def f():\n{code}", Words(), 40, 8):
        assert all(line.startswith(("    ", "def")) for line in chunk.splitlines())
