"""A draft while it is written, and the verdict on the mean of what its tokens show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from waver.engines.base import Step
from waver.policies.job import Job
from waver.policies.thoughts import Thoughts

Pooling = Literal["mean", "first", "max", "prefix_k"]
DraftEnd = Literal["line", "length"]


@dataclass
class Draft:
    """One sentence of an answer, or its beginning.

    `before` are the ids that stand in front of it; it has at most `longest` tokens.
    """

    job: Job
    before: tuple[int, ...]
    longest: int
    steps: list[Step] = field(default_factory=list)
    complete: bool = False

    @property
    def told(self) -> list[Step]:
        """Its tokens, without the stop token behind an answer, which is no part of it."""
        return without_stop(self.steps, self.job)


@dataclass
class Beginning(Draft):
    """The beginning of an answer while it is written: what it says in up to `longest` tokens.

    Think blocks and tokens that are nothing but line breaks are passed over: they are held back with the draft, but say
    nothing of the answer. With `end` "line" it is complete, too, at the end of the first line that says something.
    """

    end: DraftEnd = "line"

    def __post_init__(self) -> None:
        self._thoughts = Thoughts(self.job.writer.tokens, self.before)
        self._content: list[Step] = []

    def read(self, step: Step) -> None:
        """Add a token."""
        self.steps.append(step)
        ended = self._says(step)
        self.complete = bool(step.finish or ended or len(self.told) >= self.longest)

    @property
    def told(self) -> list[Step]:
        return without_stop(self._content, self.job)

    def _says(self, step: Step) -> bool:
        """Keep a token that says something of the answer; return whether it ends the draft."""
        if self._thoughts.push(step.token):
            return False
        spelt = self.job.writer.tokens.token_bytes(step.token)
        newline = b"\n" in spelt
        if not newline or spelt.strip():
            self._content.append(step)
        return newline and self.end == "line" and bool(self.told)


def without_stop(steps: Sequence[Step], job: Job) -> list[Step]:
    """Return the steps of an answer but for the stop token that ended it."""
    stops = (*job.writer.tokens.eos_ids, *job.sampling.stop_token_ids)
    return [step for step in steps if not (step.finish == "stop" and step.token in stops)]


def pooled(values: Sequence[float], pooling: Pooling, k: int) -> float:
    """Pool the values of a draft's tokens (at least one) to one number; `k` is the length of the prefix in
    `prefix_k`."""
    match pooling:
        case "first":
            return values[0]
        case "max":
            return max(values)
        case "prefix_k":
            values = values[:k]
    return sum(values) / len(values)


def above_threshold(
    values: Sequence[float], draft: Draft, threshold: float, pooling: Pooling = "mean", prefix: int = 1
) -> tuple[bool, float] | None:
    """Compare the pooled values of a draft with a threshold, as soon as the outcome is certain.

    Args:
        values: one of at least 0 for each token of the draft so far.

    Returns:
        Whether the score is above the threshold, and the score (infinite for an empty draft, which is above any); None
        while more tokens have to be seen.
    """
    if not values:
        return (True, math.inf) if draft.complete else None
    score = pooled(values, pooling, prefix)
    if draft.complete:
        return score > threshold, score
    # No value is negative, so a sum that would do for a complete draft cannot shrink, nor can a maximum.
    least = score if pooling == "max" else sum(values) / draft.longest
    return (True, score) if least > threshold else None
