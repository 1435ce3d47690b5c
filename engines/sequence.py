"""What waits for a slot of an embedded engine: a segment of an answer, or a prompt whose hidden state is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as Ids
from typing import TYPE_CHECKING

import torch

from waver.engines.base import NO_TOKEN, Finish, Sampling, Step
from waver.engines.sampling import Row
from waver.engines.token_counts import TokenCounts
from waver.entropy import RollingEntropy

if TYPE_CHECKING:
    import llguidance


class Reading:
    """A prompt that is read for the hidden state at its end: `depth` is that of `Engine.hidden_state`. `inbox` receives
    the state, `[hidden]` float32 on the CPU, or an error."""

    begun = False

    def __init__(self, ids: Ids[int], depth: float | None) -> None:
        self.ids = list(ids)
        self.depth = depth
        self.slot: int | None = None
        self.inbox: asyncio.Queue[torch.Tensor | Exception] = asyncio.Queue()


class Sequence:
    """A segment of an answer being decoded: its tokens, when it ends, and what its gate sees. `ids` are the prompt and
    the answer so far; `inbox` receives steps, or an error."""

    def __init__(self, prompt_ids: Ids[int], sampling: Sampling, eos_ids: tuple[int, ...]) -> None:
        self.ids = list(prompt_ids)
        self.sampling = sampling
        self.start = len(self.ids) if sampling.answer_start is None else sampling.answer_start
        self.born = len(self.ids)
        self.ends = (*(() if sampling.ignore_eos else eos_ids), *sampling.stop_token_ids)
        self.matcher: llguidance.LLMatcher | None = None
        self.slot: int | None = None
        self.read_at = sampling.state_at(self.ids)
        self.state: torch.Tensor | None = None
        """The hidden state that its first step is to bring."""
        self.inbox: asyncio.Queue[Step | Exception] = asyncio.Queue()
        self._counts = TokenCounts(), TokenCounts()
        gate = sampling.gate
        self._window = RollingEntropy(gate.window, gate.history) if gate else None

    @property
    def begun(self) -> bool:
        """Whether an earlier segment of the answer was written."""
        return self.born > self.start

    @property
    def answer(self) -> list[int]:
        return self.ids[self.start :]

    @property
    def row(self) -> Row:
        return Row(self.sampling, self.ids, self.start, self.ends, self._counts)

    def fires_before(self, entropy: float) -> bool:
        """Whether an eager gate fires on the entropy of the position that is about to be written."""
        return self._window is not None and self._fires("eager", self._window.peek(entropy))

    def _fires(self, timing: str, mean: float) -> bool:
        """Whether there is a gate of this timing, and the rolling mean crosses its threshold."""
        gate = self.sampling.gate
        if gate is None or gate.timing != timing or len(self.ids) - self.born < gate.min_tokens:
            return False
        return mean >= gate.threshold if gate.above else mean < gate.threshold

    def accept(self, token: int, entropy: float, context_length: int) -> Finish | None:
        """Take in the token that was drawn; the reason if the segment ends with it."""
        self.ids.append(token)
        mean = self._window.push(entropy) if self._window else 0.0
        if self.matcher is not None:
            self.matcher.consume_token(token)
        if token in self.ends or (self.matcher is not None and self.matcher.is_stopped()):
            return "stop"
        if len(self.ids) - self.start >= self.sampling.max_tokens or len(self.ids) >= context_length:
            return "length"
        return "gate" if self._fires("lagged", mean) else None

    def gated(self, entropy: float, engine: str) -> Step:
        """The step that says an eager gate fired: no token."""
        return Step(NO_TOKEN, 0.0, entropy, engine, finish="gate")
