"""Matrix entropy against figures worked out by independent code, budgets, and which tokens it keeps."""

from __future__ import annotations

import math

import pytest
import torch

from waver.entropy.matrix import (
    centred_rows,
    collapse_layer,
    drop_ratio,
    keep_tokens,
    matrix_entropy,
    primal_matrix_entropy,
    representation_entropy,
    tokens_to_keep,
)

F64 = torch.float64
R = torch.tensor([[1, 2, 0], [0, 1, 1], [2, 0, 1], [1, 1, 2]], dtype=F64)


def both(x: torch.Tensor) -> tuple[float, float]:
    """Return the entropies without and with normalised rows."""
    return float(matrix_entropy(x, False)), float(matrix_entropy(x))


def test_entropies() -> None:
    cross = torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1]], dtype=F64)
    assert both(cross) == pytest.approx((0.5, 0.5), abs=1e-7)
    values = [torch.linalg.eigvalsh(z @ z.T / 4).tolist() for z in (centred_rows(R, False), centred_rows(R))]
    assert values[0] == pytest.approx([0, 0.1464466, 0.5, 0.8535534], abs=1e-7)
    assert values[1] == pytest.approx([0, 0.125, 0.375, 0.5], abs=1e-7)
    assert both(R) == pytest.approx((0.5504380, 0.7028195), abs=1e-7)
    assert both(3 * R) == pytest.approx((-16.4430516, 0.7028195), abs=1e-7)
    assert both(0.3 * R) == pytest.approx((0.2840298, 0.7028195), abs=1e-7)
    line = torch.tensor([[1, 0, 0], [2, 0, 0], [3, 0, 0], [6, 0, 0]], dtype=F64)
    assert both(line) == pytest.approx((-3.1628711, 0.1556391), abs=1e-7)
    assert torch.isfinite(matrix_entropy(torch.zeros(3, 4)))
    with pytest.raises(ValueError, match="two rows"):
        matrix_entropy(torch.ones(1, 4))


def test_budgets() -> None:
    assert [tokens_to_keep(32, 2, 576, a) for a in (192, 128, 64)] == [166, 98, 29]
    assert tokens_to_keep(40, 2, 576, 192) == 171
    assert tokens_to_keep(32, 2, 576, 30) == 1
    assert [drop_ratio(28, 1, f) for f in (0.25, 0.125)] == pytest.approx([0.7777778, 0.9074074], abs=1e-7)


def test_dual_equals_primal() -> None:
    x = torch.randn(6, 32, 128, generator=torch.Generator().manual_seed(0), dtype=F64)
    for normalise in (True, False):
        gap = (matrix_entropy(x, normalise) - primal_matrix_entropy(x, normalise)).abs()
        assert float(gap.max()) < 1e-6
    tall = torch.randn(40, 8, generator=torch.Generator().manual_seed(1), dtype=F64)
    z = centred_rows(tall)
    values = torch.linalg.eigvalsh(z @ z.T / 40).clamp(min=1e-10)
    assert representation_entropy(tall) == pytest.approx(float(-(values * values.log()).sum()) / math.log(40), abs=1e-6)
    assert (128 / 32) ** 3 == 64, "the operations that the smaller matrix saves"


def test_collapse() -> None:
    assert collapse_layer([0.9, 0.88, 0.5, 0.45, 0.4, 0.4, 0.4, 0.4, 0.1, 0.1, 0.1, 0.1]) == 2
    assert collapse_layer([0.9, 0.5]) == 1
    with pytest.raises(ValueError, match="two layers"):
        collapse_layer([0.5])


def test_edges() -> None:
    queries = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(2))
    assert keep_tokens(queries, 9).tolist() == [0, 1, 2, 3, 4]
    assert len(keep_tokens(queries, 0)) == 1
    queries[1, 0, 0] = torch.nan
    assert keep_tokens(queries, 4).tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_informative_tokens_are_kept(seed: int) -> None:
    """Images of 64 tokens: 56 of rank one, 8 with a noisy prototype of their class, which what is kept must tell."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    images, tokens, heads, width = 150, 64, 8, 16
    norm = math.sqrt(heads * width)
    prototypes = normal(10, heads, width)
    prototypes *= norm / prototypes.flatten(1).norm(dim=1)[:, None, None]
    labels = torch.randint(10, (images,), generator=generator)
    dull = normal(images, tokens, heads, 1) * normal(images, tokens, 1, width)
    dull = dull * norm / dull.flatten(2).norm(dim=2)[..., None, None] + 0.05 * normal(images, tokens, heads, width)
    told = (prototypes[labels][:, None] + 1.5 * normal(images, 8, heads, width)) / math.sqrt(3.25)
    places = torch.stack([torch.randperm(tokens, generator=generator)[:8] for _ in range(images)])

    def right(scores: torch.Tensor, made: torch.Tensor) -> float:
        kept = scores.argsort(1, descending=True)[:, :8]
        mean = made[torch.arange(images)[:, None], kept].mean(1)
        said = torch.cdist(mean.flatten(1), prototypes.flatten(1)).argmin(1)
        return float((said == labels).float().mean())

    def scene(scale: float) -> torch.Tensor:
        made = dull.clone()
        made[torch.arange(images)[:, None], places] = scale * told
        return made

    plain = scene(1.0)
    scores = matrix_entropy(plain)
    chance = right(torch.rand(images, tokens, generator=generator), plain)
    assert right(scores, plain) > chance + 0.2
    assert chance > right(-scores, plain)
    assert right(scores, plain) > 0.95
    double = scene(2.0)
    assert right(matrix_entropy(double), double) > 0.95
    assert right(matrix_entropy(double, False), double) < 0.3, "without normalised rows, large vectors look redundant"
    assert right(double.flatten(2).norm(dim=2), double) > 0.95
    half = scene(0.5)
    assert right(matrix_entropy(half), half) > 0.95
    assert right(matrix_entropy(half, False), half) > 0.95
    assert right(half.flatten(2).norm(dim=2), half) < 0.3
