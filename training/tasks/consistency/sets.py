"""Read questions in several wordings, each with the passages that were found for it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from waver.training.lines import json_lines

ASK = "Answer in a few words."


@dataclass(frozen=True)
class WordingSet:
    """One question.

    Args:
        questions: its wordings, the first its own. passages: for each wording the texts that were found, best first;
            empty where nothing was looked up. answer: a known answer, or several of which one will do.
    """

    questions: tuple[str, ...]
    passages: tuple[tuple[str, ...], ...] = ()
    answer: str | tuple[str, ...] | None = None

    @property
    def answers(self) -> tuple[str, ...]:
        """The known answers."""
        if self.answer is None:
            return ()
        return (self.answer,) if isinstance(self.answer, str) else self.answer


def asked(question: str, passages: Sequence[str]) -> str:
    """Return what a model is asked: the passages, if there are any, and the question."""
    if not passages:
        return f"{question}\n{ASK}"
    found = "\n\n".join(f"Passage {place}: {text}" for place, text in enumerate(passages, 1))
    return f"{found}\n\nQuestion: {question}\n{ASK}"


def read_sets(file: Path, least: int = 2) -> list[WordingSet]:
    """Read a JSONL file: in each line `questions`, and `passages` (a list for each) and `answer` if they are known.

    Args:
        least: wordings that a question needs.

    Raises:
        ValueError: a line is not as it should be; the message names it. OSError: the file cannot be read.
    """
    found = []
    for where, row in json_lines(file):
        try:
            found.append(_set(row, least))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if not found:
        raise ValueError(f"{file} holds no questions")
    return found


def _set(row: Any, least: int) -> WordingSet:
    questions = row.get("questions") if isinstance(row, Mapping) else None
    if not _texts(questions) or len(set(questions)) < least:
        raise ValueError(f"`questions` is a list of at least {least} different wordings of one question")
    passages = row.get("passages") or []
    if passages and (len(passages) != len(questions) or not all(each == [] or _texts(each) for each in passages)):
        raise ValueError("`passages` is a list of texts for each of the wordings")
    answer = row.get("answer")
    if not (answer is None or isinstance(answer, str) or _texts(answer)):
        raise ValueError("`answer` is a text, or a list of texts of which one will do")
    known = tuple(answer) if isinstance(answer, list) else answer
    return WordingSet(tuple(questions), tuple(map(tuple, passages)), known)


def _texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) and each.strip() for each in value)


def rows_of(sets: Sequence[WordingSet], first: int = 0) -> list[dict[str, Any]]:
    """Return a row for each wording, those of a question side by side: `question`, `set`, and `answer`."""
    return [
        {
            "question": asked(question, each.passages[place] if each.passages else ()),
            "set": first + number,
            "answer": list(each.answers) or None,
        }
        for number, each in enumerate(sets)
        for place, question in enumerate(each.questions)
    ]


def training_rows(
    sets: Sequence[WordingSet], rows: int, held_out: int, prompts: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows to train on, questions in a random order again and again, and rows of those that are held out.

    Args:
        rows: to train on. held_out: rows to keep back, whole questions at the end. prompts: of a step.

    Raises:
        ValueError: a step does not hold whole questions, or none is left to train on.
    """
    counts = {len(each.questions) for each in sets}
    if len(counts) > 1:
        raise ValueError(f"all questions need the same number of wordings, and there are {sorted(counts)}")
    (count,) = counts
    if prompts % count:
        raise ValueError(
            f"a step must hold all {count} wordings of a question: --prompts {prompts} is no multiple of it"
        )
    kept = -(-held_out // count)
    if kept >= len(sets):
        raise ValueError(f"there are {len(sets)} questions, and {kept} are to be held out: none is left")
    taught, test = list(sets[: len(sets) - kept]), sets[len(sets) - kept :]
    rng = random.Random(f"consistency:{seed}")
    order: list[WordingSet] = []
    while len(order) * count < rows:
        order += rng.sample(taught, len(taught))
    return rows_of(order[: rows // count]), rows_of(test, first=len(order))
