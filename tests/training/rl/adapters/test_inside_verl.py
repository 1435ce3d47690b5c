"""Inside verl: our registrations as its trainer finds them, against its own losses and advantages on random batches.

verl needs an older transformers than Waver, so that it has an environment of its own: `make verl` makes it and runs
these tests there. Elsewhere they are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="verl is not installed beside this transformers: `make verl` runs these tests")

import numpy as np
import torch
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

from waver.training.rl.adapters.verl import register
from waver.training.rl.registry import make_recipe

ROWS, WIDTH = 12, 17
MODES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "token-mean": ("vanilla", {}, {}),
    "clip higher": ("vanilla", {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}, {"clip_high": 0.28}),
    "dual clip": ("vanilla", {"clip_ratio_c": 1.3}, {"dual_clip": 1.3}),
    "seq-mean-token-mean": ("vanilla", {}, {"aggregation": "seq-mean-token-mean"}),
    "seq-mean-token-sum": ("vanilla", {}, {"aggregation": "seq-mean-token-sum"}),
    "seq-mean-token-sum-norm": (
        "vanilla",
        {"loss_scale_factor": 40},
        {"aggregation": "seq-mean-token-sum-norm", "max_length": 40},
    ),
    "gspo": ("gspo", {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4}, {"base": "gspo"}),
    "kl_cov": ("kl_cov", {}, {"methods": [{"name": "kl_cov", "share": 0.1}]}),
    "clip_cov": (
        "clip_cov",
        {"clip_ratio_low": 1.0, "clip_ratio_high": 1.0},
        {"methods": [{"name": "clip_cov", "share": 1.0, "low": 0.1}]},
    ),
}
"""verl's loss, its configuration, and our recipe. All candidates are left out in clip_cov: its picks are random."""


def rows(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, WIDTH + 1, (ROWS, 1), generator=g)
    old = -torch.rand(ROWS, WIDTH, generator=g, dtype=torch.float64)
    mask = (torch.arange(WIDTH) < lengths).to(old.dtype)
    return {
        "old_log_prob": old,
        "log_prob": old + 0.4 * torch.randn(ROWS, WIDTH, generator=g, dtype=torch.float64),
        "advantages": torch.randn(ROWS, 1, generator=g, dtype=torch.float64) * mask,
        "response_mask": mask,
    }


def configured(mode: str) -> ActorConfig:
    """verl's own configuration of an actor, filled in as its `ppo_loss` does before it calls a registered loss."""
    name, options, _ = MODES[mode]
    config = ActorConfig(strategy="fsdp", rollout_n=4, use_dynamic_bsz=True, ppo_micro_batch_size_per_gpu=1, **options)
    policy_loss = {
        "loss_mode": name,
        "kl_cov_ratio": 0.1,
        "ppo_kl_coef": 1.0,
        "clip_cov_ratio": 1.0,
        "clip_cov_lb": 0.1,
    }
    object.__setattr__(config, "policy_loss", type(config.policy_loss)(**policy_loss))
    config.global_batch_info.update(
        dp_size=1, batch_num_tokens=None, global_batch_size=None, loss_scale_factor=config.loss_scale_factor
    )
    return config


def said(loss: str, batch: dict[str, torch.Tensor], aggregation: str, config: ActorConfig) -> list[torch.Tensor]:
    """A registered loss as the actor calls it, and its gradient."""
    new = batch["log_prob"].clone().requires_grad_()
    value, metrics = core_algos.get_policy_loss_fn(loss)(
        **batch | {"log_prob": new, "response_mask": batch["response_mask"].bool()},
        loss_agg_mode=aggregation,
        config=config,
        rollout_is_weights=None,
    )
    value.backward()
    assert all(isinstance(metric, float) for metric in metrics.values())
    assert new.grad is not None
    return [value.detach(), new.grad]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(5))
def test_the_registered_loss_is_verls_own(mode: str, seed: int) -> None:
    loss, _, arguments = MODES[mode]
    recipe = make_recipe(**arguments)
    register(recipe, name := f"waver-{mode}-{seed}")
    config, batch = configured(mode), rows(seed)
    aggregation = recipe.settings.aggregation
    for ours, theirs in zip(
        said(name, batch, aggregation, config), said(loss, batch, aggregation, config), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("kl_cov", "clip_cov")])
def test_micro_batches_are_divided_by_what_verl_says_of_the_whole(mode: str) -> None:
    loss, _, arguments = MODES[mode]
    recipe = make_recipe(**arguments)
    register(recipe, name := f"waver-parts-{mode}")
    config, batch = configured(mode), rows(0)
    tokens = int(batch["response_mask"].sum())
    config.global_batch_info.update(dp_size=2, batch_num_tokens=tokens, global_batch_size=ROWS)
    for start in range(0, ROWS, 5):
        part = {key: value[start : start + 5] for key, value in batch.items()}
        found = (said(which, part, recipe.settings.aggregation, config) for which in (name, loss))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("estimator", "arguments", "options"),
    [
        ("grpo", {}, {}),
        ("grpo", {"base": "dr_grpo", "max_length": 8}, {"norm_adv_by_std_in_grpo": False}),
        ("rloo", {"advantage": "rloo"}, {}),
    ],
)
def test_the_registered_advantages_are_verls_own(
    estimator: str, arguments: dict[str, Any], options: dict[str, Any]
) -> None:
    register(make_recipe(**arguments), name := f"waver-{estimator}-{len(arguments)}")
    mask = rows(1)["response_mask"]
    rewards = torch.zeros_like(mask)
    rewards[:, 0] = torch.rand(ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    uid = np.array([f"u{i % 3}" for i in range(ROWS)], dtype=object)
    given = {"token_level_rewards": rewards, "response_mask": mask, "index": uid, "config": AlgoConfig()}
    ours, returns = core_algos.get_adv_estimator_fn(name)(**given)
    theirs, _ = core_algos.get_adv_estimator_fn(estimator)(**given, **options)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    torch.testing.assert_close(returns, theirs, atol=1e-6, rtol=0)


def test_an_external_library_registers_the_recipe_of_a_file(tmp_path: Path) -> None:
    """In a process of its own, as a worker of verl imports it."""
    (tmp_path / "recipe.yaml").write_text("base: grpo\nclip_high: 0.28\nmethods: [clip_cov]\n")
    program = (
        "import json\n"
        "from verl.utils.import_utils import import_external_libs\n"
        "import_external_libs('waver.training.rl.adapters.verl')\n"
        "from verl.trainer.ppo import core_algos as c\n"
        "print(json.dumps([f('waver').__module__ for f in (c.get_policy_loss_fn, c.get_adv_estimator_fn)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "WAVER_RECIPE": str(tmp_path / "recipe.yaml"), "PYTHONPATH": "."},
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["waver.training.rl.adapters.verl"] * 2
