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
  until the mean falls below it; null means `threshold`, the paper's single one.
- With one threshold the large model, sure of itself, hands back at once, and the small one then writes `min_tokens`
  tokens whatever its entropy: a lower threshold can lower accuracy. Either remedy above mends it; on the bundled pair
  (benchmarks/results/frontier.md) they reach the large model's accuracy.
- The defaults are the paper's dwell, half a bit, a lower threshold back, and no averaging: chosen to be safe with any
  pair, not to be best with one (benchmarks/results/switching.md). Every run of the small model has at least
  `min_tokens` tokens, which pay for the two hand-overs around it where a step of the small model takes at most 0.45 of
  one of the large model; `monitor: small` has no such bound. `waver calibrate policy ead` finds better ones. The paper
  has a window of 5, one threshold and the timing `lagged`.
- A loop has hardly any entropy, so that the rule leaves it to the small model for good. Where that model has written
  the same run of tokens `repetition` times on end, 16 tokens at least, the large one takes over, for 16 tokens at
  least. The paper has no such guard; 0 turns it off.
- Nothing is verified or rolled back; the engines keep their KV caches and read only what they missed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from waver.engines.base import NO_TOKEN, Gate, Step
from waver.engines.decision import Decision
from waver.entropy import RollingEntropy
from waver.policies.base import Policy, Proceed, Stage
from waver.policies.job import Job, continuation, within_answer
from waver.policies.switch.loops import LEAST, Loops


class EntropyAdaptiveDecoding(Policy):
    """Switch between a small and a large model, token by token, on the rolling entropy of the next token."""

    stage: ClassVar[Stage] = "decode"
    takes_pictures: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv 2502.06833"
    engine_fields: ClassVar[tuple[str, ...]] = ("small", "large")
    defaults_for: ClassVar[str | None] = (
        "any pair, untuned: never slower than the large model alone where a step of the small one takes at most 0.45 "
        "of one of its own (benchmarks/results/switching.md); `waver calibrate policy ead` finds what suits a pair"
    )
    report_keys: ClassVar[Mapping[str, str]] = {
        "repetitions": "how often the small engine went round in circles, so that the large one took over",
    }

    name: Literal["ead"] = "ead"
    small: str = Field(default="small", description="engine that writes while the entropy is low")
    large: str = Field(default="large", description="engine that writes while the entropy is high")
    threshold: float = Field(
        default=0.35, ge=0.0, description="rolling mean entropy at which the large engine takes over (nats)"
    )
    window: int = Field(default=1, ge=1, le=1024, description="tokens in the rolling mean")
    min_tokens: int = Field(default=10, ge=1, le=4096, description="tokens after a switch before the next one")
    monitor: Literal["active", "small"] = Field(default="active", description="whose entropy is watched")
    timing: Literal["eager", "lagged"] = Field(
        default="eager", description="whether the entropy at a position decides who writes it, or who writes the next"
    )
    threshold_down: float | None = Field(
        default=0.15,
        ge=0.0,
        description="mean below which the small engine takes over again (nats); null: threshold",
    )
    start: Literal["small", "large"] = Field(default="small", description="who writes first")
    repetition: int = Field(
        default=4,
        ge=0,
        le=64,
        description="times that the small engine may write the same on end before the large one takes over; 0: any",
    )

    @model_validator(mode="before")
    @classmethod
    def _lower(cls, given: Any) -> Any:
        """Bring the default of `threshold_down` below a threshold that is given alone."""
        threshold = given.get("threshold") if isinstance(given, Mapping) else None
        if "threshold_down" in (given or ()) or type(threshold) not in (int, float):
            return given
        return {**given, "threshold_down": min(threshold, cls.model_fields["threshold_down"].default)}

    @model_validator(mode="after")
    def _check(self) -> EntropyAdaptiveDecoding:
        if self.threshold_down is not None and self.threshold_down > self.threshold:
            raise ValueError("threshold_down must not be above threshold")
        if self.repetition == 1:
            raise ValueError("repetition is 0, for no guard, or at least 2")
        return self

    def possible_jobs(self, job: Job) -> list[Job]:
        watched = self.monitor == "small"  # then no gate watches the large one, which goes a token at a time
        gates = {
            self.small: self._gate((), False, self.min_tokens),
            self.large: None if watched else self._gate((), True, self.min_tokens),
        }
        return [continuation(job, job.prompt_ids[-1:], engine, gate) for engine, gate in gates.items()]

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        course = _Course(RollingEntropy(self.window), self.min_tokens)
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
            course.dwell = max(self.min_tokens, LEAST) if course.looping else self.min_tokens
            course.looping = False

    async def _gated(self, job: Job, proceed: Proceed, course: _Course, on_large: bool) -> AsyncGenerator[Step, None]:
        """Decode a segment that its own engine ends, where the other one should write."""
        engine = self.large if on_large else self.small
        gate = self._gate(course.window.values, on_large, course.dwell)
        loops = Loops(0 if on_large else self.repetition)
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
                yield step.decided(now)
                if loops.push(step.token):
                    course.looping = True
                    course.next = self._decision(course.window.mean, entropy, on_large, "repetition")
                    job.report.extra["repetitions"] = job.report.extra.get("repetitions", 0) + 1
                    return

    async def _watched(self, job: Job, proceed: Proceed, course: _Course, on_large: bool) -> AsyncGenerator[Step, None]:
        """Decode a segment of the large engine. Its first tokens, which cannot hand over and leave the window before
        one can, are written in one go. Then the small engine reads along, a token at a time, and fills the window."""
        made = 0
        unwatched = course.dwell - (self.timing == "lagged") - (self.window - 1)
        if unwatched > 1:
            async with aclosing(proceed(continuation(job, course.written, self.large, max_new=unwatched))) as steps:
                async for step in steps:
                    now, course.next = course.next, None
                    yield step.decided(now)
                    made += 1
        while True:
            watched = await _next(proceed(continuation(job, course.written, self.small, max_new=1)))
            value = course.window.peek(watched.entropy)
            low = value < self._threshold(on_large)
            leaves = low and made + (self.timing == "lagged") >= course.dwell
            found = self._decision(value, watched.entropy, on_large, _then(leaves), self.small)
            if leaves and self.timing == "eager":
                course.next = found
                return
            now, course.next = course.next or (found if self.timing == "eager" else None), None
            course.window.push(watched.entropy)
            step = await _next(proceed(continuation(job, course.written, self.large, max_new=1)))
            if self.timing == "lagged":
                course.next = found
            yield step.decided(now)
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

    def _gate(self, history: tuple[float, ...], on_large: bool, dwell: int) -> Gate:
        return Gate(
            window=self.window,
            threshold=self._threshold(on_large),
            above=not on_large,
            min_tokens=dwell,
            timing=self.timing,
            history=history,
        )

    def _threshold(self, on_large: bool) -> float:
        return self.threshold if self.threshold_down is None or not on_large else self.threshold_down


@dataclass
class _Course:
    """The state of one answer: the rolling mean, the tokens, and the decision about the next one, if it is made.

    `dwell`: tokens after which the engine that writes may hand over. `looping`: the small one went round in circles.
    """

    window: RollingEntropy
    dwell: int
    looping: bool = False
    written: list[int] = field(default_factory=list)
    next: Decision | None = None


def _then(switches: bool) -> str:
    return "switch" if switches else ""


async def _next(steps: AsyncGenerator[Step, None]) -> Step:
    async with aclosing(steps):
        return await anext(steps)
