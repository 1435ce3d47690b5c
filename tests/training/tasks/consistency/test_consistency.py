"""Con-RAG's similarities, rewards and measures: reference figures, data that is read or refused, and runs."""

from __future__ import annotations

import json
import math
import random
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from waver.training.tasks.consistency.measures import (
    answer_consistency,
    exact_rewards,
    relaxed_rewards,
    retriever_consistency,
    split_consistency,
)
from waver.training.tasks.consistency.sets import asked, read_sets, training_rows
from waver.training.tasks.consistency.similarity import bleu1, bleu2, bleu3, exact, rouge_l, token_f1

ANSWERS = [["paris", "paris france", "lyon"], ["the city paris", "paris", "lyon france"]]
REWARDS = [[0.378445, 0.434422, 0.122626], [0.222222, 0.455960, 0.333333]]


def test_similarities() -> None:
    assert bleu1("the capital is paris", "paris is the capital") == pytest.approx(1.0)
    assert bleu2("the capital is paris", "paris is the capital") == pytest.approx(0.577350, abs=6e-7)
    assert bleu1("paris", "the city of paris") == pytest.approx(0.049787, abs=6e-7)
    assert bleu1("the city of paris", "paris") == pytest.approx(0.25)
    assert bleu3("Paris", "paris") == 1
    assert bleu2("", "paris") == bleu2("paris", "") == 0
    assert rouge_l("a b c d", "a c d e") == pytest.approx(0.75)
    assert exact("The Paris.", "paris") == 1
    assert token_f1("the city of Paris", "Paris") == pytest.approx(0.5)
    assert token_f1("London", "Paris") == 0


def test_the_exact_reward_leaves_the_own_wording_out() -> None:
    for row, figures in zip(exact_rewards(ANSWERS, bleu1), REWARDS, strict=True):
        assert row == pytest.approx(figures, abs=6e-7)
    everyones = [x for group in ANSWERS for x in group]
    own_too = [sum(bleu1(each, other) for other in everyones) / 6 for each in ANSWERS[0]]
    assert own_too != pytest.approx(REWARDS[0], abs=0.01)
    assert math.isnan(exact_rewards([["a", "b"]], bleu1)[0][0])


class Scripted(random.Random):
    """Draws the places that it is told to, one after another."""

    def __init__(self, places: Any) -> None:
        super().__init__(0)
        self.places = iter(places)

    def sample(self, population: Any, k: int, **_: Any) -> list[Any]:
        return [population[next(self.places)] for _ in range(k)]


def test_the_relaxed_reward_is_unbiased() -> None:
    """The mean over every pick of one wording and one answer is the exact reward."""
    answers = [*ANSWERS, ["lyon", "nice", "paris"]]
    wanted = exact_rewards(answers, bleu1)
    for i, j in product(range(3), range(3)):
        picks = []
        for u, m in product(range(2), range(3)):
            places = [0, 0] * (3 * i + j) + [u, m] + [0, 0] * 9
            picks.append(relaxed_rewards(answers, bleu1, Scripted(places), 1, 1)[i][j])
        assert sum(picks) / len(picks) == pytest.approx(wanted[i][j], abs=1e-12)


@pytest.mark.parametrize(("n", "g", "relaxed", "count"), [(5, 6, False, 720), (6, 4, False, 480), (6, 4, True, 72)])
def test_comparisons(n: int, g: int, relaxed: bool, count: int) -> None:
    calls = []
    answers = [[f"{i} {j}" for j in range(g)] for i in range(n)]

    def similarity(one: str, other: str) -> float:
        assert one.split()[0] != other.split()[0]
        calls.append((one, other))
        return 0.0

    if relaxed:
        relaxed_rewards(answers, similarity, random.Random(1), 3, 1)
        assert all(len({b.split()[0] for a, b in calls if a == own}) == 3 for own, _ in calls)
    else:
        exact_rewards(answers, similarity)
    assert len(calls) == count


def test_measures() -> None:
    found = [["1", "2", "3", "4", "5"], ["1", "2", "3", "6", "7"], ["1", "8", "9", "10", "11"]]
    assert retriever_consistency(found[:2]) == pytest.approx(0.428571, abs=6e-7)
    assert retriever_consistency(found) == pytest.approx(0.216931, abs=6e-7)
    assert retriever_consistency([[], []]) == 1
    assert math.isnan(retriever_consistency(found[:1]))
    assert answer_consistency(["paris", "the city of paris"], bleu1) == pytest.approx((0.049787 + 0.25) / 2, abs=6e-7)
    answers = ["paris", "paris", "lyon", "nice"]
    assert split_consistency(answers, exact, lambda said: said == "paris") == (1.0, 0.0)
    assert math.isnan(split_consistency(["paris"], exact, lambda said: True)[1])


