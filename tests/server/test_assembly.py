"""Text is put together the same way whatever tokens it came in."""

from __future__ import annotations

import itertools
import time
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from waver.engines.base import Step
from waver.engines.tokens import TextStream, TokenText
from waver.server.assembly import StopStrings, TextAssembly


class Pieces(TokenText):
    """A vocabulary of the given byte strings."""

    def __init__(self, vocabulary: list[bytes]) -> None:
        self.vocabulary = vocabulary

    spelt = True

    def is_special(self, token: int) -> bool:
        return False

    def opening_bytes(self, token: int) -> bytes:
        return self.vocabulary[token]

    def token_bytes(self, token: int) -> bytes:
        return self.vocabulary[token]

    def stream(self) -> TextStream:
        return TextStream(self)


def assemble(parts: list[bytes], stops: list[str]) -> tuple[str, bytes, list[Any], bool]:
    assembly = TextAssembly(0, Pieces(parts), stops)
    pieces = []
    for token in range(len(parts)):
        pieces += assembly.push(Step(token, -1.0, 1.0, "small"))
        if assembly.stopped:
            break
    pieces += assembly.flush()
    data = b"".join(token.data for piece in pieces for token in piece.tokens)
    return "".join(piece.text for piece in pieces), data, pieces, assembly.stopped


@st.composite
def cut_up(draw: st.DrawFn) -> tuple[str, list[bytes], list[str]]:
    text = draw(st.text(alphabet="abé日🙂", min_size=1, max_size=30))
    data = text.encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=12)))
    edges = [0, *(cut for cut in cuts if cut < len(data)), len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(edges)]
    return text, parts, draw(st.lists(st.text(alphabet="abé日🙂", min_size=1, max_size=4), max_size=3))


@settings(max_examples=400, deadline=None)
@given(cut_up())
def test_trap_16_17_19_text_and_bytes_agree_and_stop_where_a_stop_string_begins(
    case: tuple[str, list[bytes], list[str]],
) -> None:
    text, parts, stops = case
    shown, data, pieces, stopped = assemble(parts, stops)
    # Reading character by character: the stop string that is complete first ends the text.
    expected = text
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            expected = text[: min(starts)]
            break
    assert shown == expected
    assert data.decode() == expected
    assert stopped == (expected != text or any(stop in text for stop in stops))
    offsets = [token.offset for piece in pieces for token in piece.tokens]
    assert offsets == sorted(offsets)


def test_what_no_stop_string_can_reach_is_shown_at_once() -> None:
    assembly = TextAssembly(0, Pieces([b"ab", b"c", b"xy", b"!"]), ["cd", "xyz"])
    shown = ["".join(p.text for p in assembly.push(Step(i, -1.0, 1.0, "small"))) for i in range(4)]
    assert shown == ["ab", "", "c", "xy!"]


def test_the_stop_string_that_is_complete_first_and_the_overlap() -> None:
    assert StopStrings(["c", "bc", "zz"]).push("abcabc") == (3, "bc")
    assert StopStrings([]).push("abc") is None
    known = StopStrings(["cde", "bcx"])
    assert known.push("abc") is None
    assert known.overlap == 2


@settings(max_examples=400, deadline=None)
@given(st.lists(st.text("ab", max_size=6), max_size=8), st.lists(st.text("ab", min_size=1, max_size=6), max_size=3))
def test_overlap_is_the_longest_end_that_a_stop_string_begins_with(parts: list[str], stops: list[str]) -> None:
    known, text = StopStrings(stops), ""
    for part in parts:
        text += part
        longest = max((k for s in stops for k in range(1, len(s)) if text.endswith(s[:k])), default=0)
        known.push(part)
        assert known.overlap == longest


def test_long_stop_strings_cost_little_a_token() -> None:
    stops = ["a" * 4095 + chr(ord("b") + i) for i in range(16)]
    parts = [b"aaaa"] * 1000
    began = time.process_time()
    assert assemble(parts, stops)[0] == "a" * 4000
    assert time.process_time() - began < 1
