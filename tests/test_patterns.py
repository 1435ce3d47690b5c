"""Every regular expression of the product reads hostile text in linear time.

The patterns are found in the source, so a new one is tested as soon as it is written. Each is held against long repeats
of what it is made of: its own characters and words, alone and in pairs, with and without something that fits nothing at
the end.
"""

from __future__ import annotations

import ast
import re
import signal
import time
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from waver.retrieval.chunking import sentence_starts
from waver.retrieval.formats import clean
from waver.retrieval.scanning import windows

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from re import _constants as code  # type: ignore[attr-defined]
    from re import _parser as parser

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("server", "engines", "retrieval", "policies", "clients", "training", "entropy", "waver/cli")
FUNCTIONS = {"compile", "search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn"}
LENGTH = 12_000
SECONDS = 0.08
"""Of CPU time for a text of `LENGTH` characters: linear patterns take a few milliseconds, quadratic ones seconds."""
MOST_ATOMS = 9


def patterns() -> Iterator[tuple[str, str | bytes, int]]:
    """Yield the place of each pattern of the product, the pattern, and its flags; interpolated parts become a word."""
    for package in PRODUCT:
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield from found(node, f"{file.relative_to(ROOT)}:{node.lineno}")


def found(call: ast.Call, place: str) -> Iterator[tuple[str, str | bytes, int]]:
    function = call.func
    if (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "re"
        and function.attr in FUNCTIONS
    ):
        flags = 0
        for each in [*call.args[1:], *(keyword.value for keyword in call.keywords if keyword.arg == "flags")]:
            for name in (node.attr for node in ast.walk(each) if isinstance(node, ast.Attribute)):
                flags |= getattr(re, name, 0) if name.isupper() else 0
        yield place, literal(call.args[0], place), flags
    for keyword in call.keywords:
        if keyword.arg == "pattern" and isinstance(keyword.value, ast.Constant):
            yield place, literal(keyword.value, place), 0


def literal(node: ast.expr, place: str) -> str | bytes:
    match node:
        case ast.Constant(value=(str() | bytes()) as value):
            return value
        case ast.JoinedStr(values=values):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "word" for part in values)
        case ast.BinOp(left=left, right=right):
            return str(literal(left, place)) + str(literal(right, place))
        case ast.Call() | ast.Name():
            return "word"
    raise AssertionError(f"{place}: a pattern that this test cannot read")


PATTERNS = list(patterns())


def atoms(pattern: str | bytes, flags: int) -> list[str]:
    """The words, and one or two of the characters of every class, that a pattern is made of."""
    return list(dict.fromkeys(["a", "1", " ", "\n", *walk(parser.parse(pattern, flags))]))[:MOST_ATOMS]


def walk(items: Any) -> Iterator[str]:
    """The words and characters of a parsed pattern, in their order."""
    word = ""
    for op, argument in [*items, (None, None)]:
        if op is code.LITERAL:
            word += chr(argument)
            continue
        if word:
            yield from (word, word[0])
            word = ""
        yield from members(argument) if op is code.IN else inside(argument)


def members(characters: Any) -> Iterator[str]:
    """One character of each part of a class."""
    for kind, value in characters:
        if kind is code.LITERAL:
            yield chr(value)
        elif kind is code.RANGE:
            yield chr(value[0])
        elif kind is code.CATEGORY:
            yield next((c for name, c in (("SPACE", " "), ("DIGIT", "1"), ("WORD", "a")) if name in str(value)), "a")


def inside(argument: Any) -> Iterator[str]:
    """The words and characters of the patterns in an operator's argument."""
    if hasattr(argument, "data"):
        yield from walk(argument)
    elif isinstance(argument, list | tuple):
        for each in argument:
            yield from inside(each)


def hostile(pattern: str | bytes, flags: int) -> Iterator[str]:
    units = atoms(pattern, flags)
    for unit in [*units, *map("".join, product(units, repeat=2))]:
        for end in ("\x00", "x"):
            yield unit * (LENGTH // len(unit)) + end
    for first, unit in product(units, repeat=2):
        yield first + unit * (LENGTH // len(unit)) + "\x00"


def cpu_seconds(pattern: re.Pattern[Any], text: str | bytes) -> float:
    """Measure the CPU time of one pass; one that does not end is stopped."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 20 * SECONDS)
    began = time.process_time()
    try:
        for _ in pattern.finditer(text):
            pass
        return time.process_time() - began
    except TimeoutError:
        return 20 * SECONDS
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def slow(pattern: str | bytes, flags: int) -> str | None:
    """Return the text that a pattern reads too slowly, if any; measured twice, as other work disturbs the first."""
    compiled: re.Pattern[Any] = re.compile(pattern, flags)
    for text in hostile(pattern, flags):
        given = text.encode("utf-8", "replace") if isinstance(pattern, bytes) else text
        if cpu_seconds(compiled, given) > SECONDS and cpu_seconds(compiled, given) > SECONDS:
            return f"{text[:20]!r}…{text[-3:]!r}"
    return None


@pytest.mark.parametrize(("place", "pattern", "flags"), PATTERNS, ids=[place for place, _, _ in PATTERNS])
def test_hostile_repeats_are_read_in_linear_time(place: str, pattern: str | bytes, flags: int) -> None:
    assert slow(pattern, flags) is None


def test_every_pattern_is_found() -> None:
    """As many as a plain search of the source finds, and in every package that has some."""
    written = [
        match
        for package in PRODUCT
        for file in (ROOT / package).rglob("*.py")
        for match in re.findall(rf"\bre\.(?:{'|'.join(FUNCTIONS)})\(", file.read_text(encoding="utf-8"))
    ]
    assert len(PATTERNS) >= len(written) > 30
    assert not [
        file
        for package in PRODUCT
        for file in (ROOT / package).rglob("*.py")
        if re.search(r"^(?:from re import|import regex|import re as)", file.read_text(encoding="utf-8"), re.M)
    ]


@pytest.mark.parametrize(
    "pattern",
    [r"[.!?…。！？]+[\"'”’»)\]]*(?:\s+|(?<=[。！？]))|\n+\s*", r"/\*.*?\*/", r"(a+)+$", r"\bmodule\b.*?\bendmodule\b"],
)
def test_what_is_not_linear_is_noticed(pattern: str) -> None:
    assert slow(pattern, re.S) is not None


def test_dots_are_chunked_at_once() -> None:
    began = time.process_time()
    for text in ("." * 400_000 + "x", "。." * 200_000 + "x", '.")' * 150_000 + "x", " " * 400_000 + "x"):
        assert len(sentence_starts(text)) <= len(text) // 2
        clean(text)
    assert time.process_time() - began < 2


def test_sentences_begin_where_they_did() -> None:
    for text, starts in {
        'One. Two! "Three?" Four… Five': [5, 10, 19, 25],
        "Dr. No et al. are here. Yes": [14, 24],
        "一。二！三": [2, 4],
        "一。”二。 三": [2, 6],
        "What?! Yes...\n\nNo": [7, 15],
        "。。。a": [3],
        "a.b.c": [],
    }.items():
        assert sentence_starts(text) == starts, text


def test_windows_cut_inside_of_words_alone() -> None:
    text = "Many words, in a row.  \n\n And more! " * 3000
    parts = list(windows(text, 5000))
    assert "".join(text[a:b] for a, b in parts) == text
    assert len(parts) > 20
    for _, end in parts[:-1]:
        assert text[end - 1].isalnum()
        assert text[end].isalnum()
    assert [b - a for a, b in windows("." * 10_000, 4000)] == [4000, 4000, 2000]
