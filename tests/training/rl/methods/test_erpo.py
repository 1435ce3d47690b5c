"""ERPO: reference figures, what the statistics are taken over, and that the correction lands on pivots."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.rl.rows import F64, batch
from waver.training.rl import Batch, RecipeError, load, make_recipe
from waver.training.rl.methods.erpo import Parameters, bucket, correction, gate, progress, standardised
from waver.training.rl.toy import train

MASK = [[1, 1, 1, 1], [1, 1, 1, 0]]
ENTROPY = [[0.1, 2.0, 0.1, 0.6], [0.2, 1.5, 0.3, 0.0]]
OLD = torch.tensor([[0.9, 0.3, 0.95, 0.6], [0.9, 0.5, 0.8, 1.0]], dtype=F64).log()
REFERENCE = torch.tensor([[0.9, 0.2, 0.95, 0.7], [0.8, 0.4, 0.9, 1.0]], dtype=F64).log()
A = 0.5 / (0.5 + 1e-6)
CREDITED = [[0.996150, 1.293753, 1.004230, 0.931992], [-0.997156, -1.048902, -0.994994, 0]]


def close(found: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=F64), atol=1.5e-6, rtol=0)


def rows(**given: Any) -> Batch:
    fields: dict[str, Any] = {
        "entropy": ENTROPY,
        "old_logprob": OLD,
        "ref_logprob": REFERENCE,
        "advantage": [[A] * 4, [-A] * 3 + [0]],
    }
    return batch(given.pop("mask", MASK), **(fields | given))


def credited(b: Batch, **parameters: Any) -> torch.Tensor:
    hook = load("erpo", **({"buckets": 2} | parameters)).advantage_transform
    assert hook
    return hook(b)


def test_figures() -> None:
    b = rows()
    valid = b.mask > 0
    z = [[-0.832068, 1.867080, -0.832068, -0.121766], [-0.690008, 1.156778, -0.547947, 0]]
    close(standardised(b.entropy, valid, torch.zeros_like(b.mask).long()), z)
    w = [[0.015363, 0.999912, 0.015363, 0.352326], [0.030768, 0.996933, 0.060669, 0]]
    close(gate(b.entropy, valid, b.group, 5.0), w)
    assert bucket(valid, 2)[valid].tolist() == [0, 0, 1, 1, 0, 0, 1]
    s = [[-1.252331, 1.468902, 1.377525, -0.965102], [-0.461843, 0.245272, -0.412423, 0]]
    close(progress(0.1 * (OLD - REFERENCE), valid, b.group, 2), s)
    close(credited(b), CREDITED)


def test_nothing_is_added_before_the_first_update_or_without_a_signal() -> None:
    close(credited(rows(ref_logprob=OLD)), [[A] * 4, [-A] * 3 + [0]])
    assert not credited(rows(advantage=torch.zeros(2, 4))).any()


def test_the_gate() -> None:
    """sigmoid(5 z) at one standard deviation below the mean, at it, and one above."""
    entropy = torch.tensor([[0.0, 1.0, 2.0, 1.0]], dtype=F64)
    entropy = (entropy - 1) * math.sqrt(2) + 1  # standard deviation 1
    found = gate(entropy, torch.ones(1, 4) > 0, torch.zeros(1).long(), 5.0)
    spread = math.sqrt(2) * 5
    close(found[0], [1 / (1 + math.exp(spread)), 0.5, 1 / (1 + math.exp(-spread)), 0.5])
    close((5 * torch.tensor([-1, 0, 1], dtype=F64)).sigmoid(), [0.006693, 0.5, 0.993307])


def test_groups_do_not_see_each_other() -> None:
    """Two prompts in one batch, their rows not side by side, give what each gives alone."""
    order = [0, 2, 1, 3]
    b = rows(
        mask=torch.tensor(MASK * 2)[order],
        entropy=torch.tensor([*ENTROPY, *[[9 * h + 1 for h in row] for row in ENTROPY]], dtype=F64)[order],
        old_logprob=torch.cat([OLD, OLD])[order],
        ref_logprob=torch.cat([REFERENCE, REFERENCE])[order],
        advantage=torch.tensor([[A] * 4, [-A] * 3 + [0]] * 2, dtype=F64)[order],
        group=[7, 3, 7, 3],
    )
    found = credited(b)
    close(found[[0, 2]], CREDITED)
    close(found[[1, 3]], CREDITED)  # the gate is free of scale


def test_padding_changes_nothing() -> None:
    """Wherever it stands and whatever is in it."""
    at = [0, 2, 3, 5]
    wide = {
        name: torch.full((2, 6), fill, dtype=F64).index_copy(1, torch.tensor(at), torch.as_tensor(value, dtype=F64))
        for name, value, fill in [
            ("mask", MASK, 0.0),
            ("entropy", ENTROPY, 50.0),
            ("old_logprob", OLD, -40.0),
            ("ref_logprob", REFERENCE, -math.inf),
            ("advantage", [[A] * 4, [-A] * 3 + [0]], 0.0),
        ]
    }
    close(credited(rows(**wide))[:, at], CREDITED)
    assert not credited(rows(**wide))[:, [1, 4]].any()


def test_the_sign_is_the_response_s() -> None:
    """A transform before this one may have turned single tokens around."""
    turned = torch.tensor([[A, A, -0.1, A], [-A, -A, -A, 0]], dtype=F64)
    b, plain = rows(advantage=turned), rows()
    close(credited(b) - turned, credited(plain) - plain.advantage)


def test_the_scale_of_progress_cancels() -> None:
    """But for eps, which a smaller beta lets weigh more."""
    torch.testing.assert_close(credited(rows(), beta=0.2), torch.tensor(CREDITED, dtype=F64), atol=2e-5, rtol=0)


def test_guards() -> None:
    b = rows(ref_logprob=OLD - torch.tensor([[0, 1e-6, 0, 0], [0, 0, 0, 0]], dtype=F64))
    assert (credited(b, smallest_spread=1e-4) - b.advantage).abs().max() == 0
    assert (credited(b) - b.advantage).abs().max() > 1e-3
    close(
        credited(rows(), largest=0.5),
        rows().advantage
        + 0.2
        * gate(rows().entropy, rows().mask > 0, rows().group, 5.0)
        * torch.tensor([[-0.5, 0.5, 0.5, -0.5], [0.461843, -0.245272, 0.412423, 0]], dtype=F64),
    )
    psi = correction(rows(), Parameters(buckets=2, norm_psi=True))
    assert float(psi[rows().mask > 0].square().mean()) == pytest.approx(1, abs=1e-4)


def test_a_token_alone_in_its_bucket_gets_nothing() -> None:
    b = rows(mask=[[1, 1, 0, 0], [1, 0, 0, 0]])
    found = credited(b, buckets=2)
    assert found[0, 1] == b.advantage[0, 1]
    assert found[0, 0] != b.advantage[0, 0]


def test_it_lands_on_pivots() -> None:
    """Share of the correction on the fifth of tokens with the highest entropy: 0.2 without the gate, 0.72 with it."""

    def share(seed: int, gamma: float) -> float:
        draw = np.random.default_rng(seed)
        high = draw.random((8, 200)) < 0.2
        entropy = np.where(high, draw.uniform(0.8, 2.5, (8, 200)), draw.exponential(0.05, (8, 200)))
        s = 0.1 * draw.normal(0, 0.3, (8, 200))
        b = batch(
            np.ones((8, 200)),
            entropy=entropy,
            old_logprob=s / 0.1,
            ref_logprob=np.zeros((8, 200)),
            advantage=np.tile([[1.0], [-1.0]], (4, 200)),
        )
        psi = correction(b, Parameters(gamma=gamma, buckets=4)).abs()
        return float(psi[b.entropy >= b.entropy.quantile(0.8)].sum() / psi.sum())

    shares = {gamma: [share(seed, gamma) for seed in range(5)] for gamma in (0.0, 1.0, 5.0)}
    assert [shares[g][0] for g in shares] == pytest.approx([0.191012, 0.342694, 0.706726], abs=1e-5)
    assert [np.mean(shares[g]) for g in shares] == pytest.approx([0.197, 0.350, 0.720], abs=5e-4)
    assert np.mean(shares[5.0]) > 3 * np.mean(shares[0.0])


def test_it_trains_and_refuses() -> None:
    run = train(make_recipe("grpo", ["erpo"]), 0, steps=3)
    assert 0 < run.steps[-1]["erpo/pivots"] < 0.5
    assert run.steps[-1]["erpo/progress"] > 0
    assert make_recipe("grpo", ["erpo"]).needs_reference
    with pytest.raises(RecipeError, match=r"erpo\.eta"):
        make_recipe("grpo", [{"name": "erpo", "eta": 1}])
    with pytest.raises(ValueError, match="ref_logprob"):
        credited(batch(MASK))
