"""Measure next-token distributions where a model makes its logits, a few tokens at a time.

Logits of a step are `[tokens, vocab]`: 9 GiB in float32 for 16,384 tokens of a vocabulary of 152 thousand, and every
measure makes copies. The head here keeps the logits of one chunk only, and makes them again in the backward pass.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from waver.training.rl.batch import at_least_float32

CHUNK = 2**24
"""Logits to hold at once: 64 MiB in float32, and a few times that while they are measured."""

Score = Callable[[torch.Tensor], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Look:
    """Quantities to compute of the last tokens of each row.

    Args:
        ids, mask: `[B, T]` those tokens, and which of them count; the others are 0 in every result.
        measure: `[n, vocab]` logits, divided by the temperature, at least float32 -> named `[n]` tensors.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    measure: Score
    temperature: float = 1.0


def add_measuring_head(model: Any) -> None:
    """Let `model(..., look=Look(...))` return `logprob` and the measures, `[B, T]` each, in place of logits.

    Without `look` the model is what it was. Call it before the model is wrapped, as TRL's `add_fused_lm_head`.
    """
    before = model.forward
    scaled = logit_scaling(model.config.get_text_config())

    # `generate` checks its arguments against this signature.
    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, look: Look | None = None, **kwargs: Any) -> Any:
        if look is None:
            return before(*args, **kwargs)
        width = look.ids.size(1)
        hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state[:, -width - 1 : -1]
        head = self.get_output_embeddings()

        def score(hidden: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = at_least_float32(scaled(head(hidden))) / look.temperature
            logprob = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
            return {"logprob": logprob, **look.measure(logits)}

        valid = look.mask > 0
        chunk = max(1, CHUNK // self.config.get_text_config().vocab_size)
        found = in_chunks(score, hidden[valid], look.ids[valid], chunk)
        return {name: x.new_zeros(valid.shape).masked_scatter(valid, x) for name, x in found.items()}

    model.forward = types.MethodType(forward, model)


def in_chunks(
    score: Callable[..., dict[str, torch.Tensor]], hidden: torch.Tensor, ids: torch.Tensor, chunk: int
) -> dict[str, torch.Tensor]:
    """Return what `score` finds of all tokens, so many at a time; with gradient each chunk is computed once more."""
    if len(hidden) <= chunk:
        return score(hidden, ids)
    parts = []
    for start in range(0, len(hidden), chunk):
        part = hidden[start : start + chunk], ids[start : start + chunk]
        again = torch.is_grad_enabled() and hidden.requires_grad
        parts.append(checkpoint(score, *part, use_reentrant=False, preserve_rng_state=False) if again else score(*part))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def logit_scaling(config: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what a model does to the output of its head: a factor and a soft cap, as TRL reads them from its
    configuration."""
    factor = next(
        (
            value
            for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
            if (value := getattr(config, name, None)) is not None
        ),
        None,
    )
    if factor is None and (divisor := getattr(config, "logits_scaling", None)) is not None:
        factor = divisor if config.model_type == "hyperclovax" else 1 / divisor
    cap = getattr(config, "final_logit_softcapping", None)

    def scaled(logits: torch.Tensor) -> torch.Tensor:
        if factor is not None:
            logits = logits * factor
        return logits if cap is None else (logits / cap).tanh() * cap

    return scaled
