"""The effect of a token on entropy, and the law of accuracy and entropy: reference figures, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from tests.training.rl.rows import F64
from waver.entropy import shannon_entropy
from waver.training.rl.entropy_change import covariance, discriminator, expected_discriminator
from waver.training.rl.entropy_law import fit_entropy_law


def near(*values: float) -> list[object]:
    return [pytest.approx(value, abs=6e-8) for value in values]


LOGITS = torch.tensor([2.0, 1, 0, -1], dtype=F64)


def test_the_discriminator() -> None:
    p, h = LOGITS.softmax(-1), shannon_entropy(LOGITS)
    s = discriminator(p.log(), h)
    mean = expected_discriminator(LOGITS)
    assert p.tolist() == near(0.6439143, 0.2368828, 0.0871443, 0.0320586)
    assert [float(h), float((-h).exp())] == near(0.9475370, 0.3876948)
    assert s.tolist() == near(0.3266881, -0.1167010, -0.1300762, -0.0799110)
    assert [float(mean), float((p * s).sum())] == near(0.1688175, 0.1688175)
    assert (s - mean).tolist() == near(0.1578707, -0.2855184, -0.2988937, -0.2487284)
    assert float((p * (s - mean)).sum()) == pytest.approx(0, abs=5e-16)


@pytest.mark.parametrize(("direction", "change"), [("bump", -0.3267557), ("first", -0.1578959), ("last", 0.2487577)])
def test_a_step_changes_the_entropy_by_that(direction: str, change: float) -> None:
    p, one = LOGITS.softmax(-1), torch.eye(4, dtype=F64)
    way = {"bump": one[0], "first": one[0] - p, "last": one[3] - p}[direction]
    found = (shannon_entropy(LOGITS + 1e-3 * way) - shannon_entropy(LOGITS)) / 1e-3
    assert float(found) == pytest.approx(change, abs=6e-8)


def test_a_uniform_distribution_has_no_direction() -> None:
    flat = torch.zeros(7, dtype=F64)
    assert discriminator(flat.log_softmax(-1), shannon_entropy(flat)).abs().max() < 1e-15
    assert abs(float(expected_discriminator(flat))) < 1e-15


def test_tokens_that_cannot_be_drawn_add_nothing() -> None:
    cut = torch.tensor([2.0, 1, 0, -1, -math.inf], dtype=F64)
    assert float(expected_discriminator(cut)) == pytest.approx(0.1688175, abs=6e-8)


def test_covariance() -> None:
    logprob = torch.tensor([[-0.1, -2, -0.5, math.nan], [-0.05, -1, -3, -0.2]], dtype=F64, requires_grad=True)
    advantage = torch.tensor([[1.0, 1, 1, 0], [-1, -1, -1, -1]], dtype=F64)
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 1]], dtype=F64)
    cov = covariance(logprob, advantage, mask)
    assert cov.flatten().tolist() == near(
        1.0040816, -1.1673469, 0.5469388, 0, -0.7959184, 0.0183673, 1.7326531, -0.6673469
    )
    assert float(cov.sum() / 7) == pytest.approx(0.0959184, abs=6e-8)
    assert not cov.requires_grad
    assert not covariance(logprob, advantage, mask * 0).any()


@pytest.mark.parametrize(
    ("natural", "cov", "change", "predicted"),
    [(True, 0.2430423, -2.434765e-4, -2.430423e-4), (False, 0.1007990, -1.008626e-4, -1.007990e-4)],
)
def test_entropy_falls_by_the_covariance(natural: bool, cov: float, change: float, predicted: float) -> None:
    """Theorems 1 and 2: expectations under the policy."""
    pi = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=F64)
    moved = torch.tensor([0.8, -1.2, -0.2, -0.2], dtype=F64) * (1 if natural else pi)
    found = float((pi * pi.log() * moved).sum() - (pi * pi.log()).sum() * (pi * moved).sum())
    assert found == pytest.approx(cov, abs=6e-8)
    assert -1e-3 * found == pytest.approx(predicted, abs=6e-11)
    after = shannon_entropy(pi.log() + 1e-3 * moved) - shannon_entropy(pi.log())
    assert float(after) == pytest.approx(change, abs=6e-11)


ENTROPY = [0.6, 0.4, 0.25, 0.15, 0.08, 0.04, 0.02]
ACCURACY = [0.272019, 0.331472, 0.368875, 0.390870, 0.405008, 0.412654, 0.416364]
NOISE = [0.004, -0.003, 0.002, -0.004, 0.003, -0.001, 0.002]


def test_the_law_is_found() -> None:
    law = fit_entropy_law(ENTROPY, ACCURACY)
    assert [law.a, law.b, law.ceiling] == pytest.approx([0.18, 0.60, 0.42], abs=1e-5)
    assert [law.accuracy(h) for h in ENTROPY] == pytest.approx(ACCURACY, abs=1e-6)


def test_the_law_under_noise() -> None:
    noisy = [0.60 - 0.18 * math.exp(h) + e for h, e in zip(ENTROPY, NOISE, strict=True)]
    law = fit_entropy_law(ENTROPY, noisy)
    assert [law.a, law.b, law.ceiling, law.error(ENTROPY, noisy)] == near(0.1777368, 0.5975498, 0.4198130, 0.0028049)
    early = fit_entropy_law(ENTROPY[:4], noisy[:4])
    assert [early.a, early.b, early.error(ENTROPY[4:], noisy[4:])] == near(0.1713194, 0.5872504, 0.0052402)
    assert [early.accuracy(h) for h in ENTROPY[4:]] == pytest.approx([0.401662, 0.408939, 0.412470], abs=6e-7)


def test_one_point_is_no_line() -> None:
    with pytest.raises(ValueError, match="two different entropies"):
        fit_entropy_law([0.5, 0.5], [0.1, 0.2])
