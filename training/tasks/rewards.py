"""Make tasks whose answers can be checked: sums, puzzles, word problems as in GSM8K, Python, Verilog, or with a reward
of your own."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from waver import knights
from waver.answers import contains, last_number, number
from waver.python_tests import AT_ONCE, code_of
from waver.python_tests import run as run_tests
from waver.training.pair.world import TASKS, draw, score_text
from waver.training.tasks.instructions import follows, no_constraints
from waver.training.tasks.verilog import VerilogTask, rewards

if TYPE_CHECKING:
    from waver.goals import Task

Reward = Callable[..., list[float]]
Flaw = Callable[[dict[str, Any]], str | None]


@dataclass(frozen=True)
class Verifiable:
    """Questions and their checker.

    `train` and `held_out` are rows with `question` and the columns that the reward function takes by name, beside
    `prompts` and `completions`. `correct` is the least reward of a right answer; None if the reward does not say.
    `also` are further reward functions, which do not say what is right. `goals` reads from a question what a search for
    its answer goes by.
    """

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    reward: Reward
    correct: float | None = None
    also: tuple[Reward, ...] = ()
    goals: Callable[[str], Task] | None = None


def text(completion: Any) -> str:
    """Return the text of a completion, a string or a list of messages."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def arithmetic(rows: int, held_out: int, seed: int, steps: tuple[int, int]) -> Verifiable:
    """Return chains of additions and subtractions of the bundled world; a reward of 1 for the right sum.

    Training draws from a stream of its own, `held_out` is `waver.training.pair.world.draw("arithmetic", seed)`.
    """
    rng = random.Random(f"rl:arithmetic:{seed}")
    drawn = [TASKS["arithmetic"](rng, steps=steps) for _ in range(rows)]
    kept = draw("arithmetic", seed, held_out, steps=steps)

    def right(completions: list[Any], question: list[str], answer: list[str], **_: Any) -> list[float]:
        asked = zip(question, answer, map(text, completions), strict=True)
        return [float(score_text("arithmetic", *row)) for row in asked]

    train, test = ([{"question": item.prompt, "answer": item.answer} for item in items] for items in (drawn, kept))
    return Verifiable(train, test, right, correct=1.0, goals=_sum_goals)


def puzzles(rows: int, held_out: int, seed: int, people: tuple[int, int]) -> Verifiable:
    """Return puzzles of knights and knaves, of so many people; a reward of 1 where every statement fits what a text
    says of everybody."""

    def drawn(stream: str, count: int) -> list[dict[str, Any]]:
        rng = random.Random(f"rl:knights:{stream}:{seed}")
        made = (knights.make(rng.randint(*people), rng.getrandbits(32)) for _ in range(count))
        return [{"question": each.text} for each in made]

    def right(completions: list[Any], question: list[str], **_: Any) -> list[float]:
        read = map(knights.read, question)
        return [float(each.solved_by(text(said))) for each, said in zip(read, completions, strict=True)]

    return Verifiable(drawn("train", rows), drawn("test", held_out), right, correct=1.0, goals=_knights_goals)


