"""Define the settings of the base loss: estimator, clip, denominator and penalties."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from waver.training.rl.advantages import Estimator
from waver.training.rl.loss import Aggregation, Denominator, RatioLevel
from waver.training.strict import Strict


class Settings(Strict):
    """The base loss. The defaults are verl's GRPO; `BASES` names the others."""

    advantage: Estimator = "grpo"
    advantage_eps: float = Field(1e-6, ge=0)
    """Added to the standard deviation; TRL has 1e-4."""
    ratio: RatioLevel = "token"
    clip_low: float = Field(0.2, ge=0)
    clip_high: float = Field(0.2, ge=0)
    dual_clip: float | None = Field(3.0, gt=1)
    aggregation: Aggregation = "token-mean"
    denominator: Denominator = "all"
    """Divisor of the mean loss: the number of valid tokens (`all`), or the sum of the methods' weights (`selected`)."""
    max_length: int | None = Field(None, ge=1)
    """The longest response in tokens: the constant of `seq-mean-token-sum-norm`, and where overlong shaping ends."""
    kl: float = Field(0.0, ge=0)
    """Coefficient of the divergence from the reference; above 0 the trainer must give `ref_logprob`."""
    kl_in: Literal["loss", "reward"] = "loss"
    """The k3 estimate in the loss, or the summed log-ratio taken off the reward (RLOO)."""
    entropy: float = Field(0.0, ge=0)
    """Coefficient of an entropy bonus."""
    dynamic_sampling: bool = False
    """Leave out groups whose rows are all right or all wrong."""
    overlong_buffer: int | None = Field(None, ge=1)
    """Tokens before `max_length` over which the reward falls by 1."""
    mask_truncated: bool = False
    """Learn nothing from rows that were cut at the length limit."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.ratio == "gspo" and self.aggregation != "seq-mean-token-mean":
            raise ValueError("a GSPO ratio belongs to a row: it needs aggregation seq-mean-token-mean")
        if self.aggregation == "seq-mean-token-sum-norm" and self.max_length is None:
            raise ValueError("seq-mean-token-sum-norm divides by a constant: set max_length")
        if self.overlong_buffer is not None and (self.max_length or 0) < self.overlong_buffer:
            raise ValueError("overlong_buffer ends at max_length: set max_length, at least as large as the buffer")
        return self


BASES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dapo": {"clip_high": 0.28, "dynamic_sampling": True, "mask_truncated": True},
    "dr_grpo": {"advantage": "dr_grpo", "aggregation": "seq-mean-token-sum-norm"},
    "gspo": {
        "ratio": "gspo",
        "aggregation": "seq-mean-token-mean",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "dual_clip": None,
    },
    "rloo": {
        "advantage": "rloo",
        "ratio": "sequence",
        "aggregation": "seq-mean-token-mean",
        "dual_clip": None,
        "kl": 0.05,
        "kl_in": "reward",
    },
}
"""The papers' settings. `dr_grpo` needs `max_length`; `dapo` shapes overlong rewards once it is given a buffer."""
