"""C-IP: what a conversation says, how probabilities are read, which question is asked, and when it guesses."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from tests.policies.looking import asking
from waver.clients.asking import conversation
from waver.engines.base import Sampling, Step, Unsupported
from waver.engines.fingerprint import fingerprint
from waver.engines.tokens import TokenText
from waver.policies.ask.c_ip import ConformalPursuit
from waver.policies.ask.history import Asked, read, yes_or_no
from waver.policies.ask.predictors import of_alternatives
from waver.policies.ask.table import by_table
from waver.policies.ask.task import LETTERS, AskTask, ready_tasks
from waver.policies.ask.thresholds import Thresholds, coverage, from_table, random_history, taus
from waver.policies.base import Proceed
from waver.policies.job import Job

MODELS = Path(__file__).parents[3] / "models"
ANIMALS = AskTask.load(ready_tasks()["animals"])
SMALL = AskTask(
    subject="pet",
    hypotheses=("cat", "dog", "gold fish", "fish"),
    questions=("Does it bark?", "Does it swim?", "Is it golden?"),
    affirmed={"cat": (), "dog": (0, 1), "gold fish": (1, 2), "fish": (1,)},
)


@dataclass
class Guesser:
    """An engine that weighs the letters of the options by what the prompt says is known, too surely."""

    tokens: TokenText
    task: AskTask
    name: str = "guesser"
    parameters: int = 1
    context_length: int = 4096
    patience: float = 0.0
    asked: int = 0
    open: int = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        self.asked += 1
        self.open += 1
        try:
            await asyncio.sleep(self.patience)
            prompt = self.tokens.decode(prompt_ids)
            known = [
                Asked(i, answer)
                for i, question in enumerate(self.task.questions)
                for answer, word in ((True, "yes"), (False, "no"))
                if f"- {question} {word}\n" in prompt
            ]
            f = by_table(self.task, known, 0.02)
            listed = [
                (self.tokens.encode(f" {letter}", add_special_tokens=False)[-1], math.log(max(p, 1e-9)))
                for letter, p in zip(LETTERS, f, strict=False)
            ]
            listed.sort(key=lambda each: -each[1])
            yield Step(listed[0][0], listed[0][1], 0.5, self.name, tuple(listed[: sampling.top_logprobs]), "length")
        finally:
            self.open -= 1

    async def score(self, ids: Sequence[int], top_logprobs: int = 0) -> list[Step]:
        return [Step(token, -3.0, 2.0, self.name) for token in ids[1:]]


def job_of(engine: Guesser, messages: Sequence[Mapping[str, Any]], **services: Any) -> Job:
    job = asking({engine.name: engine}, engine.name, "Hello.", None, max_tokens=400)
    named = {"tasks": {"animals": ANIMALS, "small": SMALL, "triage": AskTask.load(ready_tasks()["triage"])}}
    return replace(job, messages=messages, services=replace(job.services, **named | services))


async def turn(job: Job, **options: Any) -> tuple[str, dict[str, Any]]:
    policy = ConformalPursuit(**options)
    await policy.check(job)
    ids = []
    async for step in Proceed((policy,))(job):
        job.report.observe(step)
        ids.append(step.token)
    return job.writer.tokens.decode(ids), job.report.as_dict()["asking"]


async def play(
    engine: Guesser, task: AskTask, truth: int, name: str, **options: Any
) -> tuple[int, str, dict[str, Any]]:
    """Answer its questions until it guesses: how many it asked, the guess, and the last report."""
    messages: list[dict[str, str]] = [{"role": "user", "content": "Hello."}]
    while True:
        said, told = await turn(job_of(engine, messages), task=name, predictor="table", **options)
        if "guess" in told:
            return told["asked"], told["guess"], told
        question = task.questions.index(said.rsplit("\n", 1)[-1])
        answer = "Yes, it does." if task.answer(truth, question) else "no"
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": answer}]


def test_answers_and_conversations() -> None:
    assert [yes_or_no(t) for t in ("Yes.", "  nope", "I do not know", "NO!", "", "yes and no")] == [
        True, False, None, False, None, True,
    ]  # fmt: skip
    messages = [
        *conversation(SMALL, [Asked(1, True), Asked(0, False)]),
        {"role": "assistant", "content": "Think of a pet.\n\nIs it golden?"},
        {"role": "user", "content": "hard to say"},
    ]
    found = read(messages, SMALL)
    assert found.asked == (Asked(1, True), Asked(0, False), Asked(2, None))
    assert found.known == found.asked[:2]
    guessed = [*messages, {"role": "assistant", "content": "It is: fish."}]
    assert read([*guessed, {"role": "user", "content": "yes"}], SMALL).truth == 3
    assert read([*guessed, {"role": "user", "content": "No, a gold fish"}], SMALL).truth == 2
    assert read([*guessed, {"role": "user", "content": "no"}], SMALL).truth is None


def test_probabilities_of_letters(tokens: TokenText) -> None:
    ids = {letter: tokens.encode(letter, add_special_tokens=False)[0] for letter in "ABX"}
    job = job_of(Guesser(tokens, SMALL), ())
    listed = [(ids["B"], math.log(0.5)), (ids["A"], math.log(0.25)), (ids["X"], math.log(0.1))]
    f = of_alternatives(job, listed, 3)
    assert f.tolist() == pytest.approx([0.25 / 0.8, 0.5 / 0.8, 0.05 / 0.8])
    odds = by_table(SMALL, [Asked(0, True), Asked(1, None)], 0.1)
    assert odds.tolist() == pytest.approx([0.1 / 1.2, 0.9 / 1.2, 0.1 / 1.2, 0.1 / 1.2])


@pytest.mark.parametrize("name", ["animals", "triage"])
def test_ready_tasks_can_be_solved(name: str) -> None:
    task = AskTask.load(ready_tasks()[name])
    assert len({task.affirmed[each] for each in task.hypotheses}) == len(task.hypotheses)


def test_sets_of_fresh_histories_hold_the_truth() -> None:
    rng = random.Random(7)
    tau = taus(from_table(ANIMALS, 0.05, 8, count=400), 0.1)

    def predict(asked: Sequence[Asked]) -> np.ndarray:
        wrong = [Asked(each.question, bool(each.answer) != (rng.random() < 0.05)) for each in asked]
        return by_table(ANIMALS, wrong, 0.05)

    assert 0.87 <= coverage(tau, predict, ANIMALS, 150, rng) <= 0.95  # many probabilities are level


async def test_it_asks_few_questions_and_guesses_right(tokens: TokenText) -> None:
    engine = Guesser(tokens, ANIMALS)
    counts: dict[str, list[int]] = {"c_ip": [], "random": []}
    right = dict.fromkeys(counts, 0)
    for truth in range(0, 20, 3):
        for select, own in counts.items():
            asked, guess, _ = await play(engine, ANIMALS, truth, "animals", select=select)
            own.append(asked)
            right[select] += guess == ANIMALS.hypotheses[truth]
    assert right["c_ip"] == 7
    assert fmean(counts["c_ip"]) < fmean(counts["random"])
    assert max(counts["c_ip"]) <= 12
    assert engine.asked == 0, "the table needs no model"


@pytest.mark.parametrize("alpha", [0.2, 0.3])
async def test_an_empty_set_is_no_answer(tokens: TokenText, alpha: float) -> None:
    engine = Guesser(tokens, ANIMALS)
    for truth in (0, 7, 15):
        asked, guess, told = await play(engine, ANIMALS, truth, "animals", alpha=alpha)
        assert (asked >= 3, guess, told["stopped"]) == (True, ANIMALS.hypotheses[truth], "set")
        assert told["set"] == [guess]


async def test_reports_and_stops(tokens: TokenText) -> None:
    engine = Guesser(tokens, SMALL)
    said, told = await turn(job_of(engine, conversation(SMALL, [])), task="small", predictor="table")
    assert told["question"] == said
    assert said in SMALL.questions
    assert told["set"] == list(SMALL.hypotheses)
    asked, guess, told = await play(engine, SMALL, 2, "small", error=0.001)
    assert (guess, told["stopped"], told["set"]) == ("gold fish", "set", ["gold fish"])
    assert asked <= 3
    assert (await play(engine, SMALL, 2, "small", length=1, error=0.4))[2]["stopped"] == "length"
    vague = conversation(SMALL, [])
    for question in SMALL.questions:
        vague += [{"role": "assistant", "content": question}, {"role": "user", "content": "who knows"}]
    assert (await turn(job_of(engine, vague), task="small", predictor="table"))[1]["stopped"] == "questions"
    ended = [*conversation(SMALL, []), {"role": "assistant", "content": "It is: dog."}]
    said, told = await turn(
        job_of(engine, [*ended, {"role": "user", "content": "yes"}]), task="small", predictor="table"
    )
    assert (said, told["outcome"], told["truth"]) == ("Good.", "right", "dog")
    said, told = await turn(
        job_of(engine, [*ended, {"role": "user", "content": "no, a cat"}]), task="small", predictor="table"
    )
    assert (told["outcome"], told["truth"]) == ("wrong", "cat")


async def test_the_greeting_comes_once(tokens: TokenText) -> None:
    engine = Guesser(tokens, ANIMALS)
    first, _ = await turn(job_of(engine, conversation(ANIMALS, [])), predictor="table")
    assert first.startswith("Think of one of these animals")
    assert first.endswith("?")
    later, _ = await turn(job_of(engine, conversation(ANIMALS, [Asked(0, True)])), predictor="table")
    assert later in ANIMALS.questions


async def thresholds_of(engine: Guesser, task: AskTask) -> Thresholds:
    rng = random.Random(0)
    true = []
    for k in range(1, len(task.questions) + 1):
        own = []
        for _ in range(60):
            truth = rng.randrange(len(task.hypotheses))
            own.append(float(by_table(task, random_history(task, truth, k, rng), 0.02)[truth]))
        true.append(own)
    return Thresholds(task=task.digest, model="guesser", fingerprint=await fingerprint(engine), true=true)


@pytest.mark.parametrize("select", ["c_ip", "bound", "ip"])
async def test_a_model_is_asked_once_for_each_answer(tokens: TokenText, select: str) -> None:
    engine = Guesser(tokens, ANIMALS)
    fitted = {"mine": await thresholds_of(engine, ANIMALS)}
    job = job_of(engine, conversation(ANIMALS, [Asked(0, True)]), thresholds=fitted)
    said, told = await turn(job, select=select, consider=10)
    assert engine.asked == 1 + 2 * 10
    assert told["tokens"] == {"guesser": 21}
    assert job.report.discarded == 21
    assert said in ANIMALS.questions
    assert told["probabilities"]["dog"] == pytest.approx(by_table(ANIMALS, [Asked(0, True)], 0.02)[0], abs=1e-3)
    assert ConformalPursuit(consider=10).extra_sequences == 21


@pytest.mark.parametrize("select", ["ip", "random"])
async def test_rivals_guess_at_a_set_of_one_where_there_are_thresholds(tokens: TokenText, select: str) -> None:
    engine = Guesser(tokens, ANIMALS)
    fitted = {"mine": await thresholds_of(engine, ANIMALS)}
    known = [Asked(place, ANIMALS.answer(0, place)) for place in range(len(ANIMALS.questions) - 1)]
    options: dict[str, Any] = {"select": select, "length": 40, "epsilon": 0.0}
    _, told = await turn(job_of(engine, conversation(ANIMALS, known), thresholds=fitted), **options)
    assert (told["set"], told["stopped"], told["guess"]) == (["dog"], "set", "dog")
    _, told = await turn(job_of(engine, conversation(ANIMALS, known)), **options)
    assert (len(told["set"]), told.get("guess")) == (20, None), "without any, all are in the set"
    other = {"mine": await thresholds_of(engine, SMALL)}
    with pytest.raises(Unsupported, match="another task"):
        await turn(job_of(engine, conversation(ANIMALS, known), thresholds=other), thresholds="mine", **options)


async def test_thresholds_must_fit(tokens: TokenText) -> None:
    engine = Guesser(tokens, ANIMALS)
    fitted = await thresholds_of(engine, SMALL)
    for services, options, words in (
        ({}, {}, "none are configured"),
        ({"thresholds": {"mine": fitted}}, {}, "another task"),
        ({}, {"thresholds": "other"}, "unknown thresholds 'other'; there are none"),
        ({}, {"task": "plants"}, "unknown task 'plants'; there are animals, small, triage"),
    ):
        with pytest.raises(Unsupported, match=words):
            await turn(job_of(engine, conversation(ANIMALS, []), **services), **options)
    with pytest.raises(Unsupported, match="send messages"):
        await turn(job_of(engine, ()), predictor="table")


async def test_bounds_and_leaving(tokens: TokenText) -> None:
    engine = Guesser(tokens, ANIMALS)
    said, told = await turn(job_of(engine, conversation(ANIMALS, []), extra_tokens=5), select="ip")
    assert told["ended"] == told["stopped"] == "extra_tokens"
    assert said.startswith("It is: "), "its best guess so far"
    engine.patience = 10.0
    running = asyncio.create_task(turn(job_of(engine, conversation(ANIMALS, [])), select="ip"))
    async with asyncio.timeout(30):
        while engine.open == 0:  # noqa: ASYNC110  # the engine has no event for it
            await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert engine.open == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"affirmed": {"cat": ()}}, "an entry for each hypothesis"),
        ({"questions": ("a?", "a?", "b?")}, "all different"),
        ({"affirmed": dict.fromkeys(SMALL.hypotheses, (9,))}, "numbers of questions"),
    ],
)
def test_tasks_are_checked(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        AskTask.model_validate(SMALL.model_dump() | change)
    file = tmp_path / "task.yaml"
    file.write_text("subject: pet\n")
    with pytest.raises(ValueError, match="hypotheses: Field required"):
        AskTask.load(file)
