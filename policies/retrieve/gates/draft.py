"""A draft while it is written, and the verdict on the mean of what its tokens show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from waver.engines.base import Step
from waver.policies.job import Job

Pooling = Literal["mean", "first", "max", "prefix_k"]


@dataclass
class Draft:
    """The beginning of an answer, or one sentence of it.

    `before` are the ids that stand in front of it; it has at most `longest` tokens, or goes up to a line's end.
    """

    job: Job
    before: tuple[int, ...]
    longest: int
    steps: list[Step] = field(default_factory=list)
    complete: bool = False

    def read(self, step: Step) -> None:
        """Add a token."""
        self.steps.append(step)
        newline = b"\n" in self.job.writer.tokens.token_bytes(step.token)
        self.complete = bool(step.finish or newline or len(self.told) >= self.longest)

    @property
    def told(self) -> list[Step]:
        """Its tokens, without the stop token behind an answer, which is no part of it."""
        return without_stop(self.steps, self.job)


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
    if not draft.steps:
        return None
    score = pooled(values, pooling, prefix) if values else math.inf
    if draft.complete:
        return not values or score > threshold, score
    # No value is negative, so a sum that would do for a complete draft cannot shrink, nor can a maximum.
    least = score if pooling == "max" else sum(values) / draft.longest
    return (True, score) if least > threshold else None
