"""Compare a judge with what a user would try first, on the same runs and split by question."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from waver.choice import Candidate, Rule, choose, early_stop
from waver.stats import auroc, paired_difference
from waver.training.judge.fit import Rows

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
RULES: tuple[Rule, ...] = ("random", "min_entropy", "vote", "judge", "auto", "oracle")


@dataclass(frozen=True)
class Evaluation:
    """Accuracy by number of runs and rule; accuracy and runs drawn by threshold; probabilities and truths of all runs.

    Everything that a judge says here is about questions that it was not trained on.
    """

    accuracy: dict[int, dict[str, float]]
    stopping: dict[float, tuple[float, float]]
    probabilities: list[float]
    right: list[bool]
    over_vote: tuple[float, float]
    """Newcombe's 95 % interval of the judge's share of right answers over a vote's, with all runs."""
    auroc: float | None
    entropy_auroc: float | None

    @property
    def about(self) -> dict[str, Any]:
        """Return the part that a judge's record keeps."""
        return {
            "auroc": self.auroc,
            "auroc_of_low_entropy": self.entropy_auroc,
            "accuracy": {str(k): {rule: round(v, 4) for rule, v in row.items()} for k, row in self.accuracy.items()},
            "right": round(fmean(self.right), 4),
        }


def evaluate(lines: Sequence[Mapping[str, Any]], held_out: Rows) -> Evaluation:
    """Evaluate every rule on `[questions, runs]` probabilities that come from other questions."""
    judged = [not any(map(math.isnan, row)) for row in held_out.tolist()]
    runs = [
        [
            Candidate(one["answer"], one["entropy"], float(p), one["right"])
            for one, p in zip(line["runs"], row, strict=True)
        ]
        for line, row, kept in zip(lines, held_out, judged, strict=True)
        if kept
    ]
    if not runs:
        raise ValueError("too few questions, or too few right or wrong answers, to hold any out: bring more")
    most = len(runs[0])
    everyone = [each for own in runs for each in own]
    probabilities, right = [each.probability or 0.0 for each in everyone], [each.right for each in everyone]
    stops = {t: [early_stop([each.probability or 0.0 for each in own], t) for own in runs] for t in THRESHOLDS}
    return Evaluation(
        {k: {rule: _accuracy(runs, rule, k) for rule in RULES} for k in _sizes(most)},
        {
            t: (fmean(own[at].right for own, at in zip(runs, places, strict=True)), fmean(places) + 1)
            for t, places in stops.items()
        },
        probabilities,
        right,
        paired_difference(_right(runs, "judge", most), _right(runs, "vote", most)),
        auroc([-p for p in probabilities], [not each for each in right]),
        auroc([each.entropy for each in everyone], [not each for each in right]),
    )


def _sizes(most: int) -> list[int]:
    return sorted({k for k in (1, 3, 5, 10, 20, most) if k <= most})


def _accuracy(runs: Sequence[Sequence[Candidate]], rule: Rule, k: int) -> float:
    if rule == "random":  # its expectation
        return fmean(each.right for own in runs for each in own[:k])
    return fmean(_right(runs, rule, k))


def _right(runs: Sequence[Sequence[Candidate]], rule: Rule, k: int) -> list[bool]:
    return [bool(own[choose(own[:k], rule).place].right) for own in runs]
