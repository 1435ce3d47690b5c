"""Routers over a few experts: how uncertain they are, which experts a token goes to, and the losses on both.

The rule of DynMoLE (arXiv 2504.00661): a flat distribution goes to all experts, a peaked one to the smallest set that
covers `top_p`, but never to fewer than `keep`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["tsallis", "renyi"]


@dataclass(frozen=True)
class RoutingRule:
    """The rule by which tokens are routed.

    Args:
        q: order of the entropy; 1 is Shannon's. threshold: normalised entropy above which a token goes to all experts;
            from 1 on none does. top_p, keep: how much of the probability the experts cover, and the fewest of them.
            eps: added to each probability before the entropy is computed. crossing: count the expert in that crosses
            `top_p`. renormalise: let the weights of the chosen experts sum to 1. Both are off in the published method.
    """

    q: float = 1.1
    threshold: float = 0.9
    top_p: float = 0.75
    keep: int = 2
    eps: float = 1e-5
    kind: Kind = "tsallis"
    crossing: bool = False
    renormalise: bool = False


def routing_entropy(
    p: torch.Tensor, q: float = 1.1, eps: float = 1e-5, kind: Kind = "tsallis", normalise: bool = True
) -> torch.Tensor:
    """Compute the entropy of routers, `[..., experts]` -> `[...]`; as a part of that of the uniform distribution, or
    with `normalise` off without a unit, and in nats for `renyi` and where q is 1.

    With `eps` the probabilities are not normalised again, so that a flat router is a little below 1.
    """
    experts = p.shape[-1]
    floored = p + eps
    if q == 1:
        found, largest = -torch.xlogy(floored, floored).sum(-1), math.log(experts)
    elif kind == "renyi":
        found, largest = (floored.pow(q).sum(-1) + 1e-10).log() / (1 - q), math.log(experts)
    else:
        found, largest = (1 - floored.pow(q).sum(-1)) / (q - 1), -math.expm1((1 - q) * math.log(experts)) / (q - 1)
    return found / largest if normalise and experts > 1 else found


def expert_mask(p: torch.Tensor, entropy: torch.Tensor, rule: RoutingRule) -> torch.Tensor:
    """Choose the experts of each token: `[..., experts]` bool.

    Args:
        p: `[..., experts]` probabilities. entropy: `[...]`, normalised.
    """
    ranked, order = p.sort(dim=-1, descending=True, stable=True)
    covered = ranked.cumsum(-1)
    inside = (covered - ranked < rule.top_p) if rule.crossing else (covered <= rule.top_p)
    inside[..., : rule.keep] = True
    mask = torch.zeros_like(inside).scatter(-1, order, inside)
    if rule.q > 0 and rule.threshold < 1:
        mask |= (entropy > rule.threshold).unsqueeze(-1)
    return mask


def route(p: torch.Tensor, rule: RoutingRule) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of the experts, `[..., experts]`, and the normalised entropy `[...]`.

    Weights of experts that are not chosen are 0, and the others stay as they are, so that a peaked token gets less than
    a flat one. Gradients flow through both; which experts are chosen is constant.
    """
    entropy = routing_entropy(p, rule.q, rule.eps, rule.kind)
    weights = p * expert_mask(p.detach(), entropy.detach(), rule)
    return (weights / weights.sum(-1, keepdim=True) if rule.renormalise else weights), entropy


def balance_loss(p: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute E sum_e f_e P_e with f the mean of the weights and P that of the probabilities over tokens, both
    `[tokens, experts]`; 1 is the least where all experts have the same share and all weights sum to 1."""
    return p.shape[-1] * (weights.mean(0) * p.mean(0)).sum()


def convex_weights(
    logits: torch.Tensor, top: int | None = None, log_prior: torch.Tensor | None = None, beta: float = 1.0
) -> torch.Tensor:
    """Compute a convex combination from logits, `[..., atoms]`: the softmax of the `top` largest of `logits + beta
    log_prior` (Queryable LoRA, arXiv 2605.08423). The prior goes in before the choice."""
    wanted = logits if log_prior is None else logits + beta * log_prior
    if top is not None and top < logits.shape[-1]:
        lost = torch.ones_like(wanted, dtype=torch.bool).scatter(-1, wanted.topk(top, dim=-1).indices, False)
        wanted = wanted.masked_fill(lost, -math.inf)
    return wanted.softmax(-1)
