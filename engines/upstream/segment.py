"""Turn what an upstream writes for one segment of an answer into the steps that any engine gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from waver.engines.base import NO_TOKEN, EngineError, Finish, Sampling, Step
from waver.engines.sequence import SequenceState
from waver.engines.tokens import TokenText
from waver.engines.upstream.parsing import TokenEvent, TokenParser
from waver.engines.upstream.request import Capabilities, gate_runs_upstream


class Segment:
    """Takes the choices of a stream, and gives steps. Limits, ends and the gate are evaluated here by the code of the
    embedded engine, so that an answer ends alike in every engine."""

    def __init__(
        self,
        engine: str,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        tokens: TokenText,
        capabilities: Capabilities,
        parser: TokenParser,
        context_length: int,
    ) -> None:
        self._engine, self._tokens, self._capabilities, self._parser = engine, tokens, capabilities, parser
        self._context_length = context_length
        start = len(prompt_ids) if sampling.answer_start is None else sampling.answer_start
        self._gated_upstream = gate_runs_upstream(sampling, capabilities, len(prompt_ids) - start)
        """True if the gate runs in the upstream."""
        self._sampling = sampling
        counted = replace(sampling, gate=None) if self._gated_upstream else sampling
        self._sequence = SequenceState(prompt_ids, counted, tokens.eos_ids)
        lagged = self._gated_upstream and sampling.gate is not None and sampling.gate.timing == "lagged"
        # Some ends are reported after the token that they belong to: then each token is held back until the next.
        self._waits = lagged or not capabilities.reports_end or sampling.grammar is not None
        self._held: Step | None = None

    def take(self, choice: Mapping[str, Any]) -> list[Step]:
        """Return the steps that are certain now. The last one has `finish` set where the segment is at its end.

        Raises:
            EngineError: the upstream sent something invalid, or failed.
        """
        events, end = self._parser.choice(choice), choice.get("finish_reason")
        if end not in (None, "stop", "length"):
            ended = f"the upstream of {self._engine!r} ended the answer for no known reason"
            raise EngineError(ended, repr(str(end)[:40]))
        out: list[Step] = []
        for i, token in enumerate(events):
            last = end is not None and i == len(events) - 1
            if last and (ending := self._end_without_token(token, end, choice.get("stop_reason"))):
                return [*out, *ending]
            step = self._next(token)
            if not step.finish and last:
                step = replace(step, finish=end)
            out += self._release()
            if self._waits and not step.finish:
                self._held = step
            else:
                out.append(step)
            if step.finish:
                return out
        return out if events or end is None else [*out, self._end_late(end)]

    def _end_without_token(self, event: TokenEvent, end: Any, stop_reason: Any) -> list[Step]:
        """End the segment where its last event is no token of the answer; empty where it is one."""
        if self._gated_upstream and event.token == self._capabilities.reserved == stop_reason:
            return self._end_by_gate(event)
        return [self._end_late(end)] if end == "stop" and event.token is None else []

    def _next(self, event: TokenEvent) -> Step:
        step = self._parser.step(event, self._engine, self._sampling.top_logprobs)
        if self._sequence.fires_before(step.entropy):
            return replace(self._sequence.gate_step(step.entropy, self._engine), entropy_bounds=step.entropy_bounds)
        return replace(step, finish=self._sequence.accept(step.token, step.entropy, self._context_length))

    def _end_by_gate(self, event: TokenEvent) -> list[Step]:
        """End the segment where the plugin ended the request: an eager gate leaves this position unwritten; with a
        lagged one the token before is the segment's last."""
        if self._waits and self._held is not None:
            return [replace(step, finish="gate") for step in self._release()]
        step = self._parser.measure(event, Step(NO_TOKEN, 0.0, 0.0, self._engine))
        return [*self._release(), replace(step, top_logprobs=(), finish="gate")]

    def _end_late(self, end: Finish) -> Step:
        """End the segment where the end came without a token of its own: it belongs to the token before."""
        if released := self._release():
            return replace(released[0], finish=end)
        if end == "length":
            raise EngineError(
                f"the upstream of {self._engine!r} has a shorter context than it seemed; set `context_length`"
            )
        # An empty answer, of whose only token nothing is known but that it ends answers.
        ends = (*self._tokens.eos_ids, *self._sampling.stop_token_ids)
        if not ends:
            raise EngineError(f"the upstream of {self._engine!r} ended the answer with a token that nobody knows")
        widest = math.log(self._tokens.vocab_size)
        return Step(ends[0], 0.0, widest / 2, self._engine, finish="stop", entropy_bounds=(0.0, widest))

    def _release(self) -> list[Step]:
        """Return the step that was held back, if any."""
        held, self._held = self._held, None
        return [] if held is None else [held]
