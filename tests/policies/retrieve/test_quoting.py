"""Whatever a passage says, it stays a quotation: on one line, behind its number, in plain characters."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policies.injections import INJECTIONS
from waver.policies.retrieve.quoting import INSTRUCTION, one_line, quoted

LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def check(lines: list[str], text: str) -> None:
    """That a quotation has exactly these lines, and nothing else."""
    head, body, rest = text.split("\n\n", 2)
    assert head == INSTRUCTION
    assert rest == ""
    shown = body.split("\n")
    assert len(shown) == len(lines)
    for i, (line, original) in enumerate(zip(shown, lines, strict=True), 1):
        assert line.startswith(f"[{i}] ")
        assert not set(LINE_BREAKS) & set(line)
        # Nothing is lost but white space and what nobody can see.
        assert re.sub(r"\W", "", line.removeprefix(f"[{i}] ")) == re.sub(r"\W", "", one_line(original))


def test_there_are_enough_attempts() -> None:
    assert len(INJECTIONS) >= 30
    assert len(set(INJECTIONS)) == len(INJECTIONS)


@pytest.mark.parametrize("attempt", INJECTIONS, ids=range(len(INJECTIONS)))
def test_an_order_is_quoted(attempt: str) -> None:
    check(
        ["The river is the Sorn.", attempt, "Its bird is the heron."],
        quoted(["The river is the Sorn.", attempt, "Its bird is the heron."], INSTRUCTION),
    )


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=200), min_size=1, max_size=5))
def test_any_text_is_quoted(lines: list[str]) -> None:
    check(lines, quoted(lines, INSTRUCTION))


def test_nothing_is_nothing() -> None:
    assert quoted([], INSTRUCTION) == ""
    assert quoted(["a"], "") == "[1] a\n\n"


def test_what_scripts_need_stays() -> None:
    assert one_line("می\u200cخواهم  naïve\tcafé 👩\u200d🚀") == "می\u200cخواهم naïve café 👩\u200d🚀"
    assert one_line("a\u202eb\U000e0041c\x00d\u200be") == "abcde"
