"""TARG (arXiv 2511.09803): gate on a short draft that is written without any context.

`signal` says what of it: the margin between the two likeliest tokens, the entropy, or how much `samples` drawn prefixes
differ (`variance`). Its formulas are reconstructions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import ClassVar

from waver.policies.job import Job
from waver.policies.retrieve.gates.base import Gate, GateSettings, Verdict
from waver.policies.retrieve.gates.draft import Draft, above_threshold
from waver.policies.retrieve.gates.margin import step_closeness, with_two_likeliest
from waver.policies.retrieve.gates.sampled import sample_answers


def disagreement(samples: Sequence[Sequence[int]]) -> float:
    """Compute how much sampled prefixes differ: at each position 1 - Σ f², f the shares of the tokens that stand there
    (the total variance of their one-hot vectors), averaged over positions. A sample that has ended counts as another
    token; samples that are all empty do not differ. TARG names a variance over sampled prefixes without a formula; this
    is a reconstruction."""
    columns = [Counter(column) for column in zip_longest(*samples)]
    if not columns:
        return 0.0
    return sum(1 - sum((n / len(samples)) ** 2 for n in column.values()) for column in columns) / len(columns)


class TargGate(Gate):
    """The margin, entropy or variance of a draft without any context."""

    name: ClassVar[str] = "targ"
    paper: ClassVar[str | None] = "arXiv 2511.09803"
    threshold: ClassVar[float | None] = 0.5
    summaries: ClassVar[bool] = False

    def __init__(self, settings: GateSettings) -> None:
        super().__init__(settings)
        self._variance: float | None = None

    @property
    def longest(self) -> int:
        return 1 if self.settings.signal == "variance" else self.settings.draft_tokens

    @property
    def extra_sequences(self) -> int:
        return self.settings.samples if self.settings.signal == "variance" else 0

    def prepare(self, job: Job) -> Job:
        return with_two_likeliest(job) if self.settings.signal == "margin" else job

    async def decide(self, draft: Draft) -> Verdict | None:
        settings = self.settings
        if settings.signal == "variance":
            if self._variance is None:
                samples = await sample_answers(draft.job, settings.samples, settings.draft_tokens)
                self._variance = disagreement(samples)
            return of_samples(self._variance, draft, settings.threshold)
        measure = step_closeness if settings.signal == "margin" else lambda step: step.entropy
        found = above_threshold([measure(step) for step in draft.told], draft, settings.threshold)
        return None if found is None else Verdict(*found)


def of_samples(score: float, draft: Draft, threshold: float) -> Verdict | None:
    """Decide by a score that is known before the draft: below the threshold only an empty answer fires."""
    if score > threshold:
        return Verdict(True, score)
    return Verdict(not draft.told, score) if draft.told or draft.complete else None