def sets(tmp_path: Path, rows: list[Any]) -> Path:
    file = tmp_path / "sets.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def rows(count: int, wordings: int = 2) -> list[dict[str, Any]]:
    return [
        {"questions": [f"What is {i} + {i}{'?' * (k + 1)}" for k in range(wordings)], "answer": str(2 * i)}
        for i in range(10, 10 + count)
    ]


def test_wordings_stay_together(tmp_path: Path) -> None:
    read = read_sets(sets(tmp_path, rows(5, 3)))
    train, held_out = training_rows(read, 12, 3, 6, seed=1)
    assert [row["set"] for row in train] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert all(len({row["question"] for row in train[k : k + 3]}) == 3 for k in range(0, 12, 3))
    assert len(held_out) == 3
    assert not {row["question"] for row in held_out} & {row["question"] for row in train}
    assert {row["set"] for row in held_out}.isdisjoint({row["set"] for row in train})
    assert "Passage 2: two" in asked("Why?", ["one", "two"])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"questions": ["a"]}, "at least 2 different wordings"),
        ({"questions": ["a", "a"]}, "at least 2 different wordings"),
        ({"question": "a"}, "at least 2 different wordings"),
        ({"questions": ["a", "b"], "passages": [["x"]]}, "a list of texts for each"),
        ({"questions": ["a", "b"], "answer": 3}, "`answer` is a text"),
    ],
)
def test_a_line_that_is_no_set_is_refused(tmp_path: Path, row: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"line 1: .*{reason}"):
        read_sets(sets(tmp_path, [row]))


def test_steps_that_tear_wordings_apart_are_refused(tmp_path: Path) -> None:
    read = read_sets(sets(tmp_path, rows(3)))
    with pytest.raises(ValueError, match="--prompts 3 is no multiple"):
        training_rows(read, 6, 0, 3, 1)
    with pytest.raises(ValueError, match="none is left"):
        training_rows(read, 6, 6, 2, 1)
    with pytest.raises(ValueError, match="the same number"):
        training_rows([*read, *read_sets(sets(tmp_path, rows(1, 3)))], 6, 0, 2, 1)


def test_the_reward_is_called_as_trl_calls_one() -> None:
    pytest.importorskip("accelerate")
    from waver.training.tasks.consistency.reward import every, f1, relaxed

    said = [each for group in ANSWERS for each in group] + ["alone"]
    names = ["a"] * 3 + ["b"] * 3 + ["c"]
    columns = {"set": [7] * 6 + [8], "question": names, "trainer_state": SimpleNamespace(global_step=3)}
    logged: dict[str, float] = {}
    known = {"answer": [["paris"]] * 7, "log_metric": logged.__setitem__}
    found = every(completions=[[{"role": "assistant", "content": each}] for each in said], **columns, **known)
    assert found[-1] is None
    assert found[:6] == pytest.approx([each for row in exact_rewards(ANSWERS, bleu2) for each in row])
    assert logged.keys() == {"consistency/right", "consistency/wrong"}
    assert relaxed(said, **columns) == relaxed(said, **columns)
    assert f1(["the city of Paris", "x"], answer=[["Paris", "Rome"], None]) == [pytest.approx(0.5), None]


def test_a_model_is_trained_and_loads(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from typer.testing import CliRunner

    from waver.cli import app
    from waver.engines.base import Sampling
    from waver.engines.config import TransformersConfig
    from waver.engines.transformers import TransformersEngine
    from waver.job import read_lines

    out = tmp_path / "run"
    options = [
        *("train", "rl", "--out", str(out), "--method", "con_rag", "--task", "paraphrases"),
        *("--data", str(sets(tmp_path, rows(4))), "--steps", "1", "--prompts", "2", "--group", "3", "--held-out", "2"),
        *("--length", "12", "--every", "1", "--report-to", "none", "--updates", "1"),
    ]
    made = CliRunner().invoke(app, options, env={"COLUMNS": "500"})
    assert made.exit_code == 0, made.output
    lines = read_lines(out / "metrics.jsonl")
    assert any("con_rag/silent" in line for line in lines)
    assert any("rewards/f1/mean" in line for line in lines)
    TransformersEngine("trained", TransformersConfig(model=str(out / "model"))).check(Sampling(), begun=False)
    torn_options = [*options, "--prompts", "3", "--out", str(tmp_path / "x")]
    torn = CliRunner().invoke(app, torn_options, env={"COLUMNS": "500"})
    assert torn.exit_code == 2
    assert "no multiple" in torn.output
