"""The world: draws are functions of their seed, answers are right, and no split leaks into another."""

from __future__ import annotations

import random
import re

import pytest

from waver.training.pair.data import SMALL_TALK, Mixture, answer_sum, draw_turn
from waver.training.pair.world import (
    LARGEST_TOTAL,
    RELATIONS,
    TASKS,
    Item,
    chain,
    documents,
    draw,
    score_text,
    towns,
    unknown_names,
    write_sum,
)


@pytest.mark.parametrize("task", TASKS)
def test_a_draw_is_a_function_of_its_seed(task: str) -> None:
    assert draw(task, 3, 50) == draw(task, 3, 50)
    assert draw(task, 3, 50) != draw(task, 4, 50)
    assert draw(task, 3, 20) == draw(task, 3, 50)[:20]


def test_sums_are_right_and_stay_in_range() -> None:
    for steps in range(1, 9):
        for item in draw("arithmetic", steps, 200, steps=steps):
            match = re.search(r"\d+(?: [+-] \d+)+", item.prompt)
            assert match is not None
            parts = match[0].split()
            numbers, signs = [int(n) for n in parts[::2]], parts[1::2]
            assert len(signs) == steps
            assert all(10 <= n <= 99 for n in numbers)
            total = numbers[0]
            for sign, number in zip(signs, numbers[1:], strict=True):
                total += number if sign == "+" else -number
                assert 0 <= total <= LARGEST_TOTAL
            assert str(total) == item.answer


def test_chains_of_one_to_eight_steps_by_default() -> None:
    lengths = {len(re.findall(r" [+-] ", item.prompt)) for item in draw("arithmetic", 1, 400)}
    assert lengths == set(range(1, 9))
    assert {len(re.findall(r" [+-] ", i.prompt)) for i in draw("arithmetic", 1, 100, steps=(2, 3))} == {2, 3}


def test_facts_have_one_answer_each_and_the_passage_holds_it() -> None:
    for kind in ("frequent", "rare", "tail"):
        for item in draw(f"{kind}_facts", 5, 100):
            town = next(t for t in towns()[kind] if t.name in item.prompt)
            assert item.answer in town.facts.values()
            assert score_text(item.task, item.prompt, item.answer, f"It is {item.answer}.")
            if kind == "tail":
                assert item.passage is not None
                assert item.answer in item.passage
                assert item.open_book.startswith(item.passage)
            else:
                assert item.passage is None


def test_documents_hold_every_tail_fact() -> None:
    texts = {document.id: document.text for document in documents()}
    assert len(texts) == len(towns()["tail"])
    for town in towns()["tail"]:
        text = texts[f"town-{town.name.lower()}"]
        assert all(town.statement(relation) in text for relation in RELATIONS)


def test_training_never_speaks_of_a_tail_town() -> None:
    rng = random.Random(0)
    mixture = Mixture(sums=1, frequent=1, rare=1, unknown=1, reading=1, talk=1, steps=(1,) * 8)
    tail = {town.name for town in towns()["tail"]}
    assert not tail & set(unknown_names())
    for _ in range(3000):
        turn = draw_turn(rng, mixture)
        assert not tail & set(re.findall(r"\w+", f"{turn.system} {turn.user} {turn.answer}"))


@pytest.mark.parametrize(
    ("task", "answer", "text", "right"),
    [
        ("arithmetic", "42", "34 + 8 = 42. The answer is 42.", True),
        ("arithmetic", "42", "The answer is 42. Or 43.", False),
        ("arithmetic", "42", "The answer is 421.", False),
        ("arithmetic", "42", "no idea", False),
        ("rare_facts", "heron", "The bird of Talvek is the heron.", True),
        ("rare_facts", "heron", "The bird of Talvek is the swan.", False),
        ("rare_facts", "heron", "heron, swan or crane", False),
        ("rare_facts", "kite", "The bird is the kite.", True),
        ("rare_facts", "kite", "The craft is kites.", False),
    ],
)
def test_scores(task: str, answer: str, text: str, right: bool) -> None:
    assert score_text(task, "", answer, text) is right


def test_worked_answers_score_as_right() -> None:
    rng = random.Random(1)
    for steps in range(1, 9):
        terms = chain(steps, rng)
        for strategy in ("direct", "working", "checked"):
            assert score_text("arithmetic", write_sum(terms), str(sum(terms)), answer_sum(terms, strategy))
    assert answer_sum([34, 25, -17], "working") == "34 + 25 = 59. 59 - 17 = 42. The answer is 42."
    assert (
        answer_sum([34, 25, -17], "checked")
        == "34 + 25 = 59. 59 - 17 = 42. Check: 42 + 17 = 59. 59 - 25 = 34. The answer is 42."
    )
    assert answer_sum([34, 25], "direct") == "The answer is 59."


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="unknown task 'poems'; there are arithmetic"):
        draw("poems", 1, 1)
    with pytest.raises(ValueError, match="steps must be"):
        draw("arithmetic", 1, 1, steps=0)
    with pytest.raises(TypeError):
        draw("rare_facts", 1, 1, steps=2)
    assert isinstance(draw("arithmetic", 1, 1)[0], Item)
    assert all(answer for _, answer in SMALL_TALK)
