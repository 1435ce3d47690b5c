"""Apply a `Draw` in TRL: the same generation, with another temperature or a rule on the logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from waver.training.rl.composition import RecipeError
from waver.training.rl.method import Draw


@contextmanager
def drawn_by(trainer: Any, draw: Draw) -> Iterator[None]:
    """Apply a `Draw` to whatever the trainer generates in this block.

    Raises:
        RecipeError: the rows come from an engine that cannot draw so.
    """
    if draw.temperature == 1 and draw.logits is None:
        yield
        return
    if trainer.use_vllm or trainer.use_transformers_continuous_batching or trainer.rollout_func is not None:
        raise RecipeError(
            "this recipe draws with a temperature or a rule of its own, which only the trainer's own generation does: "
            "leave use_vllm, use_transformers_continuous_batching and rollout_func out"
        )
    config, rule = trainer.generation_config, draw.logits
    plain = config.temperature
    config.temperature = plain * draw.temperature
    handle = None
    if rule is not None:

        def apply(_: torch.nn.Module, __: Any, output: Any) -> Any:
            # TRL's passes over finished rows give log-probabilities, and no logits.
            if (logits := getattr(output, "logits", None)) is not None:
                output.logits = torch.cat([logits[:, :-1], rule(logits[:, -1].float()).to(logits).unsqueeze(1)], 1)
            return output

        handle = trainer.accelerator.unwrap_model(trainer.model).register_forward_hook(apply)
    try:
        yield
    finally:
        config.temperature = plain
        if handle is not None:
            handle.remove()
