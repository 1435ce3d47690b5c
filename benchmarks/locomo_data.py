"""Read LoCoMo: ten long conversations between two people, with questions and the turns that answer them.

The data is not part of the repository (CC BY-NC 4.0): https://github.com/snap-research/locomo.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from waver.benchmarks.judged import Judged
from waver.retrieval.base import Document

CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
"""The fifth, questions that the conversation does not answer, has no evidence to find."""
EVIDENCE = re.compile(r"D\d{1,4}:\d{1,4}")
SESSION = re.compile(r"session_(\d{1,4})")
TUNED = 4
"""Conversations on whose questions weights are compared; it is measured on those of the others."""
TIME = "%I:%M %p on %d %B, %Y"


@dataclass(frozen=True)
class Said:
    """A turn: its id in the data, its session, and when the session took place."""

    id: str
    session: int
    speaker: str
    text: str
    time: datetime


@dataclass(frozen=True)
class Question:
    """A question, its category, the ids of the turns that answer it, and the answer."""

    text: str
    category: int
    evidence: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Conversation:
    """One conversation of the data."""

    name: str
    turns: tuple[Said, ...]
    questions: tuple[Question, ...]


def load(data: Path) -> list[Conversation]:
    """Read all conversations of the archive, in the order of their names.

    Raises:
        ValueError: it is not LoCoMo's.
    """
    with zipfile.ZipFile(data) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".json"))
        found = [_conversation(Path(name).stem, json.loads(archive.read(name))) for name in names]
    if not found:
        raise ValueError(f"{data} holds no conversations")
    return found


def _conversation(name: str, data: Mapping[str, Any]) -> Conversation:
    numbers = sorted(int(match[1]) for key in data if (match := SESSION.fullmatch(key)))
    turns = [
        Said(each["dia_id"], number, each["speaker"], each["text"],
             datetime.strptime(data[f"session_{number}_date_time"], TIME).replace(tzinfo=UTC))
        for number in numbers
        for each in data[f"session_{number}"]
        if each["text"].strip()
    ]  # fmt: skip
    known = {turn.id for turn in turns}
    questions = []
    for each in data["qa"]:
        evidence = tuple(dict.fromkeys(e for part in each["evidence"] for e in EVIDENCE.findall(part) if e in known))
        if evidence and each["category"] in CATEGORIES:
            questions.append(Question(each["question"], each["category"], evidence, str(each["answer"])))
    return Conversation(name, tuple(turns), tuple(questions))


def session_of(turn: str) -> int:
    """Return the session of a turn's id, as in `D12:3`."""
    return int(turn[1:].partition(":")[0])


def sessions_of(turns: Sequence[str]) -> list[int]:
    """Return the sessions of turns, each at the place of its first one."""
    return list(dict.fromkeys(map(session_of, turns)))


def judged(data: Path, split: str) -> Judged:
    """Return all turns as documents, and the questions of some conversations with their evidence as judgements.

    Args:
        split: `train` for the first conversations by name, else the others.
    """
    every = load(data)
    documents = {
        id: Document(id, f"{turn.speaker}: {turn.text}")
        for each in every
        for turn in each.turns
        for id in (f"{each.name} {turn.id}",)
    }
    asked = {
        f"question {each.name} {i}": (question.text, {f"{each.name} {turn}": 1 for turn in question.evidence})
        for each in (every[:TUNED] if split == "train" else every[TUNED:])
        for i, question in enumerate(each.questions)
    }
    texts = {key: text for key, (text, _) in asked.items()}
    return Judged(documents, texts, {key: evidence for key, (_, evidence) in asked.items()})
