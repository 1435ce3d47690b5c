"""Adaptive temperature, arXiv 2509.16591 (HAPO, part A): warmer where the entropy is high, cooler where it is low.

At each position, with H the entropy of the raw next-token distribution there (nats):

    h~ = log(H / pivot) / log(high / pivot)      where H > pivot
    h~ = log(H / pivot) / log(pivot / low)       below
    T  = temperature (1 + span clamp(h~, -1, 1))

The request's temperature stays what it is at `pivot`, and no position leaves [1 - span, 1 + span] of it. Whatever
truncates comes after, on what this temperature leaves. At temperature 0 nothing changes.

Details:
- `pivot`, `high` and `low` are the paper's statistics of a batch, as entropies: the 0.8 quantile, the largest and the
  smallest. In training they follow the step before; here they are fixed numbers, for with running ones an answer would
  depend on what others asked, and a seed would not repeat it. Take them from traces of your own model at temperature 1,
  some 20,000 tokens: `waver.entropy.uncertainty.Statistics` shows how.
- The bounded form of the released code: unbounded, eq. 8 falls below 0 on confident tokens. Its negative branch is
  negative, as eq. 6 says; the code's is positive, which warms the surest positions most.
- A penalty or a bias does not change what the entropy is taken of: it is the one that reports and traces show.
- The paper has a span of 0.1 (its code 0.05), and samples for training with it; it does not report on serving.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from waver.engines.transforms.base import Transform


class AdaptiveTemperature(Transform):
    """Draw warmer where the entropy is high and cooler where it is low, around the request's temperature."""

    paper: ClassVar[str] = "arXiv 2509.16591"
    defaults_for: ClassVar[str | None] = (
        "no model: places to start; `waver calibrate policy adaptive_temperature` measures `low`, `pivot` and `high`"
    )

    name: Literal["adaptive_temperature"] = "adaptive_temperature"
    span: float = Field(default=0.1, ge=0.0, le=0.3, description="how far the temperature goes up and down, as a share")
    low: float = Field(default=1e-6, ge=1e-8, le=100.0, description="entropy (nats) at which it is lowest")
    pivot: float = Field(default=0.5, ge=1e-8, le=100.0, description="entropy (nats) at which it is the request's own")
    high: float = Field(default=3.0, ge=1e-8, le=100.0, description="entropy (nats) at which it is highest")

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not self.low < self.pivot < self.high:
            raise ValueError(f"low {self.low:g}, pivot {self.pivot:g} and high {self.high:g} should rise in this order")
        return self
