"""HAPO: let temperature, advantage and clip of a token follow from how uncertain the policy was there.

The signal, from the entropies H of the step's tokens (old policy, nats) and l = log max(H, 1e-8):

- q: the `pivot` quantile of l, by nearest rank; sigma = sqrt(mean((l - q)^2)); h = (l - q) / sigma
- h~ = h / max h above 0, h / |min h| below: in [-1, 1], and above 0 for about a fifth of the tokens

What follows from it:

- A, the temperature of the next step's draws: T = 1 + span h~, with this step's statistics; h~ clamped to [-1, 1]
- B, the advantage: (R - mu) / (sd + 1e-6), mean and population deviation over all tokens of the group, so that it sums
  to 0 over them; a group where some |A| >= `fallback` gets the advantages of GRPO
- D, the clip: clip_low (1 - clip_strength h~) where h~ <= 0, clip_high (1 + clip_strength h~) where h~ > 0
- C, the advantage: A (1 + strength h~) for h~ > 0 and a ratio outside (1 - low / 2, 1 + high / 2), and for h~ <= 0 and
  a ratio inside, with the bounds of D: what is uncertain and moved counts more, what is certain and did not counts less

Source: arXiv 2509.16591, eq. 5 to 13. Against its released code: the negative branch of h~ is negative, as eq. 6 and
its range say (there it is positive; `legacy_abs`); h~ is made once a step from the old policy, over the rows that
filters have left (there from the policy as it is now, in each micro-batch by itself; `per_update` takes that policy,
and all rows of the update). The temperature is bounded as there, since eq. 8 falls below 0 on confident tokens. The
equations were read from accounts of the paper. Reconstructed: a group of equal rewards has advantage 0 exactly;
temperatures follow from h~ at temperature 1.

Use it on `dapo` where a uniform clip leaves decisions too little room. Lower `span` if training collapses; leave out a
length penalty if answers shrink. One outlier moves all h~: `winsorise` cuts the tails. Ratios are those of temperature
1, a small bias that the paper accepts. Costs a sort of the step's tokens, and the entropy of each drawn token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field

from waver.entropy import shannon_entropy
from waver.entropy.uncertainty import Statistics
from waver.training.rl import Batch, Draw, Measure, Method, Settings, Strict
from waver.training.rl.advantages import advantages, group_index
from waver.training.rl.loss import clipped_loss, importance_ratio

SIGNAL = "hapo_signal"


class Parameters(Strict):
    pivot: float = Field(0.8, gt=0, lt=1)
    span: float = Field(0.1, ge=0, le=0.3)
    """Of the temperature, to both sides; 0.05 in the code, 0 leaves the draws alone."""
    strength: float = Field(1.0, ge=0, le=1)
    """Strength with which C scales the advantage."""
    clip_strength: float = Field(1.0, ge=0, le=1)
    neutral: Literal["adapted", "base"] = "adapted"
    """Range inside C: that of the clip as D adapts it (`adapted`), or of the settings (`base`)."""
    token_advantage: bool = True
    """B; without it the base estimator stays."""
    fallback: float = Field(5.0, gt=0)
    winsorise: float = Field(0.0, ge=0, lt=0.1)
    """Share of the log entropies to cut at both ends, such as 0.001."""
    per_update: bool = False
    """Make h~ anew for every update, for C and D."""
    legacy_abs: bool = False


@dataclass(frozen=True)
class AdaptiveTemperature:
    """A as a rule on `[rows, vocab]` logits: divided by 1 + span h~."""

    statistics: Statistics
    span: float = 0.1
    legacy_abs: bool = False

    def temperature(self, logits: torch.Tensor) -> torch.Tensor:
        """Return `[rows, 1]`."""
        return 1 + self.span * self.statistics.signal(shannon_entropy(logits).unsqueeze(-1), self.legacy_abs)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return logits / self.temperature(logits)


def token_group_advantage(
    reward: torch.Tensor, mask: torch.Tensor, group: torch.Tensor, fallback: float = 5.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return B: `[B]` advantages, and which rows, `[B]` bool, are of a group that fell back to GRPO."""
    index, sizes = group_index(group)

    def total(x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(len(sizes)).index_add_(0, index, x)

    n = mask.sum(1).to(reward.dtype)
    tokens = total(n).clamp(min=1)
    centred = reward - (total(n * reward) / tokens)[index]
    spread = (total(n * centred.square()) / tokens).sqrt()[index]
    plain = advantages(reward, group, "grpo", 1e-6)
    equal = (plain == 0).to(reward.dtype)
    same = (total(equal) == sizes)[index] | (sizes == 1)[index]
    found = (centred / (spread + 1e-6)).masked_fill(same | (n == 0), 0.0)
    fell = (total((found.abs() >= fallback).to(reward.dtype)) > 0)[index]
    return torch.where(fell, plain, found), fell


def clip_bounds(
    signal: torch.Tensor, low: float, high: float, strength: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return D: how far a ratio may fall below and rise above 1, `[B, T]` each."""
    return low * (1 - strength * signal.clamp(max=0)), high * (1 + strength * signal.clamp(min=0))


def redistributed(
    advantage: torch.Tensor,
    signal: torch.Tensor,
    ratio: torch.Tensor,
    clip: tuple[float | torch.Tensor, float | torch.Tensor],
    strength: float = 1.0,
) -> torch.Tensor:
    """Return C: the advantage, `[B, T]`; clip is how far the ratio may fall and rise."""
    low, high = clip
    neutral = (ratio > 1 - low / 2) & (ratio < 1 + high / 2)
    return torch.where((signal > 0) ^ neutral, advantage * (1 + strength * signal), advantage)


def method(p: Parameters) -> Method:
    state: dict[str, Any] = {}

    def statistics(entropy: torch.Tensor, mask: torch.Tensor) -> Statistics | None:
        return Statistics.of(entropy[mask > 0], p.pivot, p.winsorise) if (mask > 0).any() else None

    def warm(plan: tuple[Draw, ...]) -> tuple[Draw, ...]:
        if "q" not in state:
            return plan
        if plan[0].logits is not None:
            raise ValueError(
                "hapo sets the temperature of each drawn token, and another method does so too: set span=0"
            )
        known = Statistics(*(state[name] for name in ("q", "sigma", "s_pos", "s_neg")))
        return (replace(plan[0], logits=AdaptiveTemperature(known, p.span, p.legacy_abs)), *plan[1:])

    def advantage(batch: Batch) -> torch.Tensor:
        found, fell = token_group_advantage(batch.reward, batch.mask, batch.group, p.fallback)
        state["fallback"] = float(fell.float().mean())
        return found

    def follow(batch: Batch) -> Batch:
        known = statistics(batch.entropy, batch.mask)
        state.update({} if known is None else vars(known))
        return replace(batch, measures={**batch.measures, SIGNAL: signal(batch.entropy, known)})

    def signal(entropy: torch.Tensor, known: Statistics | None) -> torch.Tensor:
        return torch.zeros_like(entropy) if known is None else known.signal(entropy, p.legacy_abs)

    def anew(batch: Batch, settings: Settings) -> Mapping[str, torch.Tensor]:
        entropy = batch.live["entropy"]
        return {SIGNAL: signal(entropy, statistics(entropy, batch.mask))}

    def loss(batch: Batch, settings: Settings) -> torch.Tensor:
        of_token = batch.measures[SIGNAL]
        ratio = importance_ratio(batch.logprob, batch.old_logprob, batch.mask, settings.ratio)
        low, high = clip_bounds(of_token, settings.clip_low, settings.clip_high, p.clip_strength)
        inside = (low, high) if p.neutral == "adapted" else (settings.clip_low, settings.clip_high)
        scaled = redistributed(batch.advantage, of_token, ratio.detach(), inside, p.strength)
        return clipped_loss(ratio, scaled, low, high, settings.dual_clip)

    return Method(
        name="hapo",
        paper="arXiv 2509.16591",
        summary="temperature, advantage and clip follow the log entropy of each token",
        reads=frozenset({"entropy"}),
        rollout_sampler=warm if p.span else None,
        advantage=advantage if p.token_advantage else None,
        step_controller=follow,
        update_controller=anew if p.per_update else None,
        policy_loss=loss,
        report=lambda batch: {name: value for name, value in state.items() if isinstance(value, float)},
        state=state,
        measures=(Measure("entropy", shannon_entropy, old=False, live=True),) if p.per_update else (),
        defaults={"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0, "dynamic_sampling": True},
    )
