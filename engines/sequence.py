"""The state of what an embedded engine runs in its slots: a segment of an answer, or a prompt that is read for its
hidden state."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from waver.engines.base import NO_TOKEN, Finish, Sampling, Step
from waver.engines.salt import current_salt
from waver.engines.sampling import Row
from waver.engines.token_counts import TokenCounts
from waver.entropy import RollingEntropy

if TYPE_CHECKING:
    import llguidance

    from waver.engines.picture_runner import View


class HiddenStateRequest:
    """A prompt that is read for the hidden state at its end; `depth` is that of `Engine.hidden_state`. `inbox` receives
    the state, `[hidden]` float32 on the CPU, or an error."""

    begun = False
    view: View | None = None

    def __init__(self, ids: Sequence[int], depth: float | None) -> None:
        self.ids = list(ids)
        self.depth = depth
        self.salt = current_salt()
        self.slot: int | None = None
        self.inbox: asyncio.Queue[torch.Tensor | Exception] = asyncio.Queue()


class SequenceState:
    """A segment of an answer being decoded: its tokens, its stop rules and its gate's window. `ids` are the prompt and
    the answer so far, `view` is what the prompt shows; `inbox` receives steps, or an error."""

    def __init__(
        self, prompt_ids: Sequence[int], sampling: Sampling, eos_ids: tuple[int, ...], view: View | None = None
    ) -> None:
        self.ids = list(prompt_ids)
        self.salt = current_salt()
        self.view = view
        self.sampling = replace(sampling, pictures=())  # `view` has them: an idle slot should not keep their pixels
        self.start = len(self.ids) if sampling.answer_start is None else sampling.answer_start
        self._segment_start = len(self.ids)
        self.ends = (*(() if sampling.ignore_eos else eos_ids), *sampling.stop_token_ids)
        self.matcher: llguidance.LLMatcher | None = None
        self.slot: int | None = None
        self.read_at = sampling.state_at(self.ids)
        self.told = False
        """True once a step has said what was dropped from the prompt's pictures."""
        self.state: torch.Tensor | None = None
        """The hidden state that the first step will carry."""
        self.routing: float | None = None
        """The entropy of an adapter's routers in the last pass, which the next step will carry."""
        self.inbox: asyncio.Queue[Step | Exception] = asyncio.Queue()
        self._counts = TokenCounts(), TokenCounts()
        gate = sampling.gate
        self._window = RollingEntropy(gate.window, gate.history) if gate else None

    @property
    def begun(self) -> bool:
        """Return whether an earlier segment of the answer was written."""
        return self._segment_start > self.start

    @property
    def answer(self) -> list[int]:
        """The tokens of the answer so far."""
        return self.ids[self.start :]

    @property
    def row(self) -> Row:
        """The sequence as `waver.engines.sampling.draw` takes it."""
        return Row(self.sampling, self.ids, self.start, self.ends, self._counts)

    def fires_before(self, entropy: float) -> bool:
        """Return whether an eager gate fires on the entropy of the position that is about to be written."""
        return self._window is not None and self._fires("eager", self._window.peek(entropy))

    def _fires(self, timing: str, mean: float) -> bool:
        """Return whether there is a gate of this timing, and the rolling mean crosses its threshold."""
        gate = self.sampling.gate
        if gate is None or gate.timing != timing or len(self.ids) - self._segment_start < gate.min_tokens:
            return False
        return mean >= gate.threshold if gate.above else mean < gate.threshold

    def accept(self, token: int, entropy: float, context_length: int) -> Finish | None:
        """Append the token that was drawn, and return why the segment ends with it, or None."""
        self.ids.append(token)
        mean = self._window.push(entropy) if self._window else 0.0
        if self.matcher is not None:
            self.matcher.consume_token(token)
        if token in self.ends or self._completed:
            return "stop"
        if len(self.ids) - self.start >= self.sampling.max_tokens or len(self.ids) >= context_length:
            return "length"
        return "gate" if self._fires("lagged", mean) else None

    @property
    def _completed(self) -> bool:
        """Return whether there is a grammar that allows nothing more. One that failed has stopped, too, and completes
        nothing."""
        return self.matcher is not None and self.matcher.is_stopped() and not self.matcher.is_error()

    def gate_step(self, entropy: float, engine: str) -> Step:
        """Make the step that ends a segment by an eager gate: it has no token."""
        return Step(NO_TOKEN, 0.0, entropy, engine, finish="gate")
