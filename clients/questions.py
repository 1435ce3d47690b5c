"""Read a file of questions with their answers, and judge what a model says."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from waver.answers import NUMBER, SCORERS


class Refused(Exception):
    """A request that cannot be met; the message is for the user."""


@dataclass(frozen=True)
class Question:
    """A question, the answers that count as right (none: it is not known), and its line in the file."""

    line: int
    text: str
    answers: tuple[str, ...] = ()


def read(file: Path) -> list[Question]:
    """Return the questions of a JSONL file: objects with `question`, and with `answer`, a text, a number, or a list of
    them. Empty lines are passed over.

    Raises:
        Refused: the file cannot be read, holds no question, or a line is not as it should be; the message names it.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise Refused(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise Refused(f"{file} is not UTF-8 text.") from error
    found = [_question(number, line, file) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise Refused(f"{file} holds no questions.")
    return found


def _question(number: int, line: str, file: Path) -> Question:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{file}, line {number} is not JSON: {error}.") from None
    question = row.get("question") if isinstance(row, dict) else None
    if not isinstance(question, str) or not question.strip():
        raise Refused(f'{file}, line {number} has no question: write {{"question": "…", "answer": "…"}}.')
    given = row.get("answer")
    listed = given if isinstance(given, list) else [] if given is None else [given]
    answers = [str(each) if type(each) in (int, float) else each for each in listed]
    if not all(isinstance(each, str) and each.strip() for each in answers) or given == []:
        raise Refused(f"{file}, line {number}: `answer` is a text, or a list of texts of which one will do.")
    if re.search(r"[\ud800-\udfff]", question):
        raise Refused(f"{file}, line {number}: the question holds half a character, which no server takes.")
    return Question(number, question, tuple(answers))


def digest(questions: Sequence[Question]) -> str:
    """Return what tells these questions from others: a SHA-256 in hexadecimal."""
    return hashlib.sha256(json.dumps([asdict(each) for each in questions]).encode()).hexdigest()


def check(questions: list[Question], scorer: str, file: Path) -> None:
    """Raises:
    Refused: there is no such scorer, or it cannot compare with one of the answers."""
    if scorer not in SCORERS:
        raise Refused(f"There is no scorer {scorer!r}; there are {', '.join(SCORERS)}.")
    for question in questions if scorer == "number" else ():
        for answer in question.answers:
            if NUMBER.fullmatch(answer.strip()) is None:
                raise Refused(f"{file}, line {question.line}: the answer {answer!r} is no number.")


def right(text: str, question: Question, scorer: str) -> bool:
    """Tell whether a text gives one of the answers."""
    return any(SCORERS[scorer](text, answer) for answer in question.answers)
