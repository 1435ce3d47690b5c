"""Entropy Adaptive Decoding (EAD), arXiv 2502.06833: a small and a large model share one output stream.

The rule (section 3): with H̄_t the mean next-token entropy of the active model over the last `window` tokens and c the
tokens written since the last switch,

    M_t = large  if H̄_t >= threshold and c >= min_tokens
          small  if H̄_t <  threshold and c >= min_tokens
          M_{t-1} otherwise.

Details:
- The paper's entropies are in bits; `threshold` here is in nats (1 bit = 0.693147 nats, so 1 bit is 0.69).
- At exact equality the large model's clause wins. The window is kept over a switch, and averages what
  it has until it is full.
- c starts at 0, so the first `min_tokens` tokens are the start model's.
- `lagged`, the reading of the paper's traces: H_t counts once token t is written, and decides about t + 1. `eager`
  (default): H_t decides who writes t; what enters the window then is the writing model's entropy at t.
- `monitor: small` watches the small model all along (one small pass for each token of the large one): the large model's
  own lower entropy cannot end a hard stretch early. `threshold_down` is the other remedy: the large model keeps writing
  until the mean falls below it.
- With one threshold the large model, sure of itself, hands back at once, and the small one then writes `min_tokens`
  tokens whatever its entropy: a lower threshold can lower accuracy. Either remedy above mends it; on the bundled pair
  (benchmarks/results/frontier.md) they reach the large model's accuracy.
- The defaults suit short answers; the paper uses a window of 5 and 10 tokens after a switch.
- Nothing is verified or rolled back; the engines keep their KV caches and read only what they missed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from waver.engines.base import NO_TOKEN, Gate, Step
from waver.engines.decision import Decision
from waver.entropy import RollingEntropy
from waver.policies.base import Policy, Proceed, Stage
from waver.policies.job import Job, continuation, within_answer


class EntropyAdaptiveDecoding(Policy):
    """Switch between a small and a large model, token by token, on the rolling entropy of the next token."""

    stage: ClassVar[Stage] = "decode"
    takes_pictures: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv 2502.06833"
    engine_fields: ClassVar[tuple[str, ...]] = ("small", "large")

    name: Literal["ead"] = "ead"
    small: str = Field(default="small", description="engine that writes while the entropy is low")
    large: str = Field(default="large", description="engine that writes while the entropy is high")
    threshold: float = Field(
        default=0.1, ge=0.0, description="rolling mean entropy at which the large engine takes over (nats)"
    )
    window: int = Field(default=1, ge=1, le=1024, description="tokens in the rolling mean")
    min_tokens: int = Field(default=1, ge=1, le=4096, description="tokens after a switch before the next one")
    monitor: Literal["active", "small"] = Field(default="active", description="whose entropy is watched")
    timing: Literal["eager", "lagged"] = Field(
        default="eager", description="whether the entropy at a position decides who writes it, or who writes the next"
    )
    threshold_down: float | None = Field(
        default=None,
        ge=0.0,
        description="mean below which the small engine takes over again (nats); default: threshold",
    )
    start: Literal["small", "large"] = Field(default="small", description="who writes first")

    @model_validator(mode="after")
    def _check(self) -> EntropyAdaptiveDecoding:
        if self.threshold_down is not None and self.threshold_down > self.threshold:
            raise ValueError("threshold_down must not be above threshold")
        return self

    def possible_jobs(self, job: Job) -> list[Job]:
        watched = self.monitor == "small"  # then no gate watches the large one, which goes a token at a time
        gates = {self.small: self._gate((), False), self.large: None if watched else self._gate((), True)}
        return [continuation(job, job.prompt_ids[-1:], engine, gate) for engine, gate in gates.items()]

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        course = _Course(RollingEntropy(self.window))
        on_large = self.start == "large"
        while True:
            run = self._watched if on_large and self.monitor == "small" else self._gated
            async with aclosing(run(job, proceed, course, on_large)) as segment:
                async for step in segment:
                    course.written.append(step.token)
                    step = within_answer(step, job, course.written)
                    yield step
                    if step.finish:
                        return
            on_large = not on_large

    async def _gated(self, job: Job, proceed: Proceed, course: _Course, on_large: bool) -> AsyncGenerator[Step, None]:
        """Decode a segment that its own engine ends, where the other one should write."""
        engine = self.large if on_large else self.small
        gate = self._gate(course.window.values, on_large)
        async with aclosing(proceed(continuation(job, course.written, engine, gate=gate))) as steps:
            async for step in steps:
                entropy, then = step.entropy, _then(step.finish == "gate")
                if step.token == NO_TOKEN:
                    course.next = self._decision(course.window.peek(entropy), entropy, on_large, then)
                    return
                eager = self.timing == "eager" and course.next is None
                now = self._decision(course.window.peek(entropy), entropy, on_large) if eager else course.next
                mean, course.next = course.window.push(entropy), None
                if self.timing == "lagged":
                    course.next = self._decision(mean, entropy, on_large, then)
                yield step if now is None else replace(step, decisions=(*step.decisions, now))

    async def _watched(self, job: Job, proceed: Proceed, course: _Course, on_large: bool) -> AsyncGenerator[Step, None]:
        """Decode a segment of the large engine, a token at a time, while the small one reads along and fills the
        window."""
        made = 0
        while True:
            watched = await _next(proceed(continuation(job, course.written, self.small, max_new=1)))
            value = course.window.peek(watched.entropy)
            low = value < self._threshold(on_large)
            leaves = low and made + (self.timing == "lagged") >= self.min_tokens
            found = self._decision(value, watched.entropy, on_large, _then(leaves), self.small)
            if leaves and self.timing == "eager":
                course.next = found
                return
            now, course.next = course.next or (found if self.timing == "eager" else None), None
            course.window.push(watched.entropy)
            step = await _next(proceed(continuation(job, course.written, self.large, max_new=1)))
            if self.timing == "lagged":
                course.next = found
            yield step if now is None else replace(step, decisions=(*step.decisions, now))
            made += 1
            if leaves:
                return

    def _decision(
        self, value: float, entropy: float, on_large: bool, then: str = "", watched: str | None = None
    ) -> Decision:
        """Describe a comparison while an engine writes; `then` is found from it where nothing else tells."""
        threshold = self._threshold(on_large)
        crosses = value < threshold if on_large else value >= threshold
        of = watched or (self.large if on_large else self.small)
        return Decision(self.name, then or ("hold" if crosses else "stay"), value, threshold, of, entropy)

    def _gate(self, history: tuple[float, ...], on_large: bool) -> Gate:
        return Gate(
            window=self.window,
            threshold=self._threshold(on_large),
            above=not on_large,
            min_tokens=self.min_tokens,
            timing=self.timing,
            history=history,
        )

    def _threshold(self, on_large: bool) -> float:
        return self.threshold if self.threshold_down is None or not on_large else self.threshold_down


@dataclass
class _Course:
    """The state of one answer: the rolling mean, the tokens, and the decision about the next one, if it is made."""

    window: RollingEntropy
    written: list[int] = field(default_factory=list)
    next: Decision | None = None


def _then(switches: bool) -> str:
    return "switch" if switches else ""


async def _next(steps: AsyncGenerator[Step, None]) -> Step:
    async with aclosing(steps):
        return await anext(steps)
