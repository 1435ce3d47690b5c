"""The think block at the beginning of a text, in every split of it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waver.server.message.thinking import ThinkBlock


def split(*pieces: str, opened: bool = False) -> tuple[str, str]:
    block = ThinkBlock(opened)
    found = [*(block.push(piece) for piece in pieces), block.finish()]
    return "".join(one for one, _ in found), "".join(other for _, other in found)


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nwell \n</think>\n\nhello", False, ("well", "hello")),
        ("well\n</think>\n\nhello", True, ("well", "hello")),
        ("<think>well</think>hello", True, ("well", "hello")),
        ("\n<think></think>  code", False, ("", "  code")),
        ("no block", False, ("", "no block")),
        (" a <think>b</think>", False, ("", " a <think>b</think>")),
        ("<think> <think>twice</think>", True, ("<think>twice", "")),
        ("<think>never closed", False, ("never closed", "")),
        ("never closed", True, ("never closed", "")),
        ("<thi", False, ("", "<thi")),
        ("a</think>b", False, ("", "a</think>b")),
        ("", True, ("", "")),
    ],
)
def test_what_is_reasoning(text: str, opened: bool, expected: tuple[str, str]) -> None:
    assert split(text, opened=opened) == split(*text, opened=opened) == expected


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<thi", "</", "a", "b c", " ", "\n", "é"]), max_size=8),
    st.lists(st.integers(0, 40), max_size=5),
    st.booleans(),
)
def test_no_split_changes_it(words: list[str], cuts: list[int], opened: bool) -> None:
    text = "".join(words)
    edges = sorted(min(cut, len(text)) for cut in cuts)
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *edges, len(text)])]
    assert split(*pieces, opened=opened) == split(text, opened=opened)
    for word in ("a", "b c", "é"):
        assert sum(part.count(word) for part in split(text, opened=opened)) == text.count(word)


def test_it_is_passed_on_while_it_is_written() -> None:
    block = ThinkBlock()
    assert block.push("<think>I see") == ("I see", "")
    assert block.inside
    assert block.push(" a < b") == (" a < b", "")
    assert block.push("</th") == ("", "")
    assert block.push("ink>") == ("", "")
    assert not block.inside
    assert block.push("so") == ("", "so")