def same_number(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """Reward 1 where the last number of a completion is that of the answer; GSM8K writes it after `####`."""
    wanted = [last_number(each) for each in answer]
    pairs = zip(completions, wanted, strict=True)
    return [float(known is not None and number(text(said), known)) for said, known in pairs]


def holds_answer(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """Reward 1 where a completion holds its answer, or one of a list of answers, as whole words."""

    def one(said: str, known: Any) -> bool:
        return any(contains(said, str(each)) for each in (known if isinstance(known, list) else [known]))

    return [float(one(text(said), known)) for said, known in zip(completions, answer, strict=True)]


def no_number(row: dict[str, Any]) -> str | None:
    """Return the flaw of a row that `same_number` cannot judge by."""
    found = last_number(str(row.get("answer", "")))
    return "`answer` has no number; other answers need --scorer, or --reward" if found is None else None


def _sum_goals(question: str) -> Task:
    from waver.goals import sum_task  # which needs numpy

    return sum_task(question)


def _knights_goals(question: str) -> Task:
    from waver.goals import knights_task

    return knights_task(question)


def verilog_task(row: dict[str, Any]) -> VerilogTask:
    """Return the columns `testbench`, and `top` and `samples` where they are there and not None."""
    return VerilogTask(**{name: row[name] for name in VerilogTask.model_fields if row.get(name) is not None})


def no_testbench(row: dict[str, Any]) -> str | None:
    """Return the flaw of a row that `passes_testbench` cannot judge by."""
    try:
        verilog_task(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return f"`{first['loc'][0]}`: {first['msg']}"
    return None


def passes_testbench(completions: list[Any], testbench: list[str], **columns: Any) -> list[float]:
    """Return the reward of `waver.training.tasks.verilog` for each completion, by the testbench of its row.

    Raises:
        SimulatorMissing: Icarus Verilog is not installed.
    """
    rows = [
        {"testbench": bench} | {name: columns[name][i] for name in ("top", "samples") if name in columns}
        for i, bench in enumerate(testbench)
    ]
    return rewards([text(completion) for completion in completions], [verilog_task(row) for row in rows])


def no_tests(row: dict[str, Any]) -> str | None:
    """Return the flaw of a row that `passes_tests` cannot judge by."""
    tests = row.get("tests")
    good = isinstance(tests, list) and tests and all(isinstance(each, str) for each in tests)
    return None if good else "there is no `tests`, a list of Python snippets that raise nothing behind right code"


def passes_tests(completions: list[Any], tests: list[list[str]], **_: Any) -> list[float]:
    """Reward the share of Python tests that a completion's code passes, in confined processes of its own."""

    def one(said: str, own: list[str]) -> float:
        return sum(run_tests(code_of(said), own)) / len(own)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(one, map(text, completions), tests))


def no_answer(row: dict[str, Any]) -> str | None:
    """Return the flaw of a row that `holds_answer` cannot judge by."""
    return None if row.get("answer") else "there is no `answer`, a text or a list of texts"


SCORERS: dict[str, Reward] = {"number": same_number, "contains": holds_answer}
FLAWS: dict[Reward, Flaw] = {
    same_number: no_number,
    holds_answer: no_answer,
    passes_testbench: no_testbench,
    passes_tests: no_tests,
    follows: no_constraints,
}
"""Checks of a row by reward: a function that describes what is wrong with it, if anything."""


def read_rows(path: Path, reward: Reward) -> list[dict[str, Any]]:
    """Return the lines of a JSONL file, each an object with `question` and what the reward takes (`answer`,
    `testbench`).

    Raises:
        ValueError: a line is not such an object. OSError: the file cannot be read.
    """
    read: list[dict[str, Any]] = []
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {place}: not JSON ({error.msg})") from None
        if not isinstance(row, dict) or not isinstance(row.get("question"), str):
            raise ValueError(f"{path}, line {place}: an object with a string `question` is wanted")
        if (wrong := FLAWS.get(reward, lambda row: None)(row)) is not None:
            raise ValueError(f"{path}, line {place}: {wrong}")
        read.append(row)
    return read


def from_file(
    path: Path, rows: int, held_out: int, seed: int, reward: Reward = same_number, correct: float | None = None
) -> Verifiable:
    """Return questions of a JSONL file (`read_rows`). The last `held_out` lines are kept back. The others are gone
    through in a random order, again and again.

    Args:
        correct: the least reward of a right answer; 1 for the rewards of this module if left out.

    Raises:
        ValueError: a line is not as it should be, or too few of them are there.
    """
    read = read_rows(path, reward)
    if len(read) <= held_out:
        raise ValueError(f"{path} has {len(read)} questions, and {held_out} are to be held out: none is left")
    split = len(read) - held_out
    if correct is None and reward in FLAWS:
        correct = 1.0
    return Verifiable(_again(read[:split], rows, seed), read[split:], reward, correct)


def _again(items: Sequence[dict[str, Any]], rows: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(f"rl:file:{seed}")
    found: list[dict[str, Any]] = []
    while len(found) < rows:
        found += rng.sample(items, len(items))
    return found[:rows]


def custom(name: str) -> Reward:
    """Return the function `module:function`, a reward or a tool, looked for in the working directory too.

    Raises:
        ValueError: there is none.
    """
    module, _, function = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no function {name!r}; it is named module:function ({error})") from None
    return found
