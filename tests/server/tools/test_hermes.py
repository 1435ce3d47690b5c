"""Calls within a text: every split of it gives the same message, a broken call stays text, and nothing is lost."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waver.engines.base import Finish
from waver.server.message.parts import Abandoned, Arguments, CallStart, Content, Part, PartReader, merged
from waver.server.message.parts import Message as Made
from waver.server.tools.forced import ForcedCalls
from waver.server.tools.hermes import HermesCalls

ARGUMENTS = '{"a": "x}\\"{</tool_call>", "b": [1, -2.5e3, null, {"c": true}]}'
CALL = f'<tool_call>\n{{"name": "f", "arguments": {ARGUMENTS}}}\n</tool_call>'
BROKEN = '<tool_call>{"name": "f", "arguments": {"a": tru}}</tool_call>'
CUT = '<tool_call>{"name": "f", "arguments": {"a": 1'


def numbered() -> Callable[[], str]:
    count = itertools.count()
    return lambda: f"call_{next(count)}"


def read(reader: PartReader, pieces: Sequence[str], finish: Finish = "stop") -> tuple[list[Part], int]:
    parts = [part for piece in pieces for part in reader.push(piece)]
    return merged([*parts, *reader.finish(finish)]), reader.complete


def hermes(*pieces: str, finish: Finish = "stop", single: bool = False) -> tuple[list[Part], int]:
    return read(HermesCalls(single, numbered()), pieces, finish)


def message(parts: Sequence[Part]) -> Made:
    made = Made()
    made.add(parts)
    return made


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
calls = st.tuples(st.text(min_size=1, max_size=8), st.dictionaries(st.text(max_size=5), json_values, max_size=3))
FRAGMENTS = ["<tool_call>", "</tool_call>", "<tool_", '{"name": "f"', ', "arguments": {"a": 1}', "}", "{", "[", "]",
             '"', "\\", ",", ":", " ", "\n", "null", "1.5", "text", '"name": "g"', "é🙂"]  # fmt: skip


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text of fragments that calls are made of, and a split of it."""
    text = "".join(draw(st.lists(st.sampled_from([*FRAGMENTS, CALL, BROKEN]), max_size=9)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return text, [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


@settings(deadline=None, max_examples=300)
@given(cut_texts(), st.sampled_from(["stop", "length"]), st.booleans())
def test_no_split_changes_what_is_read(given: tuple[str, list[str]], finish: Finish, single: bool) -> None:
    text, pieces = given
    whole = hermes(text, finish=finish, single=single)
    assert hermes(*pieces, finish=finish, single=single) == whole
    assert hermes(*text, finish=finish, single=single) == whole
    assert read(ForcedCalls(numbered()), pieces, finish) == read(ForcedCalls(numbered()), [text], finish)


@settings(deadline=None, max_examples=300)
@given(cut_texts(), st.sampled_from(["stop", "length"]))
def test_a_complete_call_is_json_and_no_other_text_is_lost(given: tuple[str, list[str]], finish: Finish) -> None:
    text, pieces = given
    parts, complete = hermes(*pieces, finish=finish)
    made = message(parts)
    whole = [call for call in made.calls.values() if is_object("".join(call.arguments))]
    assert len(whole) == complete
    unfinished = len(made.calls) - complete
    assert unfinished == 0 if finish == "stop" else unfinished <= 1
    if not made.calls:
        for piece in ("text", "1.5", "é🙂", "name"):
            assert made.content.count(piece) == text.count(piece)


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet=" abc\n<tol_", max_size=12), st.lists(calls, min_size=1, max_size=3), st.booleans())
def test_calls_are_read_as_they_were_written(
    before: str, wanted: list[tuple[str, dict[str, Any]]], ascii_only: bool
) -> None:
    written = [json.dumps({"name": name, "arguments": given}, ensure_ascii=ascii_only) for name, given in wanted]
    text = before + "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in written)
    parts, complete = hermes(text)
    made = message(parts)
    assert complete == len(wanted)
    assert made.content == before.rstrip()
    read_back = [(call.name, json.loads("".join(call.arguments))) for call in made.calls.values()]
    assert read_back == wanted
    forced, complete = read(ForcedCalls(numbered()), [f"[{', '.join(written)}]"])
    assert complete == len(wanted)
    assert [(c.name, json.loads("".join(c.arguments))) for c in message(forced).calls.values()] == wanted


def test_a_call_is_passed_on_while_it_is_written() -> None:
    reader = HermesCalls(new_id=numbered())
    assert reader.push('<tool_call>{"name": "f", "argum') == [CallStart(0, "call_0", "f")]
    assert reader.push('ents": {"city": "Par') == [Arguments(0, '{"city": "Par')]
    assert reader.push("is") == [Arguments(0, "is")]
    assert reader.complete == 0
    assert reader.push('"}}</tool_') == [Arguments(0, '"}')]
    assert reader.complete == 1
    assert reader.push("call>") == reader.finish("stop") == []


def test_a_broken_call_is_content() -> None:
    parts, complete = hermes(f"so {BROKEN} and {CALL}")
    assert complete == 1
    assert Abandoned(0) in parts
    made = message(parts)
    assert made.content == f"so {BROKEN} and"
    assert list(made.calls) == [1]


def test_a_call_that_is_cut_off_is_not_complete() -> None:
    parts, complete = hermes(CUT, finish="length")
    assert (parts, complete) == ([CallStart(0, "call_0", "f"), Arguments(0, '{"a": 1')], 0)
    parts, complete = hermes(CUT)
    assert (message(parts).content, message(parts).calls, complete) == (CUT, {}, 0)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"name": "f"}', "{}"),
        ('{"name": "f", "arguments": null}', "{}"),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"arguments": {"a": 1}, "name": "f"}', '{"a": 1}'),
        ('{"id": [{"name": "z"}], "name": "f", "parameters": {"a": 1}}', '{"a": 1}'),
    ],
)
def test_forms_of_a_call(text: str, arguments: str) -> None:
    for pieces in ([text], list(text)):
        parts, complete = hermes("<tool_call>", *pieces, "</tool_call>")
        assert (parts, complete) == ([CallStart(0, "call_0", "f"), Arguments(0, arguments)], 1)


