"""Sample a model's own answers to questions through a live engine, several to each and in several ways.

Each finished question is a line of a file, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from waver import job
from waver.concurrency import together
from waver.engines.base import Engine, Sampling, Unsupported
from waver.engines.tokens import TokenText
from waver.training.probe.labels import Answers, Trace
from waver.training.tasks.rewards import Reward

THINK_END = "</think>"
"""End of the thinking; the text behind it is the answer."""


@dataclass(frozen=True)
class Way:
    """A way to answer: words that open the answer, sampling, the most tokens, and the number of answers."""

    words: str
    temperature: float
    top_p: float
    max_tokens: int
    samples: int


@dataclass(frozen=True)
class ProbeRun:
    """Everything that the answers depend on. A stopped run goes on only as the same one."""

    model: str
    questions: str
    ways: dict[str, Way]
    seed: int


Opening = Callable[[TokenText, Sequence[int]], Sequence[int]]
"""The ids of a way's words behind a prompt, as serving puts them there."""


@dataclass(frozen=True)
class Asking:
    """Settings that all questions share. `openings` are for ways whose words are not simply put behind the prompt;
    `seed` makes every answer a function of it and of the question's place."""

    engine: Engine
    ways: Mapping[str, Way]
    openings: Mapping[str, Opening]
    reward: Reward
    at_once: int
    seed: int

    def prompt(self, question: str, name: str) -> Sequence[int]:
        """Return the question as the user's turn, and the words that a way's answer begins with."""
        if name in self.openings:
            asked = prompt(self.engine, question, "")
            return [*asked, *self.openings[name](self.engine.tokens, asked)]
        return prompt(self.engine, question, self.ways[name].words)


def prompt(engine: Engine, question: str, words: str) -> list[int]:
    """Return the question as the user's turn, and an answer that begins with `words`, whose control tokens count as
    such."""
    asked = engine.tokens.chat([{"role": "user", "content": question}])
    return [*asked, *engine.tokens.encode(words, add_special_tokens=False)] if words else asked


async def answer(engine: Engine, ids: Sequence[int], how: Sampling) -> tuple[str, Trace]:
    """Return one answer; whether it is right is not known yet."""
    async with aclosing(engine.generate(ids, how)) as stream:
        steps = [step async for step in stream]
    text = engine.tokens.decode([step.token for step in steps])
    entropy = sum(step.entropy for step in steps) / len(steps)
    return text, Trace(False, len(steps), entropy, steps[-1].finish == "length")


def judge(reward: Reward, row: Mapping[str, Any], texts: Sequence[str]) -> list[bool]:
    """Tell which answers a reward function, called as TRL calls one, gives at least one half."""
    said = [[{"role": "assistant", "content": text.rpartition(THINK_END)[2]}] for text in texts]
    asked = [[{"role": "user", "content": row["question"]}]] * len(texts)
    columns = {name: [value] * len(texts) for name, value in row.items()}
    return [value >= 0.5 for value in reward(prompts=asked, completions=said, **columns)]


async def ask(asking: Asking, place: int, row: Mapping[str, Any], free: asyncio.Semaphore) -> dict[str, Answers]:
    """Return all answers to one question, by way."""

    async def one(name: str, way: Way, number: int, ids: Sequence[int]) -> tuple[str, Trace]:
        draw = random.Random(f"probe:{asking.seed}:{place}:{name}:{number}").getrandbits(32)
        how = Sampling(way.temperature, way.top_p, max_tokens=way.max_tokens, seed=draw, logprobs=False)
        async with free:
            try:
                return await answer(asking.engine, ids, how)
            except Unsupported as error:
                raise Unsupported(f"question {place + 1}: {error}", error.param) from error

    found = {}
    for name, way in asking.ways.items():
        ids = asking.prompt(row["question"], name)
        told = await asyncio.gather(*(one(name, way, number, ids) for number in range(way.samples)))
        right = await asyncio.to_thread(judge, asking.reward, row, [text for text, _ in told])
        found[name] = Answers.of(
            [Trace(ok, t.tokens, t.entropy, t.cut) for ok, (_, t) in zip(right, told, strict=True)]
        )
    return found


async def ask_all(
    asking: Asking, rows: Sequence[Mapping[str, Any]], file: Path, advance: Callable[[], None]
) -> list[dict[str, Answers]]:
    """Return the answers to every question, taken from `file` where they stand there already; `advance` is called for
    each.

    Raises:
        Unsupported: the engine refuses a question. EngineError: it died. Whatever a reward function raises.
    """
    done = read(file)
    free = asyncio.Semaphore(asking.at_once)
    fewest = min(way.samples for way in asking.ways.values())
    begun = asyncio.Semaphore(1 + 2 * asking.at_once // fewest)  # keeps the engine full, and loses little when stopped

    async def one(place: int, row: Mapping[str, Any]) -> None:
        async with begun:
            found = await ask(asking, place, row, free)
        job.append_line(file, {"place": place, **{name: asdict(answers) for name, answers in found.items()}})
        done[place] = found
        advance()

    for _ in done:
        advance()
    await together(*(one(place, rows[place]) for place in range(len(rows)) if place not in done))
    return [done[place] for place in range(len(rows))]


def read(file: Path) -> dict[int, dict[str, Answers]]:
    """Read the finished questions of a file, by place."""
    lines = job.read_lines(file)
    return {line.pop("place"): {name: Answers(**told) for name, told in line.items()} for line in lines}


async def states(engine: Engine, rows: Sequence[Mapping[str, Any]], words: str) -> torch.Tensor:
    """Return hidden states at the end of each question's probe prompt, `[questions, hidden]`."""
    return torch.stack(
        await asyncio.gather(*(engine.hidden_state(prompt(engine, row["question"], words)) for row in rows))
    )
