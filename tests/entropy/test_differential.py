"""Differential entropy of linear maps: the figures of KappaTune, and a sampled one."""

from __future__ import annotations

import math

import pytest
import torch

from waver.entropy.differential import gaussian_map_entropy


def entropy(*singular: float) -> float:
    return float(gaussian_map_entropy(torch.tensor(singular, dtype=torch.float64)))


def test_equal_norms_have_most_entropy_where_they_are_flat() -> None:
    assert entropy(1, 1) == pytest.approx(2.83787707, abs=1e-8)
    assert entropy(1.4, 0.2) == pytest.approx(1.56491139, abs=1e-8)


@pytest.mark.parametrize(("kappa", "lost"), [(2, -0.22314355), (5, -0.95551144), (10, -1.61938824), (100, -3.91212300)])
def test_what_a_spread_costs(kappa: float, lost: float) -> None:
    small = math.sqrt(2 / (1 + kappa**2))
    assert entropy(kappa * small, small) - entropy(1, 1) == pytest.approx(lost, abs=1e-8)


def test_it_is_that_of_the_multivariate_normal() -> None:
    weight = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    covariance = 2.0 * torch.eye(5, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(5, dtype=torch.float64), weight @ covariance @ weight.T)
    found = gaussian_map_entropy(torch.linalg.svdvals(weight), float(torch.logdet(covariance)))
    assert float(found) == pytest.approx(float(normal.entropy()), abs=1e-9)
