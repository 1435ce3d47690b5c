"""Truncation by the shape of the distribution: seven rules, each a policy of one parameter.

A rule and its parameters travel to where the logits are; `waver.engines.transforms` says in which order it is applied
there, and `waver.entropy.truncation` has the formulas and their sources. A request has at most one of them: the order
of its list of policies has no meaning, and that of two truncations would. The request's own `top_p`, `min_p` and
`top_k` cut further, after it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from waver.engines import transforms
from waver.engines.base import Sampling
from waver.policies.sample.shaping import Shaping


class TopP(transforms.TopP, Shaping):
    """Keep the smallest set of most likely tokens with a given mass (nucleus sampling)."""

    paper: ClassVar[str] = "arXiv 1904.09751"

    def apply(self, sampling: Sampling) -> Sampling:
        """The engine's own `top_p`, over that of the request."""
        return replace(sampling, top_p=self.p)


class MinP(transforms.MinP, Shaping):
    """Keep tokens at least so many times as likely as the most likely one."""

    paper: ClassVar[str] = "arXiv 2407.01082"

    def apply(self, sampling: Sampling) -> Sampling:
        """The engine's own `min_p`, over that of the request."""
        return replace(sampling, min_p=self.p)


class Typical(transforms.Typical, Shaping):
    """Keep the tokens whose surprisal is nearest to the entropy, up to a given mass; may drop the most likely one."""

    paper: ClassVar[str] = "arXiv 2202.00666"


class Eta(transforms.Eta, Shaping):
    """Keep tokens above a probability that falls as the entropy grows."""

    paper: ClassVar[str] = "arXiv 2210.15191"


class Epsilon(transforms.Epsilon, Shaping):
    """Keep tokens above a fixed probability."""

    paper: ClassVar[str] = "arXiv 2210.15191"


class TopNSigma(transforms.TopNSigma, Shaping):
    """Keep logits within so many standard deviations of the largest, whatever the temperature."""

    paper: ClassVar[str] = "arXiv 2411.07641"


class TopH(transforms.TopH, Shaping):
    """Keep the most likely tokens up to a part of the distribution's entropy."""

    paper: ClassVar[str] = "arXiv 2509.02510"