@pytest.mark.parametrize(
    "text",
    ['{"name": 5, "arguments": {}}', '{"name": "f", "arguments": [1]}', '{"name": "", "arguments": {}}', '["f"]', "[]",
     '{"arguments": {}}', "{'name': 'f'}", '{"name": "f", "name": "g"}', '{"name": "f", "arguments": {"a": 01}}',
     '{"name": "f", "arguments": {}, "parameters": {}}', '{"name": "f\n"}', '{"name": "\\x"}', "{" * 200, ""],
)  # fmt: skip
def test_what_is_no_call_is_content(text: str) -> None:
    written = f"<tool_call>{text}</tool_call>"
    parts, complete = hermes(written)
    assert (message(parts).content, message(parts).calls, complete) == (written, {}, 0)


def test_one_call_ends_the_reading() -> None:
    reader = HermesCalls(True, numbered())
    parts = reader.push(CALL + CALL + "more")
    assert reader.complete == 1
    assert [type(part) for part in parts] == [CallStart, Arguments]
    assert reader.push("more") == reader.finish("stop") == []


def test_a_forced_call_that_breaks_is_content() -> None:
    assert read(ForcedCalls(numbered()), ["no JSON"]) == ([Content("no JSON")], 0)
    assert read(ForcedCalls(numbered()), ['{"na'], "length") == ([Content('{"na')], 0)
    parts, complete = read(ForcedCalls(numbered()), ['[{"name": "f", "arguments": {"a": "b'], "length")
    assert (parts, complete) == ([CallStart(0, "call_0", "f"), Arguments(0, '{"a": "b')], 0)
    whole = '[{"name": "f", "arguments": {}}'
    for begun in ("", ",", ", {", ', {"na', ', {"name": "', "\n"):
        parts, complete = read(ForcedCalls(numbered()), [whole + begun], "length")
        assert ([type(part) for part in parts], complete) == ([CallStart, Arguments], 1), begun


def test_long_arguments_are_read_in_linear_time() -> None:
    """Count the lines that the interpreter runs."""

    def steps(length: int) -> int:
        count = 0

        def trace(frame: Any, event: str, argument: Any) -> Any:
            nonlocal count
            count += 1
            return trace

        reader = HermesCalls(new_id=numbered())
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for start in range(0, length, 4):
                reader.push(CUT[:-1] + '"' if start == 0 else "abcd")
        finally:
            sys.settrace(before)
        return count

    assert steps(4000) < 2.2 * steps(2000)
