"""Read preference pairs: a prompt, a chosen and a rejected answer, and which of their tokens the model wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waver.engines.tokens import TokenText
from waver.training.lines import json_lines

FORMS = (
    "`question` or `prompt`, `chosen` and `rejected` as texts; or `prompt_ids`, `chosen_ids` and `rejected_ids` as "
    "tokens of this model, with `chosen_mask` and `rejected_mask` where the model did not write them all"
)


@dataclass(frozen=True)
class Answer:
    """Tokens behind a prompt; `mask` is 1 for those that the model wrote, 0 for a tool's result."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]

    def cut(self, length: int) -> Answer:
        return Answer(self.ids[:length], self.mask[:length])


@dataclass(frozen=True)
class Pair:
    """A preference; `prompt` in tokens."""

    prompt: tuple[int, ...]
    chosen: Answer
    rejected: Answer


def read_pairs(file: Path, tokens: TokenText, length: int) -> list[Pair]:
    """Read a JSONL file of pairs.

    Args:
        length: the most tokens of a prompt with an answer; the answer is cut.

    Raises:
        ValueError: a line has none of the forms, or nothing of an answer is left; the message names it.
        OSError: the file cannot be read.
    """
    found = []
    for where, row in json_lines(file):
        try:
            found.append(_fitting(as_pair(row, tokens), length))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if not found:
        raise ValueError(f"{file} holds no pairs")
    return found


def as_pair(row: Any, tokens: TokenText) -> Pair:
    """Encode one row of a file of pairs.

    Raises:
        ValueError: it has none of the forms.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"an object is needed with {FORMS}")
    if "prompt_ids" in row:
        prompt = _ids(row, "prompt_ids", tokens)
        return Pair(prompt, _answer(row, "chosen", tokens), _answer(row, "rejected", tokens))
    if not all(isinstance(row.get(key), str) for key in ("chosen", "rejected")):
        raise ValueError(f"an object is needed with {FORMS}")
    if isinstance(row.get("question"), str):
        prompt = tuple(tokens.chat([{"role": "user", "content": row["question"]}]))
    elif isinstance(row.get("prompt"), str):
        prompt = tuple(tokens.encode(row["prompt"]))
    else:
        raise ValueError(f"an object is needed with {FORMS}")
    return Pair(prompt, encode_answer(row["chosen"], tokens), encode_answer(row["rejected"], tokens))


def encode_answer(text: str, tokens: TokenText) -> Answer:
    """Encode an answer as the model ends it, with its end token."""
    ids = (*tokens.encode_plain(text), *tokens.eos_ids[:1])
    return Answer(ids, (1,) * len(ids))


def as_row(pair: Pair) -> dict[str, Any]:
    """Return the row that `as_pair` reads."""
    return {
        "prompt_ids": list(pair.prompt),
        "chosen_ids": list(pair.chosen.ids),
        "rejected_ids": list(pair.rejected.ids),
        "chosen_mask": list(pair.chosen.mask),
        "rejected_mask": list(pair.rejected.mask),
    }


def _answer(row: Mapping[str, Any], side: str, tokens: TokenText) -> Answer:
    ids = _ids(row, f"{side}_ids", tokens)
    mask = row.get(f"{side}_mask", [1] * len(ids))
    if not isinstance(mask, list) or len(mask) != len(ids) or not all(each in (0, 1) for each in mask):
        raise ValueError(f"`{side}_mask` has a 0 or 1 for each of `{side}_ids`")
    return Answer(ids, tuple(int(each) for each in mask))


def _ids(row: Mapping[str, Any], key: str, tokens: TokenText) -> tuple[int, ...]:
    ids = row.get(key)
    size = len(tokens.tokenizer)
    if not isinstance(ids, list) or not ids or not all(type(each) is int and 0 <= each < size for each in ids):
        raise ValueError(f"`{key}` is a list of token ids from 0 to {size - 1}")
    return tuple(ids)


def _fitting(pair: Pair, length: int) -> Pair:
    room = length - len(pair.prompt)
    cut = Pair(pair.prompt, pair.chosen.cut(max(0, room)), pair.rejected.cut(max(0, room)))
    if not any(cut.chosen.mask) or not any(cut.rejected.mask):
        raise ValueError(f"there is nothing to learn within {length} tokens")
    return cut
