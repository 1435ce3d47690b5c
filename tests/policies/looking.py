"""Jobs that can look things up: the bundled models, a few documents, and an engine that plays back what it is told."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from waver.engines.base import Engine, Sampling, Step
from waver.engines.sequence import SequenceState as Decoding
from waver.engines.tokens import TokenText
from waver.policies.base import Policy, Proceed
from waver.policies.job import Job, UserTurn
from waver.policies.report import Report
from waver.policies.services import Services
from waver.retrieval.library import Library


@dataclass
class Played:
    """An engine that says `text` with these entropies (nats) and log-probabilities; `asked` holds its prompts, `read`
    what it gave its hidden state for: `passing` says whether it does so beside an answer too."""

    tokens: TokenText
    text: str
    entropies: Sequence[float] = (0.0,)
    logprobs: Sequence[float] = (0.0,)
    gaps: Sequence[float] = (9.0,)
    weights: torch.Tensor | None = None
    state: torch.Tensor | None = None
    name: str = "played"
    parameters: int = 1
    context_length: int = 1024
    passing: bool = True
    exposes: frozenset[str] = frozenset({"attention"})
    asked: list[str] = field(default_factory=list)
    sampled: list[Sampling] = field(default_factory=list)
    read: list[tuple[int, ...]] = field(default_factory=list)
    made: int = 0
    open: int = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        self.asked.append(self.tokens.decode(prompt_ids))
        self.sampled.append(sampling)
        said = [*self.tokens.encode(self.text), *self.tokens.eos_ids[:1]]
        decoding = Decoding(prompt_ids, sampling, self.tokens.eos_ids)
        self.open += 1
        try:
            finish = None
            while finish is None:
                at = len(decoding.ids) - decoding.start
                entropy, gap = self.entropies[at % len(self.entropies)], self.gaps[at % len(self.gaps)]
                finish = decoding.accept(said[at], entropy, self.context_length)
                self.made += 1
                logprob = self.logprobs[at % len(self.logprobs)]
                top = ((said[at], -0.1), (0, -0.1 - gap))[: sampling.top_logprobs]
                state = None
                if self.passing and at == 0 and (place := sampling.state_at(prompt_ids)) is not None:
                    state = await self.hidden_state(prompt_ids[: place + 1])
                yield Step(said[at], logprob, entropy, self.name, top, finish, state=state)
        finally:
            self.open -= 1

    async def hidden_state(self, ids: Sequence[int], depth: float | None = None) -> torch.Tensor:
        """The given state, whatever is read."""
        assert self.state is not None
        self.read.append(tuple(ids))
        return self.state

    async def score(self, ids: Sequence[int], top_logprobs: int = 0) -> list[Step]:
        """The tokens as they are, each with an entropy of 2 nats and a log-probability of -3."""
        return [Step(token, -3.0, 2.0, self.name) for token in ids[1:]]

    async def attention(self, ids: Sequence[int], start: int) -> torch.Tensor:
        """The given `[new, new]` weights among the new tokens, and an even share of 1 for all that is before them."""
        assert self.weights is not None
        new = len(ids) - start
        return torch.cat([torch.full((1, new, start), 1 / start), self.weights[None, :new, :new]], dim=2)


def asking(engines: Mapping[str, Any], engine: str, text: str, library: Library | None, **sampling: Any) -> Job:
    """A job for a question to one of the engines."""
    tokens: TokenText = engines[engine].tokens

    def with_context(words: str) -> list[int]:
        return tokens.chat([{"role": "user", "content": words + text}])

    how = Sampling(**{"temperature": 0.0, "max_tokens": 60, **sampling})
    report = Report(parameters={engine: engines[engine].parameters})
    return Job(tuple(with_context("")), how, engine, Services(engines, library), report, UserTurn(text, with_context))


async def answer(job: Job, *policies: Policy) -> tuple[str, dict[str, Any]]:
    """The answer's text, and the report as a response has it."""
    ids = []
    async for step in Proceed(policies)(job):
        job.report.observe(step)
        ids.append(step.token)
    return job.writer.tokens.decode(ids), job.report.as_dict()


def only(engine: Engine | Played) -> dict[str, Any]:
    return {engine.name: engine}
