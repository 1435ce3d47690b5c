"""Read from a conversation what was asked and answered; it is all the state that asking back has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from waver.policies.ask.task import AskTask

YES = frozenset("yes y yeah yep true correct right sure ja oui si".split())
NO = frozenset("no n nope not false wrong never nein non".split())
WORD = re.compile(r"[^\W\d_]+")
GUESS = "It is: {name}."


@dataclass(frozen=True)
class Asked:
    """A question by its place in the task, and what the user said; None where it was neither yes nor no."""

    question: int
    answer: bool | None


@dataclass(frozen=True)
class History:
    """State of a conversation: questions with answers, and where the last thing said was a guess, the place of
    the guess and of what the user then called right (None: it was wrong, or is not known)."""

    asked: tuple[Asked, ...] = ()
    guess: int | None = None
    truth: int | None = None

    @property
    def known(self) -> tuple[Asked, ...]:
        """The questions that were answered."""
        return tuple(each for each in self.asked if each.answer is not None)


def yes_or_no(text: str) -> bool | None:
    """Tell whether a text begins with yes or with no; None where it does neither."""
    first = WORD.search(text.lower())
    if first is None:
        return None
    return True if first[0] in YES else False if first[0] in NO else None


def read(messages: Sequence[Mapping[str, Any]], task: AskTask) -> History:
    """Read a conversation: an assistant's message that ends with a question of the task, and the user's next one."""
    places = {question: i for i, question in enumerate(task.questions)}
    asked: list[Asked] = []
    guess = truth = None
    open_question: int | None = None
    for message in messages:
        text = str(message.get("content") or "").strip()
        if message.get("role") == "assistant":
            guess = _named(text, task) if text.startswith(GUESS.split("{")[0]) else None
            truth = None
            open_question = places.get(text.rsplit("\n", 1)[-1].strip())
        elif message.get("role") == "user":
            if open_question is not None:
                asked.append(Asked(open_question, yes_or_no(text)))
                open_question = None
            elif guess is not None:
                truth = guess if yes_or_no(text) else _named(text, task)
    return History(tuple(asked), guess, truth)


def _named(text: str, task: AskTask) -> int | None:
    """Find the hypothesis that a text names; the longest of several."""
    lower = f" {' '.join(WORD.findall(text.lower()))} "
    found = [i for i, name in enumerate(task.hypotheses) if f" {' '.join(WORD.findall(name.lower()))} " in lower]
    return max(found, key=lambda i: len(task.hypotheses[i]), default=None)
