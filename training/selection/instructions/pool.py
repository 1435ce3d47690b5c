"""Read a pool of examples a few at a time, so that one of any size fits into memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from waver.engines.tokens import TokenText
from waver.training.texts import Text, as_text

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One example: its row, its line in the file, and its tokens."""

    row: Row
    line: int
    text: Text


class Pool:
    """The examples of a JSONL file; what is kept in memory is where each begins and how many tokens it learns.

    Args:
        length: the most tokens of an example; the rest is cut off.

    Raises:
        ValueError: a line is no example, nothing of it is left to learn, or the lines have several forms; the message
            names it. OSError: the file cannot be read.
    """

    def __init__(self, file: Path, tokens: TokenText, length: int, advance: Callable[[], None] = lambda: None) -> None:
        self.file, self._tokens, self._length = file, tokens, length
        starts: list[int] = []
        lines: list[int] = []
        learned: list[int] = []
        self.form = ""
        place = 0
        with file.open("rb") as opened:
            for number, line in enumerate(opened, 1):
                if line.strip():
                    example = self._example(line, number)
                    starts.append(place)
                    lines.append(number)
                    learned.append(example.text.learned)
                    form = trl_form(example.row)
                    if self.form not in ("", form):
                        raise ValueError(f"{file}, line {number}: a {form} among examples of {self.form}: use one form")
                    self.form = form
                    advance()
                place += len(line)
        if not starts:
            raise ValueError(f"{file} holds no examples")
        self._starts, self.lines = np.array(starts, np.int64), np.array(lines, np.int64)
        self.learned = np.array(learned, np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def at(self, places: Sequence[int]) -> Iterator[Example]:
        """Yield the examples at these places, in their order."""
        with self.file.open("rb") as opened:
            for place in places:
                opened.seek(int(self._starts[place]))
                yield self._example(opened.readline(), int(self.lines[place]))

    def _example(self, line: bytes, number: int) -> Example:
        try:
            row = json.loads(line)
            text = as_text(row, self._tokens)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise ValueError(f"{self.file}, line {number}: not JSON") from None
        except ValueError as error:
            raise ValueError(f"{self.file}, line {number}: {error}") from None
        if min(len(text.ids), self._length) <= text.start:
            raise ValueError(f"{self.file}, line {number}: there is nothing to learn within {self._length} tokens")
        return Example(row, number, Text(text.ids[: self._length], text.start))


def trl_form(row: Row) -> str:
    """Return the form in which TRL's `SFTTrainer` reads a row: `text`, `prompt` (with `completion`) or `messages`."""
    if isinstance(row.get("text"), str):
        return "text"
    return "prompt" if isinstance(row.get("prompt"), str) else "messages"


def trl_row(row: Row) -> dict[str, Any]:
    """Return a row as TRL's `SFTTrainer` reads it; a `question` with its `answer` becomes `messages`."""
    form = trl_form(row)
    if form == "text":
        return {"text": row["text"]}
    if form == "prompt":
        return {"prompt": row["prompt"], "completion": row["completion"]}
    if "messages" in row:
        return {"messages": row["messages"]}
    asked = {"role": "user", "content": row["question"]}
    return {"messages": [asked, {"role": "assistant", "content": row["answer"]}]}


def written(row: Row) -> str:
    """Return a row as one text, each turn behind its role."""
    own = trl_row(row)
    if "text" in own:
        return str(own["text"])
    turns = own.get("messages") or [
        {"role": "user", "content": own["prompt"]}, {"role": "assistant", "content": own["completion"]},
    ]  # fmt: skip
    return "\n".join(f"<|{turn['role']}|>\n{turn['content']}" for turn in turns)
