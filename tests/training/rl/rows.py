"""Rows for tests: what a test does not speak of is filled in."""

from __future__ import annotations

from typing import Any

import torch

from waver.training.rl import Batch, Rollouts

F64 = torch.float64


def rollouts(mask: Any, **given: Any) -> Rollouts:
    """Rows with this mask: one group, reward 0, wrong, of the main draw."""
    mask = torch.as_tensor(mask, dtype=F64)
    rows = len(mask)
    filled: dict[str, Any] = {
        "reward": torch.zeros(rows, dtype=F64),
        "group": torch.zeros(rows, dtype=torch.long),
        "correct": torch.zeros(rows, dtype=torch.bool),
        "draw": torch.zeros(rows, dtype=torch.long),
        "truncated": torch.zeros(rows, dtype=torch.bool),
        "tokens": torch.zeros(mask.shape, dtype=torch.long),
    }
    for name, value in given.items():
        like = filled.get(name)
        filled[name] = torch.as_tensor(value, dtype=like.dtype) if isinstance(like, torch.Tensor) else value
    return Rollouts(mask=mask, **filled)


def batch(mask: Any, **given: Any) -> Batch:
    """Rows with what the policy says of them: ratio 1 and entropy 0, weight 1 and advantage 0, if not given.

    `logprob` may be given with gradient; lists become float64 tensors.
    """
    names = ("old_logprob", "entropy", "logprob", "advantage", "weight", "ref_logprob")
    tensors = {n: torch.as_tensor(given.pop(n), dtype=F64) for n in names if n in given}
    others = {n: given.pop(n) for n in ("measures", "live", "totals", "step_id") if n in given}
    rows = rollouts(mask, **given)
    old = tensors.get("old_logprob", torch.zeros(rows.mask.shape, dtype=F64))
    fields: dict[str, Any] = {
        "entropy": torch.zeros_like(old),
        "logprob": old,
        "advantage": torch.zeros_like(old),
        "weight": torch.ones_like(old),
        "step_id": (rows.mask > 0).long() - 1,
    }
    return Batch(**vars(rows), **(fields | others | tensors | {"old_logprob": old}))
