"""Our base against TRL's own loss: on random batches, and over whole training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from trl import GRPOTrainer

from tests.training.rl.adapters.sums import made
from waver.training.rl import Batch, Recipe, Rollouts
from waver.training.rl.adapters.trl_trainer import RecipeTrainer

ROWS, WIDTH, LONGEST = 8, 11, 16
SHARED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"loss_type": "grpo"}, {"aggregation": "seq-mean-token-mean"}),
    "dapo": ({"loss_type": "dapo"}, {}),
    "bnpo": ({"loss_type": "bnpo"}, {}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"aggregation": "seq-mean-token-sum-norm", "max_length": LONGEST}),
    "clip higher": ({"loss_type": "dapo", "epsilon_high": 0.28}, {"clip_high": 0.28}),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        {"ratio": "gspo", "aggregation": "seq-mean-token-mean", "clip_low": 3e-4, "clip_high": 4e-4},
    ),
    "gspo that hardly clips": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"ratio": "gspo", "aggregation": "seq-mean-token-mean"},
    ),
    "kl, by row": (
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False},
        {"aggregation": "seq-mean-token-mean", "kl": 0.3},
    ),
    "kl, by token": ({"loss_type": "dapo", "beta": 0.3, "use_bias_correction_kl": False}, {"kl": 0.3}),
    "kl, by constant": (
        {"loss_type": "dr_grpo", "beta": 0.3, "use_bias_correction_kl": False},
        {"aggregation": "seq-mean-token-sum-norm", "max_length": LONGEST, "kl": 0.3},
    ),
    "entropy bonus": ({"loss_type": "bnpo", "entropy_coef": 0.1}, {"entropy": 0.1}),
}
"""Settings that TRL and our base share: TRL's arguments, and ours. The dual clip is verl's alone. A KL term that is
weighed by the importance ratio, the default of TRL 1.16, is TRL's alone: the paper's is not."""


def random_rows(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    lengths = torch.randint(1, WIDTH + 1, (ROWS, 1), generator=g)
    lengths[0] = WIDTH
    old = -noise(ROWS, WIDTH).abs()
    return {
        "mask": (torch.arange(WIDTH) < lengths).long(),
        "old": old,
        "new": old + 0.3 * noise(ROWS, WIDTH),
        "ref": old + 0.3 * noise(ROWS, WIDTH),
        "entropy": noise(ROWS, WIDTH).abs(),
        "advantage": noise(ROWS),
    }


def of_trl(trainer: Any, rows: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """TRL's loss, and its gradient by log-probabilities and entropies."""
    new, entropy = rows["new"].clone().requires_grad_(), rows["entropy"].clone().requires_grad_()
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: (new, entropy, None))
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", 1, raising=False)
    ids = torch.zeros_like(rows["mask"])
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": rows["mask"],
        "advantages": rows["advantage"],
        "old_per_token_logps": rows["old"],
        "ref_per_token_logps": rows["ref"],
        "num_items_in_batch": rows["mask"].sum(),
    }
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return [loss.detach(), new.grad, torch.zeros_like(entropy) if entropy.grad is None else entropy.grad]


def of_ours(settings: dict[str, Any], rows: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    new, entropy = rows["new"].clone().requires_grad_(), rows["entropy"].clone().requires_grad_()
    mask, none = rows["mask"].double(), torch.zeros(ROWS, dtype=torch.long)
    batch = Batch(
        **vars(
            Rollouts(
                mask=mask,
                reward=rows["advantage"],
                group=none,
                correct=none.bool(),
                draw=none,
                truncated=none.bool(),
                tokens=rows["mask"],
            )
        ),
        old_logprob=rows["old"],
        entropy=rows["entropy"],
        logprob=new,
        advantage=rows["advantage"].unsqueeze(1) * mask,
        weight=torch.ones_like(mask),
        step_id=rows["mask"] - 1,
        ref_logprob=rows["ref"],
        live={"entropy": entropy},
    )
    loss, _ = Recipe("grpo", dual_clip=None, **settings).loss(batch)
    loss.backward()
    return [loss.detach(), new.grad, torch.zeros_like(entropy) if entropy.grad is None else entropy.grad]  # type: ignore[list-item]


@pytest.mark.parametrize("mode", SHARED)
def test_loss_and_gradient_are_those_of_trl(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, settings = SHARED[mode]
    trainer = made(GRPOTrainer, tmp_path, max_completion_length=LONGEST, gradient_accumulation_steps=1, **arguments)
    for seed in range(5):
        rows = random_rows(seed)
        for found, expected in zip(of_ours(settings, rows), of_trl(trainer, rows, monkeypatch), strict=True):
            torch.testing.assert_close(found, expected.double(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"kl": 0.3}, {"aggregation": "seq-mean-token-mean", "clip_high": 0.28}])
def test_a_run_with_a_recipe_is_a_run_of_trl(settings: dict[str, Any], tmp_path: Path) -> None:
    """Two generations with two updates each, two micro-batches an update: every weight ends where TRL's ends.

    With plain gradient descent: Adam divides by the size of the gradient, and so makes much of rounding.
    """
    run = {"max_steps": 4, "num_iterations": 2, "optim": "sgd", "learning_rate": 0.1}
    theirs = made(
        GRPOTrainer,
        tmp_path,
        loss_type="grpo" if settings.get("aggregation") else "dapo",
        beta=settings.get("kl", 0.0),
        use_bias_correction_kl=False,
        epsilon_high=settings.get("clip_high"),
        **run,
    )
    recipe = Recipe("grpo", dual_clip=None, advantage_eps=1e-4, **settings)
    theirs.train()
    ours = made(RecipeTrainer, tmp_path, recipe=recipe, **run)  # only now: it sets the seed
    start = {name: weight.clone() for name, weight in ours.model.named_parameters()}
    ours.train()
    moved = 0.0
    expected = dict(theirs.model.named_parameters())
    for name, weight in ours.model.named_parameters():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)
        moved = max(moved, float((weight - start[name]).abs().max().detach()))
    assert moved > 1e-3
