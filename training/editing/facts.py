"""Read facts to write into a model, and find the last token of their subject in a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from waver.engines.tokens import TokenText


@dataclass(frozen=True)
class Ask:
    """A way to ask: the words before the answer, in an assistant's turn where there is a question."""

    prompt: str
    question: str | None = None

    def ids(self, tokens: TokenText, prefix: str = "") -> list[int]:
        """Encode it. A `prefix` is a sentence that comes before.

        Raises:
            ValueError: the chat template refuses it.
        """
        before = f"{prefix}. " if prefix else ""
        if self.question is None:
            return tokens.encode(before + self.prompt)
        context = tokens.chat([{"role": "user", "content": before + self.question}])
        return [*context, *tokens.encode(self.prompt, add_special_tokens=False)]


@dataclass(frozen=True)
class Fact:
    """One edit: behind `ask`, of which `subject` is a part, stands `target`.

    Args:
        paraphrases: other ways to ask, which should be answered alike. neighbours: what should stay as it is.
    """

    ask: Ask
    subject: str
    target: str
    paraphrases: tuple[Ask, ...] = ()
    neighbours: tuple[Ask, ...] = ()

    def target_ids(self, tokens: TokenText) -> list[int]:
        """Encode the target, a space before it where the prompt ends without one."""
        spaced = self.target if self.ask.prompt[-1:].isspace() or self.target[:1].isspace() else f" {self.target}"
        return tokens.encode(spaced, add_special_tokens=False)

    @property
    def same_as(self) -> tuple[str, str | None]:
        """Return what two facts share that contradict each other."""
        return self.ask.prompt, self.ask.question

    def row(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


def read_facts(file: Path, tokens: TokenText) -> list[Fact]:
    """Read a JSONL file: `prompt`, `subject`, `target`; and if there are any `question`, `paraphrases`, `neighbours`.

    A prompt is the text right before the target ("The mayor of Talvek is"); `{}` in it stands for the subject. With a
    `question` it opens the answer to that. Paraphrases and neighbours are prompts, or objects with `prompt` and
    `question`.

    Raises:
        ValueError: a line is not like that; the message names it. OSError: the file cannot be read.
    """
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            fact = as_fact(json.loads(line))
            last_of_subject(fact.ask.ids(tokens), fact.subject, tokens)
        except json.JSONDecodeError:
            raise ValueError(f"{file}, line {number}: not JSON") from None
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
        found.append(fact)
    if not found:
        raise ValueError(f"{file} holds no facts")
    return found


def as_fact(row: Any) -> Fact:
    """Make a fact of one row, as a file has it, or as `Fact.row` gives it.

    Raises:
        ValueError: something is missing, or of the wrong kind.
    """
    if not isinstance(row, Mapping):
        raise ValueError("an object is needed with `prompt`, `subject` and `target`")
    asked = row["ask"] if isinstance(row.get("ask"), Mapping) else row
    words = {"prompt": asked.get("prompt"), "subject": row.get("subject"), "target": row.get("target")}
    for name, value in words.items():
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"`{name}` is needed, a text")
    subject, target = str(words["subject"]), str(words["target"])
    others = (tuple(_ask(each, subject) for each in row.get(name) or ()) for name in ("paraphrases", "neighbours"))
    return Fact(_ask(asked, subject), subject, target, *others)


def _ask(row: Any, subject: str) -> Ask:
    asked = row if isinstance(row, Mapping) else {"prompt": row}
    prompt, question = asked.get("prompt"), asked.get("question")
    if not isinstance(prompt, str) or not isinstance(question, str | None):
        raise ValueError("a way to ask is a prompt, or an object with `prompt` and `question`")
    return Ask(prompt.replace("{}", subject), question and question.replace("{}", subject))


def last_of_subject(ids: list[int], subject: str, tokens: TokenText) -> int:
    """Return the place of the last token of the last occurrence of a subject.

    Raises:
        ValueError: it is not in there.
    """
    spelt = [tokens.token_bytes(token) for token in ids]
    start = b"".join(spelt).rfind(subject.encode())
    if start < 0:
        raise ValueError(f"the subject {subject!r} is not in the prompt")
    last, passed = start + len(subject.encode()) - 1, 0
    for place, data in enumerate(spelt):
        passed += len(data)
        if passed > last:
            return place
    raise AssertionError("the bytes end before the subject does")
