"""Constraints that can be checked: what meets each of IFEval's kinds and what does not, drawing, rewards, refusals."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest

from waver.training.tasks.instructions import FAMILIES, follow, follows, instructions, no_constraints, parse
from waver.training.tasks.instructions.base import paragraphs_of, sentences_of

CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"kind": "words", "relation": "at least", "count": 3}, ["one two three", "a b c d"], ["one two"]),
    ({"kind": "words", "relation": "at most", "count": 2}, ["one two"], ["one two three"]),
    (
        {"kind": "sentences", "relation": "exactly", "count": 2},
        ["A b. C d!", 'He said "no." Then left.'],
        ["A b.", "."],
    ),
    ({"kind": "keywords", "keywords": ["time", "hand"]}, ["Time in hand."], ["Sometimes by hand.", "time"]),
    (
        {"kind": "keyword_frequency", "keyword": "river", "relation": "exactly", "count": 2},
        ["River, river."],
        ["river", "river river rivers river"],
    ),
    ({"kind": "forbidden_words", "keywords": ["very"]}, ["every day"], ["Very good"]),
    ({"kind": "letter_frequency", "letter": "q", "relation": "at most", "count": 0}, ["abc"], ["Quick"]),
    ({"kind": "letter_frequency", "letter": "b", "relation": "at least", "count": 2}, ["Bob"], ["bad"]),
    ({"kind": "language", "language": "Russian"}, ["Доброе утро, 12!"], ["Good morning", "Доброе morning today", "12"]),
    ({"kind": "language", "language": "Korean"}, ["안녕하세요"], ["hello"]),
    ({"kind": "upper_case"}, ["ALL OF IT, 3"], ["All of it", "12"]),
    ({"kind": "lower_case"}, ["all of it, 3"], ["All of it", "12"]),
    ({"kind": "capital_words", "relation": "at least", "count": 2}, ["NASA and ESA"], ["Nasa and ESA"]),
    ({"kind": "no_commas"}, ["a b"], ["a, b", "一，二"]),
    ({"kind": "paragraphs", "count": 2}, ["one\n***\ntwo"], ["one\n\ntwo", "one\n***\n", "1\n***\n2\n***\n3"]),
    (
        {"kind": "paragraph_start", "count": 2, "place": 2, "keyword": "Finally"},
        ["One.\n\nFinally, two.", "One.\n \n\n*finally* two"],
        ["Finally.\n\nTwo.", "Finally two.", "One\n\nFinally\n\nthree"],
    ),
    ({"kind": "bullets", "relation": "exactly", "count": 2}, ["* a\n- b"], ["* a", "*a\n* b", "* a\n* b\n* c"]),
    (
        {"kind": "sections", "heading": "Part", "relation": "exactly", "count": 2},
        ["Part 1\nx\n## Part 2\ny"],
        ["Part one\nPart two", "part of 1\nPart 2", "Part 1"],
    ),
    ({"kind": "placeholders", "relation": "at least", "count": 2}, ["[name], [street]"], ["[name]", "[] []"]),
    ({"kind": "highlights", "relation": "at least", "count": 2}, ["*a* and **b**"], ["*a*", "* a\n* b", "** ** * *"]),
    ({"kind": "title"}, ["<<Bread>>\nIt rises."], ["<Bread>", "<< >>"]),
    ({"kind": "json"}, ['{"a": [1]}', '```json\n{"a": 1}\n```'], ["a: 1", '{"a": 1} That is it.']),
    (
        {"kind": "choice", "options": ["My answer is yes.", "My answer is no."]},
        ["My answer is no."],
        ["no", "My answer is yes. My answer is no."],
    ),
    ({"kind": "postscript"}, ["Dear Ann.\nP.S. Write soon."], ["Dear Ann. P.S. Write", "Text\nP.S."]),
    (
        {"kind": "ending", "phrase": "That is all."},
        ['Bread rises. "That is all."', "that is ALL."],
        ["That is all. Bye"],
    ),
    ({"kind": "quotation"}, ['"Bread rises."'], ['"Bread" rises.', '"']),
    ({"kind": "repeat", "phrase": "Say hello."}, ["Say hello. Hello!"], ["Hello!", "Say hello."]),
    ({"kind": "two_answers"}, ["Bread.\n******\nCake."], ["Bread.", "a\n******\na", "a******b******c", "a******"]),
]


@pytest.mark.parametrize(("row", "good", "bad"), CASES, ids=lambda x: x.get("kind") if isinstance(x, dict) else "")
def test_a_constraint_is_met_or_not(row: dict[str, Any], good: list[str], bad: list[str]) -> None:
    (made,) = parse([row])
    assert [made.met(each) for each in good] == [True] * len(good)
    assert [made.met(each) for each in bad] == [False] * len(bad)
    assert parse(json.loads(json.dumps([made.model_dump()]))) == [made]


def test_every_kind_is_tried() -> None:
    assert {row["kind"] for row, _, _ in CASES} == set(FAMILIES)
    assert len(FAMILIES) == 25


def test_gains() -> None:
    """Small for one side and for absence, more for an exact count, most for exact sentences and a forbidden letter."""
    worth = {
        ("words", "at most"): 0.05,
        ("sentences", "exactly"): 0.2,
        ("sentences", "at least"): 0.05,
        ("bullets", "exactly"): 0.1,
    }
    for (kind, relation), gain in worth.items():
        assert parse([{"kind": kind, "relation": relation, "count": 2}])[0].worth == gain
    letter = {"kind": "letter_frequency", "letter": "e", "relation": "at most"}
    assert [parse([letter | {"count": count}])[0].worth for count in (0, 3)] == [0.2, 0.05]
    assert parse([{"kind": "ending", "phrase": "Bye."}])[0].worth == 0.1


FOUR = [
    {"kind": "ending", "phrase": "Bye."},
    {"kind": "quotation"},
    {"kind": "no_commas"},
    {"kind": "forbidden_words", "keywords": ["very"]},
]


def test_the_figures_of_the_reward() -> None:
    """Gains of .1, .1, .05 and .05: all met earn 1.3, three of them .25, and a thought that is not closed nothing."""
    rules = parse(FOUR)
    assert [each.worth for each in rules] == [0.1, 0.1, 0.05, 0.05]
    assert follow('<think>hm, very</think>"Good. Bye."', rules, think=True).score == pytest.approx(1.3)
    assert follow('<think>hm</think>"Very good. Bye."', rules, think=True).score == pytest.approx(0.25)
    assert follow('"Good. Bye."', rules, think=True).score == 0
    assert follow('"Good. Bye."', rules).score == pytest.approx(1.3)


def test_silence_follows_nothing() -> None:
    """Absences would be met by an empty answer, which is no answer."""
    rules = parse(FOUR[2:])
    assert follow("<think>all is well</think> \n", rules).score == 0
    assert follow("", rules).met == 0


def test_the_reward_is_called_as_trl_calls_one() -> None:
    """Tables fill what a kind does not have with None; messages are read, too."""
    padded = [[{"kind": "no_commas", "phrase": None}], [{"kind": "ending", "phrase": "Bye."}]]
    said = ["a b", [{"role": "assistant", "content": "<think>x</think>Bye."}]]
    found = follows(completions=said, constraints=padded, question=["?", "?"], prompts=["?", "?"])
    assert found == pytest.approx([1.05, 1.1])
    assert follows(said, padded, think=[True, True]) == pytest.approx([0, 1.1])


def test_drawn_instructions_do_not_contradict_themselves() -> None:
    rows = instructions(300, 5, (2, 5))
    assert rows == instructions(300, 5, (2, 5)) != instructions(300, 6, (2, 5))
    kinds = set()
    for row in rows:
        rules = parse(row["constraints"])
        assert 1 <= len(rules) <= 5
        assert no_constraints(row) is None
        assert all(f"- {each.words()}" in row["question"] for each in rules)
        assert all(not a.rules & b.rules for a, b in combinations(rules, 2))
        kinds |= {each.kind for each in rules}
    assert kinds == set(FAMILIES)


@pytest.mark.parametrize(
    ("constraints", "reason"),
    [
        (None, "is a list"),
        ([], "at least one"),
        ([{"kind": "rhyme"}], "no constraint of the kind 'rhyme'; there are words"),
        (["words"], "no constraint of the kind 'words'"),
        ([{"kind": "words", "relation": "at least"}], "words: count"),
        ([{"kind": "words", "relation": "about", "count": 2}], "words: relation"),
        ([{"kind": "sentences", "relation": "exactly", "count": each} for each in range(1, 8)], "give fewer"),
    ],
)
def test_what_cannot_be_judged_is_said(constraints: Any, reason: str) -> None:
    assert reason in str(no_constraints({"question": "?", "constraints": constraints}))


def test_sentences_and_paragraphs() -> None:
    assert sentences_of("One. Two!  Three?") == ["One.", "Two!", " Three?"]
    assert sentences_of("3.5 is a number") == ["3.5 is a number"]
    assert paragraphs_of("\n\na\nb\n \n\nc\n") == ["a\nb", "c"]
