"""Entropy of activations: EAFO's functional derivative, the worst activation, and CRReLU's positive branch."""

from __future__ import annotations

import math

import pytest
import torch

from waver.entropy.differential import activation_entropy, entropy_change, entropy_derivative

GRID = torch.linspace(-9, 9, 400_001, dtype=torch.float64)


def normal(x: torch.Tensor) -> torch.Tensor:
    return (-0.5 * x.square()).exp() / math.sqrt(2 * math.pi)


def test_the_derivative_is_that_of_the_functional() -> None:
    x = torch.linspace(-2, 2, 400_001, dtype=torch.float64)
    y = x + 0.1 * x.sin() + 0.06 * x.cos()
    slope, curvature = 1 + 0.1 * x.cos() - 0.06 * x.sin(), -0.1 * x.sin() - 0.06 * x.cos()
    direction = (1 + x.sin()) * (math.pi * x / 4).cos() ** 4
    up, down = (activation_entropy(z, x, normal(z)) for z in (y + 1e-4 * direction, y - 1e-4 * direction))
    assert float(up - down) / 2e-4 == pytest.approx(-0.1777496, abs=1e-6)
    derivative = entropy_derivative(slope, curvature, normal(y), -y * normal(y))
    assert float(torch.trapezoid(derivative * direction, x)) == pytest.approx(-0.1777496, abs=1e-6)


def test_the_correction_of_the_identity() -> None:
    one, zero = torch.ones_like(GRID), torch.zeros_like(GRID)
    assert torch.allclose(-entropy_derivative(one, zero, normal(GRID), -GRID * normal(GRID)), GRID * normal(GRID))
    assert float(activation_entropy(GRID, GRID, normal(GRID))) == pytest.approx(1.41893853, abs=1e-8)


def mean_log(slope: torch.Tensor, weight: torch.Tensor) -> float:
    return float(torch.trapezoid(slope.log() * weight, GRID) / torch.trapezoid(weight, GRID))


def test_the_cumulative_distribution_is_the_worst() -> None:
    """Squeezed into (0, 1), entropies are at most 0: that of the uniform distribution."""
    identity, weight = 1.41893853, normal(GRID)
    sharp, soft = (torch.sigmoid(scale * GRID) for scale in (1.702, 1.0))
    assert identity + mean_log(normal(GRID), weight) == pytest.approx(0, abs=1e-8)
    assert identity + mean_log(1.702 * sharp * (1 - sharp), weight) == pytest.approx(-0.01004264, abs=1e-7)
    assert identity + mean_log((1 - GRID.tanh().square()).clamp(min=1e-300) / 2, weight) == pytest.approx(
        -0.02334306, abs=1e-6
    )
    assert identity + mean_log(soft * (1 - soft), weight) == pytest.approx(-0.19317983, abs=1e-7)


@pytest.mark.parametrize(
    ("eps", "change"), [(0.01, 0.00351638), (0.1, 0.03352084), (0.5, 0.13754357), (-0.1, -0.03738351)]
)
def test_a_negative_coefficient_lowers_the_entropy(eps: float, change: float) -> None:
    positive = GRID[len(GRID) // 2 :]
    slope = 1 + eps * (1 - positive.square()) * (-0.5 * positive.square()).exp()
    mean = torch.trapezoid(slope.log() * 2 * normal(positive), positive)
    assert float(mean) == pytest.approx(change, abs=1e-7)
    sample = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).abs()
    found = entropy_change(1 + eps * (1 - sample.square()) * (-0.5 * sample.square()).exp())
    assert float(found) == pytest.approx(change, abs=2e-3)
