"""Adaptive temperature, arXiv 2509.16591 (HAPO, part A): warmer where the model wavers, cooler where it is sure.

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

from typing import ClassVar

from waver.engines import transforms
from waver.policies.sample.shaping import Shaping


class AdaptiveTemperature(transforms.AdaptiveTemperature, Shaping):
    """Draw warmer where the entropy is high and cooler where it is low, around the request's temperature."""

    paper: ClassVar[str] = "arXiv 2509.16591"
    combines: ClassVar[bool] = True
