"""Promise that a setting loses at most so much: tests that hold as often as they say, however the losses are spread.

Learn then Test (arXiv 2110.01052): each setting is the hypothesis that it loses more than is allowed; a setting is
promised where its hypothesis is rejected. Settings are tested in an order that was fixed before, the safest first, up
to the first that is not rejected, so that no correction for their number is needed. The p-values are those of a bet
against the hypothesis (Waudby-Smith and Ramdas, arXiv 2010.09686), which hold for any number of bounded losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

PRIOR_VARIANCE = 0.005
"""Assumed of losses before any is seen, on the scale from 0 to 1: settings that one would promise mostly agree with
the reference. It moves the size of bets, not their truth."""
BOLDEST = 0.9
"""Largest part of the stake that one loss can take: a bolder bet promises on fewer questions where none is lost, and on
more where some are."""


def p_value(losses: Sequence[float], allowed: float, confidence: float = 0.95) -> float:
    """Bound the probability of losses as small as these if their mean were above `allowed`.

    Args:
        losses: between -1 and 1, in an order that has nothing to do with their values.
        confidence: the level that the bets are sized for; any other may be read off as well.

    Returns:
        A p-value: under the hypothesis it is at most `x` with probability at most `x`. 1.0 for no losses.
    """
    mean = (1 + allowed) / 2
    log_wealth = best = 0.0
    total, squares = 0.5, PRIOR_VARIANCE
    for seen, loss in enumerate(losses):
        value = (1 + loss) / 2
        variance = squares / (seen + 1)
        stake = min(math.sqrt(2 * math.log(1 / (1 - confidence)) / (len(losses) * variance)), BOLDEST / (1 - mean))
        log_wealth += math.log1p(stake * (mean - value))
        best = max(best, log_wealth)
        total += value
        squares += (value - total / (seen + 2)) ** 2
    return math.exp(-best)


def promised(settings: Iterable[Sequence[float]], allowed: float, confidence: float = 0.95) -> int:
    """Count the settings that lose at most `allowed` in the mean, all of them together with this confidence.

    Args:
        settings: the losses of each, the safest setting first; the order must not depend on these losses. Nothing is
            read behind the first setting that cannot be promised.
    """
    count = 0
    for losses in settings:
        if p_value(losses, allowed, confidence) > 1 - confidence:
            break
        count += 1
    return count


def needed(allowed: float, confidence: float = 0.95) -> int:
    """Count the questions without a single loss that a promise takes at the least."""
    return math.ceil(math.log(1 / (1 - confidence)) / -math.log1p(-allowed)) if 0 < allowed < 1 else 0
