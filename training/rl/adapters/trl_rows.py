"""Convert TRL's dictionary of a generation to the rollouts of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from waver.training.rl.batch import Rollouts

PLACE = "place"
"""The place of a row among those that the hooks of the step have kept; -1 for one that is not."""


def response_mask(generated: Mapping[str, Any]) -> torch.Tensor:
    """Return `[B, T]` the tokens that the policy wrote: what tools or environments wrote is not among them."""
    mask: torch.Tensor = generated["completion_mask"]
    return mask * generated["tool_mask"] if "tool_mask" in generated else mask


def turns(mask: torch.Tensor) -> torch.Tensor:
    """Return `[B, T]` the turn that each token belongs to, from 0 on, -1 outside: a new one begins after a gap in the
    mask."""
    valid = mask > 0
    begins = valid & ~pad(valid, (1, 0))[:, :-1]
    return (begins.long().cumsum(1) - 1).masked_fill(~valid, -1)


def is_cut(ids: torch.Tensor, mask: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
    """Return `[B]` bool: responses whose last token is none of those that end one. An empty response is not cut."""
    last = (mask.cumsum(1).argmax(1)).unsqueeze(1)
    ended = torch.isin(ids.gather(1, last).squeeze(1), torch.tensor(list(ends), device=ids.device))
    return ~ended & mask.bool().any(1)


def rollouts(
    generated: Mapping[str, Any],
    scores: torch.Tensor,
    weights: torch.Tensor,
    correct: torch.Tensor,
    group: torch.Tensor,
    draw: torch.Tensor,
    ends: Sequence[int],
    step: int,
    total_steps: int,
) -> Rollouts:
    """Return the rows of a generation as hooks see them.

    Args:
        scores: `[B, reward functions]`, nan where a function has nothing to say. A row's reward is their weighted sum,
            nan if no function scored it.
        weights: `[reward functions]`. correct: `[B]` bool, or `Unknown`. ends: token ids that end a response.
    """
    reward = (scores * weights.to(scores)).nansum(1).masked_fill(scores.isnan().all(1), torch.nan)
    mask = response_mask(generated)
    return Rollouts(
        mask=mask.float(),
        reward=reward,
        group=group,
        correct=correct,
        draw=draw,
        truncated=is_cut(generated["completion_ids"], generated["completion_mask"], ends),
        tokens=generated["completion_ids"],
        step=step,
        total_steps=total_steps,
    )


def stack(parts: Sequence[Mapping[str, Any]], padding: int) -> dict[str, Any]:
    """Return several generations as one: rows below each other, prompts padded on the left, responses on the right."""
    if len(parts) == 1:
        return dict(parts[0])
    whole: dict[str, Any] = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if first.ndim == 0:
            whole[name] = torch.stack(values).sum()
            continue
        if first.ndim == 2:
            width, left = max(v.size(1) for v in values), name.startswith("prompt")
            fill = padding if name.endswith("_ids") else 0
            values = [pad(v, (width - v.size(1), 0) if left else (0, width - v.size(1)), value=fill) for v in values]
        whole[name] = torch.cat(values)
    return whole
