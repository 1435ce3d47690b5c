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
        RecipeError: the rule was not asked once, so that the rows are not drawn by it.
    """
    if draw.temperature == 1 and draw.logits is None:
        yield
        return
    config, rule = trainer.generation_config, draw.logits
    plain = config.temperature
    config.temperature = plain * draw.temperature
    handle, asked = None, 0
    if rule is not None:

        def apply(_: torch.nn.Module, __: Any, output: Any) -> Any:
            nonlocal asked
            # TRL's passes over finished rows give log-probabilities, and no logits.
            if (logits := getattr(output, "logits", None)) is not None:
                asked += 1
                output.logits = torch.cat([logits[:, :-1], rule(logits[:, -1].float()).to(logits).unsqueeze(1)], 1)
            return output

        handle = _generating(trainer.accelerator.unwrap_model(trainer.model)).register_forward_hook(apply)
    try:
        yield
        if rule is not None and not asked:
            raise RecipeError(
                f"the model, a {type(trainer.model).__name__}, generates without the rule on logits that the recipe "
                "draws by: train the plain model, or without that method"
            )
    finally:
        config.temperature = plain
        if handle is not None:
            handle.remove()


def share_of_prompts(draw: Draw, rows: int, size: int, seed: int) -> list[int]:
    """Return the rows of a draw's share of the prompts, in order; of all where the share is 1.

    Args:
        rows: of the main draw, those of a prompt side by side. size: how many a prompt has.
        seed: of the choice. Every process has to make the same.
    """
    if draw.share == 1:
        return list(range(rows))
    prompts = rows // size
    shuffled = torch.randperm(prompts, generator=torch.Generator().manual_seed(seed))
    chosen = sorted(shuffled[: max(1, round(draw.share * prompts))].tolist())
    return [prompt * size + row for prompt in chosen for row in range(size)]


def _generating(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model whose forward pass `generate` calls: the one inside of PEFT's wrapper, else the model itself."""
    inside = getattr(model, "get_base_model", None)
    return model if inside is None else inside()
