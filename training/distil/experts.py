"""Ask an engine for its next-token distributions on given answers: its most likely tokens, or tokens that it draws."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from waver.concurrency import together
from waver.engines.base import Engine, Sampling, Unsupported
from waver.training.distil.divergence import Expert

Made = TypeVar("Made")
AT_ONCE = 16
"""Answers that an engine reads at a time."""


@dataclass(frozen=True)
class Told:
    """Everything that an expert says of some answers.

    Args:
        expert: its tokens, `[B, T, K]`. weight: `[B, T]`, 1 for each position that was asked about, or more where it
            stands for others; 0 for one that was not.
    """

    expert: Expert
    weight: torch.Tensor


class Source(Protocol):
    """An expert outside of the model that is trained."""

    def tell(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], width: int, step: int) -> Told:
        """Return what it says of each token of the answers, padded to a width."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Asked:
    """An engine that is asked from code that is not asynchronous.

    Raises:
        ValueError: it has another tokenizer than the student, so that their tokens cannot be compared.
    """

    def __init__(self, engine: Engine, vocabulary: dict[str, int]) -> None:
        if engine.tokens.tokenizer.get_vocab() != vocabulary:
            raise ValueError(
                f"engine {engine.name!r} has another tokenizer than the model: an expert must know the same tokens"
            )
        self.engine = engine
        self.loop = asyncio.new_event_loop()

    def wait(self, work: Coroutine[Any, Any, Made]) -> Made:
        """Run to the end."""
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        """Close the engine."""
        self.loop.run_until_complete(self.engine.aclose())
        self.loop.close()


class TopTokens(Asked):
    """The most likely tokens of an engine at each position, in one pass over an answer.

    What it does not name is the tail, whose mass is known: cross-entropies are bounded from below.
    """

    def __init__(self, engine: Engine, vocabulary: dict[str, int], top_k: int) -> None:
        super().__init__(engine, vocabulary)
        self.top_k = top_k

    def tell(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], width: int, step: int) -> Told:
        return self.wait(self._tell(prompts, answers, width))

    async def _tell(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], width: int) -> Told:
        shape = (len(answers), width, self.top_k)
        ids, logq = torch.zeros(shape, dtype=torch.long), torch.full(shape, -math.inf)
        logq[..., 0] = 0.0  # padding: a distribution like any other, of weight 0
        weight = torch.zeros(shape[:2])
        free = asyncio.Semaphore(AT_ONCE)

        async def one(row: int) -> None:
            async with free:
                steps = await self.engine.score([*prompts[row], *answers[row]], self.top_k)
            for place, step in enumerate(steps[len(prompts[row]) - 1 :]):
                named = step.top_logprobs[: self.top_k]
                if not named:
                    raise Unsupported(f"engine {self.engine.name!r} names no likely tokens of a given text")
                ids[row, place, : len(named)] = torch.tensor([token for token, _ in named])
                logq[row, place, : len(named)] = torch.tensor([value for _, value in named])
                weight[row, place] = 1.0

        await together(*(one(row) for row in range(len(answers)) if answers[row]))
        return Told(Expert(ids, logq), weight)


class Samples(Asked):
    """One token that an engine draws at each state, or at a share of the states: all that a black box gives.

    The cross-entropy has the unbiased estimate -ln p(drawn token). The student's own token is never taken for the
    expert's.
    """

    def __init__(self, engine: Engine, vocabulary: dict[str, int], share: float, seed: int) -> None:
        super().__init__(engine, vocabulary)
        self.share, self.seed = share, seed

    def tell(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], width: int, step: int) -> Told:
        return self.wait(self._tell(prompts, answers, width, step))

    async def _tell(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], width: int, step: int
    ) -> Told:
        ids, weight = torch.zeros(len(answers), width, 1, dtype=torch.long), torch.zeros(len(answers), width)
        free = asyncio.Semaphore(AT_ONCE)

        async def one(row: int, place: int, seed: int) -> None:
            state = [*prompts[row], *answers[row][:place]]
            how = Sampling(max_tokens=1, seed=seed, ignore_eos=False, logprobs=False)
            async with free, aclosing(self.engine.generate(state, how)) as steps:
                async for drawn in steps:
                    ids[row, place, 0] = drawn.token
                    weight[row, place] = 1 / self.share

        rng = random.Random(f"distil:{self.seed}:{step}")
        asked = []
        for row, answer in enumerate(answers):
            for place in range(len(answer)):
                seed = rng.getrandbits(32)
                if rng.random() < self.share:
                    asked.append(one(row, place, seed))
        await together(*asked)
        return Told(Expert(ids, torch.zeros(*ids.shape), complete=True), weight)
