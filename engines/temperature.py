"""The temperature of each row: the request's own, or one that follows the entropy at each position.

    T = T_base (1 + span h~)        h~ = log(H / pivot) / log(high / pivot) above the pivot, log(H / pivot) /
                                    log(pivot / low) below it, and never beyond -1 and 1

H is the entropy of the raw next-token distribution at that very position. This is HAPO's adaptive temperature sampling
(arXiv 2509.16591, eq. 8, in the bounded form of its released code) with statistics that do not change while it serves:
`pivot`, `high` and `low` are the exponentials of its q, q + sigma max h and q + sigma min h. Its sigma cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from waver.devices import to_device
from waver.engines.transforms import AdaptiveTemperature, Transform
from waver.entropy.uncertainty import uncertainty


def adapts(transforms: Sequence[Transform]) -> bool:
    """Return whether one of the transforms makes the temperature follow the entropy."""
    return any(isinstance(each, AdaptiveTemperature) for each in transforms)


def adapted_temperatures(
    base: torch.Tensor, transforms: Sequence[Sequence[Transform]], entropy: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute the temperature of each row, `[rows]` float32.

    Args:
        base: `[rows]` float32, the requests' own. transforms: for each row its own, or none.
        entropy: `[rows]` nats of the raw distributions, where a row `adapts`.

    Raises:
        ValueError: the entropy is needed, and there is none.
    """
    asked = [(i, t) for i, own in enumerate(transforms) for t in own if isinstance(t, AdaptiveTemperature)]
    if not asked:
        return base
    if entropy is None:
        raise ValueError("a temperature that follows the entropy needs the entropy")
    rows = to_device([row for row, _ in asked], base.device)
    numbers = [
        (t.span, math.log(t.pivot), 1 / math.log(t.high / t.pivot), 1 / math.log(t.pivot / t.low)) for _, t in asked
    ]
    span, q, s_pos, s_neg = to_device(numbers, base.device, torch.float32).T
    factors = 1 + span * uncertainty(entropy[rows].float(), q, 1.0, s_pos, s_neg)
    return base.scatter_reduce(0, rows, factors, "prod")
