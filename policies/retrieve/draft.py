"""A draft while it is written: what its tokens say so far, and whether that settles the matter."""

from __future__ import annotations

import math
from collections.abc import Callable

from waver.engines.base import Step
from waver.policies.job import Job
from waver.policies.retrieve.gates import Pooling, closeness, pooled


def entropy(step: Step) -> float:
    """The token's entropy in nats."""
    return step.entropy


def tie(step: Step) -> float:
    """How close the two likeliest tokens are: exp of the difference of their log-probabilities, negative."""
    best = [logprob for _, logprob in step.top_logprobs[:2]]
    return closeness(best[0] - best[1]) if len(best) == 2 else 0.0


def ends(step: Step, job: Job) -> bool:
    """Whether a step is the stop token behind an answer, which is no part of it."""
    stops = (*job.writer.tokens.eos_ids, *job.sampling.stop_token_ids)
    return step.finish == "stop" and step.token in stops


class Draft:
    """Reads a draft of at most `longest` tokens, or up to a line's end. It fires where its score is above `limit`."""

    def __init__(self, limit: float, longest: int, pooling: Pooling = "mean", prefix: int = 1) -> None:
        self._limit, self._pooling, self._prefix = limit, pooling, prefix
        self._longest = {"first": 1, "prefix_k": min(prefix, longest)}.get(pooling, longest)
        self._values: list[float] = []
        self.measure: Callable[[Step], float] = entropy

    @property
    def score(self) -> float:
        """What is known of the score by now; infinite for an empty draft."""
        return pooled(self._values, self._pooling, self._prefix) if self._values else math.inf

    def read(self, step: Step, job: Job) -> bool | None:
        """Whether the gate fires; None: more tokens have to be read."""
        stopped = ends(step, job)
        if not stopped:
            self._values.append(self.measure(step))
        newline = b"\n" in job.writer.tokens.token_bytes(step.token)
        if step.finish or newline or len(self._values) >= self._longest:
            return not self._values or self.score > self._limit
        # No measure is negative, so a sum that would do for a complete draft cannot shrink, nor can a maximum.
        least = self.score if self._pooling == "max" else sum(self._values) / self._longest
        return True if least > self._limit else None
