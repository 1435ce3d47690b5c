"""Jobs and services with memories: an engine that answers each kind of prompt as it is told."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.policies.looking import Played, asking
from waver.engines.base import Sampling, Step
from waver.engines.tokens import TokenText
from waver.policies.answer import Answer
from waver.policies.job import Caller, Job
from waver.policies.services import Services
from waver.retrieval.embedder import Embedder
from waver.retrieval.memory.config import MemoryConfig
from waver.retrieval.memory.memories import Memories

MODEL = Path(__file__).parents[2] / "models" / "small"


@dataclass
class Speaking(Played):
    """An engine that says what `reply` makes of each prompt."""

    reply: Callable[[str], str] = lambda prompt: "Yes."
    context_length: int = 8192

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        self.text = self.reply(self.tokens.decode(prompt_ids))
        async with aclosing(super().generate(prompt_ids, sampling)) as steps:
            async for step in steps:
                yield step


def speaking(reply: Callable[[str], str], **options: Any) -> Speaking:
    return Speaking(TokenText.load(str(MODEL)), "", reply=reply, **options)


def fact(content: str, **fields: Any) -> dict[str, Any]:
    """A fact as an engine writes it."""
    empty = {"keywords": [], "time": None, "location": None, "persons": [], "entities": [], "topic": "t",
             "salience": "medium"}  # fmt: skip
    return {"content": content, **empty, **fields}


def facts(*contents: str) -> str:
    return json.dumps({"facts": [fact(each) for each in contents]})


class Clock:
    """Time that stands still until it is moved."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def memories_in(folder: Path, embedder: Embedder, clock: Clock, **limits: Any) -> Memories:
    return Memories(folder, MemoryConfig(**limits), lambda: embedder, clock)


def remembering(engine: Speaking, memories: Memories, text: str, user: str = "anna", **sampling: Any) -> Job:
    """A job for a question of a user."""
    job = asking({engine.name: engine}, engine.name, text, None, **sampling)
    services = Services({engine.name: engine}, memories=memories)
    messages: list[Mapping[str, Any]] = [{"role": "user", "content": text}]
    return replace(job, services=services, caller=Caller("key", user), messages=messages)


def ended(text: str, ending: Any = "stop") -> Answer:
    return Answer(text, (1,), ending)
