"""Read task files: questions with what tells whether an answer to them is right.

A line of JSON has `prompt`, `answer` (a text, a number, or a list of them of which one will do) and `scorer`: `exact`,
`numeric`, `choice`, `contains`, or `python_tests`, which takes `tests` in place of an answer: snippets that raise
nothing behind right code. Lines of GSM8K, SVAMP, MultiArith, MMLU and HumanEval are read as they are.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waver.answers import NUMBER, SCORERS
from waver.clients.questions import Refused
from waver.python_tests import Runner, code_of
from waver.training.pair.world import TASKS, draw

PYTHON = "python_tests"
NAMED: Mapping[str, Callable[[str, str], bool]] = {"numeric": SCORERS["number"], **SCORERS}
"""Scorers by name, those that compare a text with an answer."""
LETTERS = "ABCDEFGHIJ"
WORKED = "Work it out step by step, and end with the answer, a number."
LETTER = "Think briefly, then end with: The answer is X., where X is a letter."
CODE = "Complete this function. Reply with the whole function in one block of Python code."
BUNDLED, BUNDLED_SEED = 2000, 21_000
"""Questions of a task of the bundled pair, and their seed: training never draws from it."""
MARK = "####"
"""Behind it stands the answer of a worked solution of GSM8K."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """A question and what is right. `before` is code that stands before that of an answer, so that a reply with the
    body of a function alone will do."""

    line: int
    prompt: str
    answers: tuple[str, ...]
    scorer: str
    tests: tuple[str, ...] = ()
    before: str = ""

    def asked(self, instruction: str) -> str:
        """Return what a user would write: the question, and what to do with it."""
        return f"{self.prompt}\n\n{instruction}" if instruction else self.prompt


async def is_right(item: Item, text: str, runner: Runner) -> bool:
    """Tell whether a text answers a question; code is run in a confined process."""
    if item.scorer != PYTHON:
        return any(NAMED[item.scorer](text, answer) for answer in item.answers)
    code = code_of(text)
    between = "" if code[:1] in (" ", "\t") else "\n\n"
    return all(await runner.run(item.before + between + code, item.tests))


def read(file: Path, scorer: str | None = None) -> list[Item]:
    """Return the questions of a JSONL file, which may be compressed by gzip.

    Args:
        scorer: what tells right answers where a line does not say it.

    Raises:
        Refused: the file cannot be read, or a line is not as it should be; the message names it.
    """
    if scorer is not None and scorer not in (*NAMED, PYTHON):
        raise Refused(f"There is no scorer {scorer!r}; there are {', '.join((*NAMED, PYTHON))}.")
    items = [_item(number, row, scorer, file) for number, row in _rows(file)]
    if not items:
        raise Refused(f"{file} holds no questions.")
    return items


def instruction_for(file: Path) -> str:
    """Return what is added to the questions of a known set, from the form of its first line; nothing for others."""
    _, row = next(_rows(file), (0, {}))
    shape = next((shape for shape in SHAPES if shape.fits(row)), None)
    return shape.instruction if shape else ""


def is_bundled(file: Path) -> bool:
    """Tell whether a task of the bundled pair is meant, and no file."""
    return not file.exists() and str(file) in TASKS


def tasks(file: Path, scorer: str | None) -> tuple[list[Item], str]:
    """Return the questions of a file, or of a task of the bundled pair, and what is added to each of them.

    Raises:
        Refused: as `read`.
    """
    return (bundled(file.name), "") if is_bundled(file) else (read(file, scorer), instruction_for(file))


def bundled(task: str) -> list[Item]:
    """Draw questions of a task of the bundled pair."""
    scorer = "numeric" if task == "arithmetic" else "contains"
    drawn = draw(task, BUNDLED_SEED, BUNDLED)
    return [Item(i, each.prompt, (each.answer,), scorer) for i, each in enumerate(drawn, 1)]


def digest(items: Sequence[Item]) -> str:
    """Return what tells these questions from others: a SHA-256 in hexadecimal."""
    return hashlib.sha256(json.dumps([vars(each) for each in items], sort_keys=True).encode()).hexdigest()


def draws(items: Sequence[Item], calibration: int, test: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Draw questions to choose settings on, and others to report. Larger draws of the same seed hold smaller ones.

    The test draw is taken from the beginning of a shuffled order and the calibration draw from its end.

    Raises:
        Refused: there are not enough.
    """
    if calibration + test > len(items):
        wanted = f"{calibration} + {test}" if calibration else f"{test}"
        raise Refused(f"{wanted} questions are wanted (calibration and test), and there are {len(items)}.")
    order = list(items)
    random.Random(f"quality:{seed}").shuffle(order)
    return order[len(order) - calibration :], order[:test]


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8-sig")
    except OSError as error:
        raise Refused(f"{file} cannot be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, EOFError) as error:
        raise Refused(f"{file} is not UTF-8 text.") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Refused(f"{file}, line {number} is not JSON: {error}.") from None


def _item(number: int, row: Any, scorer: str | None, file: Path) -> Item:
    where = f"{file}, line {number}"
    if not isinstance(row, dict):
        raise Refused(f"{where} is no JSON object.")
    shape = next((shape for shape in SHAPES if shape.fits(row)), None)
    try:
        own = shape.read(row) if shape else row
    except (TypeError, IndexError, KeyError, AttributeError):
        raise Refused(f"{where} looks like a line of {shape.name if shape else 'a set'}, and is not quite.") from None
    prompt, by, given = own.get("prompt", own.get("question")), own.get("scorer", scorer), own.get("answer")
    answers = [str(each) for each in (given if isinstance(given, list) else [] if given is None else [given])]
    tests, before = own.get("tests", []), own.get("before", "")
    if not isinstance(prompt, str) or not prompt.strip():
        raise Refused(f'{where} has no prompt: write {{"prompt": "…", "answer": "…", "scorer": "exact"}}.')
    if by not in (*NAMED, PYTHON):
        raise Refused(f"{where}: `scorer` is one of {', '.join((*NAMED, PYTHON))}, on each line or as --scorer.")
    if by == PYTHON and not (isinstance(tests, list) and tests and all(isinstance(each, str) for each in tests)):
        raise Refused(f"{where}: {PYTHON} takes `tests`, a list of snippets of Python.")
    if by != PYTHON and not (answers and all(each.strip() for each in answers)):
        raise Refused(f"{where} has no answer: a text, a number, or a list of them of which one will do.")
    for answer in answers:
        if by in ("number", "numeric") and NUMBER.fullmatch(answer.strip()) is None:
            raise Refused(f"{where}: the answer {answer[:40]!r} is no number.")
        if by == "choice" and answer.strip().upper() not in list(LETTERS):
            raise Refused(f"{where}: the answer {answer[:40]!r} is no letter from A to {LETTERS[-1]}.")
    return Item(number, prompt, tuple(answers), str(by), tuple(tests), str(before))


@dataclass(frozen=True)
class _Shape:
    """The form of the lines of a public set."""

    name: str
    fields: tuple[str, ...]
    read: Callable[[Row], Row]
    instruction: str = ""
    mark: str = ""
    """Text that its answers hold, where its fields are called as those of others."""

    def fits(self, row: Any) -> bool:
        named = isinstance(row, dict) and "scorer" not in row and all(field in row for field in self.fields)
        return named and (not self.mark or self.mark in str(row["answer"]))


def _gsm8k(row: Row) -> Row:
    return {"prompt": row["question"], "answer": row["answer"].rpartition(MARK)[2].strip(), "scorer": "numeric"}


def _svamp(row: Row) -> Row:
    body = row["Body"].strip()
    body = body if body.endswith((".", ",")) else f"{body}."
    return {"prompt": f"{body} {row['Question']}", "answer": _plain(row["Answer"]), "scorer": "numeric"}


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _mmlu(row: Row) -> Row:
    options = "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(row["choices"]))
    return {"prompt": f"{row['question']}\n{options}", "answer": LETTERS[row["answer"]], "scorer": "choice"}


def _humaneval(row: Row) -> Row:
    return {
        "prompt": f"{CODE}\n\n```python\n{row['prompt'].strip()}\n```",
        "before": row["prompt"],
        "tests": [f"{row['test']}\n\ncheck({row['entry_point']})"],
        "scorer": PYTHON,
    }


SHAPES = (
    _Shape("HumanEval", ("prompt", "test", "entry_point"), _humaneval),
    _Shape("MMLU", ("question", "choices", "answer"), _mmlu, LETTER),
    _Shape("SVAMP", ("Body", "Question", "Answer"), _svamp, WORKED),
    _Shape(
        "MultiArith",
        ("input", "target"),
        lambda row: {"prompt": row["input"], "answer": row["target"], "scorer": "numeric"},
        WORKED,
    ),
    _Shape("GSM8K", ("question", "answer"), _gsm8k, WORKED, MARK),
)
