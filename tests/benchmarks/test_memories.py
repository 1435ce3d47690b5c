"""Benchmarks of memories: scores by hand, LoCoMo's form, counterfactual facts, refusals, and killed writers."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from waver.benchmarks import facts, guard_engine, locomo
from waver.benchmarks.counterfactuals import CHANGED, KEPT, known, of_the_world
from waver.benchmarks.guard import KINDS, known_and_tested
from waver.benchmarks.locomo_answers import chosen, f1, latest
from waver.benchmarks.locomo_data import load, session_of, sessions_of
from waver.benchmarks.memory_kills import OWNERS, killed, look
from waver.benchmarks.memory_writers import NOW, Stores
from waver.benchmarks.ranks import old_ndcg, recall, recall_all, recall_any
from waver.retrieval.memory.facts import Statement
from waver.retrieval.memory.turns import Turn
from waver.retrieval.memory.unit import Unit


def test_scores_of_a_ranking() -> None:
    """Figures worked out by hand for MemGAS' measures (arXiv 2505.19549)."""
    assert recall_all(["A", "C", "D", "B"], ["A", "B"], 3) == 0
    assert recall_all(["A", "C", "D", "B"], ["A", "B"], 4) == 1
    assert recall_any(["A", "C", "D", "B"], ["A", "B"], 3) == 1
    assert recall_any(["C", "D", "A"], ["A", "B"], 2) == 0
    assert old_ndcg(["C", "A", "B"], ["A", "B"], 3) == pytest.approx(0.815465, abs=1e-6)
    assert old_ndcg(["A", "B"], ["A", "B"], 5) == pytest.approx(1.0)
    assert recall(["A", "C", "B"], ["A", "B"], 2) == 0.5


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two sessions of two turns, and questions with and without evidence."""
    turns = {
        f"session_{n}": [
            {"speaker": who, "dia_id": f"D{n}:{i}", "text": f"{who} says {n} and {i}"}
            for i, who in enumerate(("Ann", "Bea"), 1)
        ]
        for n in (1, 2)
    }
    times = {f"session_{n}_date_time": f"1:56 pm on {n} May, 2023" for n in (1, 2)}
    asked = [
        {"question": "Who says 2?", "answer": 2, "evidence": ["D2:1; D1:2"], "category": 1},
        {"question": "Which is missing?", "answer": "none", "evidence": [], "category": 4},
        {"question": "Who never says it?", "adversarial_answer": "x", "evidence": ["D1:1"], "category": 5},
    ]
    file = tmp_path / "locomo.zip"
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("folder/7.json", json.dumps({**turns, **times, "qa": asked}))
    return file


def test_conversations_are_read(archive: Path) -> None:
    (conversation,) = load(archive)
    assert conversation.name == "7"
    assert [turn.id for turn in conversation.turns] == ["D1:1", "D1:2", "D2:1", "D2:2"]
    (question,) = conversation.questions
    assert (question.evidence, question.answer) == (("D2:1", "D1:2"), "2")
    assert session_of("D12:3") == 12
    assert sessions_of(["D2:1", "D1:2", "D2:9"]) == [2, 1]
    assert chosen([conversation], 5, 1) == [(conversation, question)]
    assert [turn.id for turn in latest(conversation.turns, 10)] == ["D2:1", "D2:2"]
    assert len(latest(conversation.turns, 4)) == 0


def test_the_page_of_recalls() -> None:
    asked = {"categories": [1, 4], "turns": 4, "sessions": 2}
    scores = {"recall at 5": [1.0, 0.0], "recall at 10": [1.0, 1.0]}
    found: Any = {
        "7": {
            **asked,
            "written": {"simplemem": {"kept": 3, "seconds": 0.1}},
            "recall": {"dense": scores},
            "recall_sessions": {"memgas": {"all at 1": [1.0, 0.0]}},
        }
    }
    numbers = locomo.summary(found)
    assert numbers["recall"]["dense"]["recall at 5"]["mean"] == 0.5
    assert numbers["recall"]["dense"]["recall at 10"]["interval"] == (1.0, 1.0)
    assert numbers["written"]["simplemem"]["kept"] == 3
    assert "| memgas | 50.0 %" in "\n".join(locomo.page(numbers))


def test_f1_of_words() -> None:
    assert f1("The red boat.", "a red boat") == 1.0
    assert f1("a red car", "red boat") == pytest.approx(0.5)
    assert f1("no", "yes") == f1("", "yes") == 0.0


def test_counterfactuals_say_what_their_questions_ask_for() -> None:
    for edit in known():
        assert set(edit.questions) == {*CHANGED, *KEPT}
        value = edit.questions["edit"][1][0]
        assert value in edit.statement
        assert all(edit.questions[kind][1] for kind in CHANGED)
    for edit in of_the_world(30, 1):
        text, (value,) = edit.questions["edit"]
        assert f"{value}." in edit.statement
        assert text != edit.questions["rephrased"][0]
    assert of_the_world(5, 1) == of_the_world(5, 1) != of_the_world(5, 2)


def test_ways_to_use_facts_are_scored() -> None:
    edits = known()[:1]
    keys = [key for key, *_ in facts.asked_of(edits)]
    texts = {f"never {key}": "Paris, France." for key in keys} | {f"again {key}": "Paris, France" for key in keys}
    texts |= {f"always {key}": "It is Rome, in Italy!" for key in keys}
    texts |= {f"scr, listwise {key}": texts[f"{'never' if 'other' in key else 'always'} {key}"] for key in keys}
    cosines = {key: 0.55 if "same" in key else 0.75 for key in keys}
    found = facts.scored(edits, texts, cosines, ["scr, listwise"])
    shares = {way: [each["share"] for each in kinds.values()] for way, kinds in found.items()}
    assert shares["never"] == shares["again"] == [0, 0, 0, 1, 1]
    assert shares["always"] == [1, 1, 1, 0, 0]
    assert shares["cosine over 0.6"] == [1, 1, 1, 1, 0]
    assert shares["cosine over 0.8"] == shares["never"]
    assert shares["scr, listwise"] == [1, 1, 1, 0, 1]


def test_refusals_are_counted() -> None:
    def answer(text: str, outcome: str) -> dict[str, Any]:
        return {"text": text, "waver": {"guard": {"outcome": outcome}}}

    assert guard_engine.refused("no guard", answer("I'm sorry, but I can't assist", "passed"))
    assert not guard_engine.refused("no guard", answer("Sure, here is a poem", "refused"))
    assert guard_engine.refused("prompt", answer("Sure", "refused"))
    known, tested = known_and_tested(1)
    assert not {each.text for each in known} & {row["text"] for row in tested}
    rows = guard_engine.sample(tested, 2, 1)
    assert len(rows) == 2 * len(KINDS)
    outcomes = {"no guard": "passed", "prompt": "refused", "verdict": "checked"}
    answers = {f"{way} {i}": answer("Sure", outcome) for way, outcome in outcomes.items() for i in range(len(rows))}
    found = guard_engine.counted(rows, answers)
    assert {way: each[KINDS[0]]["refused"] for way, each in found.items()} == {
        "no guard": 0, "prompt": 1, "verdict": 0, "gate alone": 1
    }  # fmt: skip


def test_killed_writers_leave_whole_stores(tmp_path: Path) -> None:
    found = killed(tmp_path, points=6, seed=2)
    assert [point["wrong"] for point in found] == [[]] * 6
    assert sum(rounds for point in found for rounds in point["rounds"].values()) > 0


async def test_what_a_kill_could_break_is_noticed(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    await stores.memories.of("anna").add([Unit(content="anna fact 7"), Unit(content="bob twin 8")])
    await stores.memories.of("bob").say([Turn("bob", "bob says 7", NOW)], {"engine": "bob"}, 2, 0)
    await stores.facts.of("bob").add([Statement(text="bob is at 3", subject="bob", relation="place")])
    stores.close()
    wrong = await look(tmp_path, {"anna": [6], "bob": [7]}, {owner: set() for owner in OWNERS})
    assert wrong == [
        "anna: has 'bob twin 8'",
        "anna: memories without their twins: [7, 8]",
        "anna: the acknowledged memory 6 is lost",
        "anna: acknowledged episodes are lost: [6]",
        "anna: the acknowledged fact 6 does not hold",
        "bob: acknowledged episodes are lost: [7]",
        "bob: the acknowledged fact 7 does not hold",
        "bob: half of a window waits",
    ]
