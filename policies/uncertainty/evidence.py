"""Evidence of uncertainty: what was said to a question, to other wordings of it, and how alike all of it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Need = Literal["answer", "samples", "variants", "verdict"]
"""`answer`: the tokens of the answer given; `samples`: answers to the question as it is; `variants`: answers to other
wordings, too; `verdict`: what the model itself says of the answer."""
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Said:
    """A sampled answer: its text, its log-probability under the model's own distribution, and its tokens."""

    text: str
    logprob: float
    tokens: int


@dataclass(frozen=True)
class Evidence:
    """Input of measures; parts that none of them needs are empty.

    `entropies`: of the tokens of the answer given (nats). `variants`: the question as it is, then its other wordings.
    `answers`: for each variant as many answers. `inputs` `[variants, variants]` and `outputs` `[answers, answers]`
    (variant by variant) are similarities in [0, 1]; `support` `[samples, samples]` says how far the sentences of one
    answer to the question as it is are supported by another. `true`: the probability by which the model calls the
    answer true.
    """

    entropies: tuple[float, ...] = ()
    variants: tuple[str, ...] = ()
    answers: tuple[tuple[Said, ...], ...] = ()
    inputs: Matrix | None = None
    outputs: Matrix | None = None
    support: Matrix | None = None
    true: float | None = None

    @property
    def samples(self) -> Sequence[Said]:
        """The answers to the question as it is."""
        return self.answers[0]

    @property
    def own(self) -> Matrix:
        """Similarities of the answers to the question as it is."""
        assert self.outputs is not None
        return self.outputs[: len(self.samples), : len(self.samples)]
