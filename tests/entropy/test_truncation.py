"""The common truncations: a vector worked out by hand, an independent reference, and what holds for each of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.entropy import reference
from waver.entropy import shannon_entropy, truncation
from waver.entropy.truncation import Crop, prefix_entropies

P = (0.4, 0.25, 0.15, 0.1, 0.06, 0.04)
RULES: dict[str, tuple[float, ...]] = {
    "top_p": (0.05, 0.5, 0.9, 0.999),
    "min_p": (0.01, 0.1, 0.7, 1.0),
    "typical": (0.05, 0.5, 0.95),
    "eta": (2e-4, 0.02, 0.5),
    "epsilon": (3e-4, 0.02, 0.6),
    "top_n_sigma": (0.0, 0.5, 1.0, 3.0),
    "top_h_running": (0.1, 0.4, 0.9),
    "top_h_renormalised": (0.1, 0.4, 0.9),
}
Rule = Callable[[torch.Tensor, torch.Tensor], Crop]


def rule(name: str) -> Rule:
    found: Rule = getattr(truncation, name)
    return found


def sets(crop: Crop) -> list[set[int]]:
    return [set((row > -torch.inf).nonzero()[:, 0].tolist()) for row in crop.logits]


def parameter(value: float, rows: int = 1) -> torch.Tensor:
    return torch.full((rows,), value, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "value", "count"),
    [
        ("top_p", 0.6, 2),
        ("top_p", 0.85, 4),
        ("min_p", 0.2, 4),
        ("min_p", 0.3, 3),
        ("typical", 0.5, 3),
        ("typical", 0.9, 4),
        ("epsilon", 0.08, 4),
        ("eta", 0.08, 4),
        ("eta", 0.2, 4),
        ("top_n_sigma", 0.5, 1),
        ("top_n_sigma", 1.0, 2),
        ("top_n_sigma", 1.5, 3),
        *((name, a, n) for name in ("top_h_running", "top_h_renormalised") for a, n in ((0.4, 1), (0.5, 2), (0.7, 3))),
    ],
)
def test_check_vector(name: str, value: float, count: int, dtype: torch.dtype) -> None:
    logits = torch.tensor([P], dtype=torch.float64).log().to(dtype)
    crop = rule(name)(logits, parameter(value))
    assert sets(crop) == [set(range(count))]
    assert crop.kept.tolist() == [count]
    q = np.array(P[:count]) / sum(P[:count])
    assert float(crop.entropy) == pytest.approx(reference.entropy(q), abs=1e-6)


def test_typical_may_drop_the_top_token() -> None:
    assert sets(truncation.typical(torch.tensor([P]).log(), parameter(0.2))) == [{1}]


def test_the_whole_mass_keeps_every_token() -> None:
    """Masses in float32 may add up to 1 before the last token."""
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(3)) * 6
    logits[:, ::7] = -torch.inf
    for name in ("typical", "top_p"):
        assert rule(name)(logits, torch.ones(4)).kept.tolist() == [5000 - len(range(0, 5000, 7))] * 4


def test_digits_of_the_check_vector() -> None:
    """H = 1.5254761, thresholds of eta .0615232 and .0972768, sigma .8663566: read off where a set changes."""
    logits = torch.tensor([P], dtype=torch.float64).log()
    h = 1.5254761
    assert float(shannon_entropy(logits)) == pytest.approx(h, abs=5e-8)
    assert math.sqrt(0.08) * math.exp(-h) == pytest.approx(0.0615232, abs=5e-8)
    assert math.sqrt(0.2) * math.exp(-h) == pytest.approx(0.0972768, abs=5e-8)
    just = (P[4] * math.exp(h)) ** 2
    gap = float(logits[0, 0] - logits[0, 3]) / 0.8663566
    for nudge in (1e-6, -1e-6):
        assert (4 in sets(truncation.eta(logits, parameter(just * (1 + nudge))))[0]) == (nudge < 0)
        assert (3 in sets(truncation.top_n_sigma(logits, parameter(gap + nudge)))[0]) == (nudge > 0)


def test_prefix_entropies() -> None:
    found = prefix_entropies(torch.tensor([P]).log())[0]
    for k in range(1, 7):
        assert float(found[k - 1]) == pytest.approx(reference.entropy(np.array(P[:k]) / sum(P[:k])), abs=1e-6)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), vocab=st.integers(2, 400), scale=st.floats(0.2, 8), masked=st.booleans())
def test_reference(name: str, seed: int, vocab: int, scale: float, masked: bool) -> None:
    rng = np.random.default_rng(seed)
    values = RULES[name]
    z = (rng.normal(size=(len(values), vocab)) * scale).astype(np.float32)
    if masked:
        z[rng.random(z.shape) < 0.4] = -np.inf
        z[:, rng.integers(vocab)] = 1.0
    crop = rule(name)(torch.from_numpy(z), torch.tensor(values, dtype=torch.float64))
    for row, value, kept, n, h in zip(z, values, sets(crop), crop.kept, crop.entropy, strict=True):
        p = reference.softmax(row)
        assert kept == getattr(reference, name)(p, row, value)
        assert len(kept) == int(n)
        q = p[sorted(kept)] / p[sorted(kept)].sum()
        assert float(h) == pytest.approx(reference.entropy(q), abs=1e-4)
        assert name == "typical" or int(np.argmax(row)) in kept
    left = crop.logits > -torch.inf
    assert torch.equal(crop.logits[left], torch.from_numpy(z)[left])


@pytest.mark.parametrize("name", ["top_p", "typical", "top_h_renormalised"])
def test_rows_that_need_more_than_the_pool(name: str) -> None:
    """Flat rows beside peaked ones: the first are ranked whole, and none is changed by the company."""
    rng = np.random.default_rng(3)
    vocab, values = truncation.POOL + 300, [0.9, 0.5, 0.95, 0.97]
    z = rng.normal(size=(4, vocab)).astype(np.float32)
    z[1, :3] += 20
    z[3] *= 0.01
    crop = rule(name)(torch.from_numpy(z), torch.tensor(values, dtype=torch.float64))
    wanted = [getattr(reference, name)(reference.softmax(row), row, a) for row, a in zip(z, values, strict=True)]
    assert sets(crop) == wanted
    assert max(map(len, wanted)) > truncation.POOL > min(map(len, wanted))


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), vocab=st.integers(2, 60), scale=st.floats(0.2, 8))
def test_a_permuted_vocabulary(name: str, seed: int, vocab: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    z = torch.from_numpy((rng.normal(size=(1, vocab)) * scale).astype(np.float32))
    order = torch.from_numpy(rng.permutation(vocab))
    for value in RULES[name]:
        plain, moved = rule(name)(z, parameter(value)), rule(name)(z[:, order], parameter(value))
        assert torch.equal(plain.logits[:, order], moved.logits)


@pytest.mark.parametrize("name", RULES)
def test_coarse_logits_and_ties(name: str) -> None:
    """Logits of a half-precision model tie often: the set's size is still that of the definition."""
    z = (torch.randn(50, 300, generator=torch.Generator().manual_seed(1)) * 4).bfloat16().float()
    for value in RULES[name]:
        crop = rule(name)(z, parameter(value, 50))
        for row, n in zip(z.double().numpy(), crop.kept.tolist(), strict=True):
            assert n == len(getattr(reference, name)(reference.softmax(row), row, value))


@pytest.mark.parametrize("name", RULES)
def test_one_token_left(name: str) -> None:
    z = torch.full((2, 9), -torch.inf)
    z[0, 4], z[1, 7] = 3.0, -60.0
    crop = rule(name)(z, parameter(RULES[name][0], 2))
    assert sets(crop) == [{4}, {7}]
    assert crop.entropy.tolist() == [0, 0]


def test_top_n_sigma_does_not_know_temperature() -> None:
    z = torch.randn(8, 500, generator=torch.Generator().manual_seed(2)).double()
    cold = sets(truncation.top_n_sigma(z, parameter(1.0, 8)))
    assert cold == sets(truncation.top_n_sigma(z / 2.5, parameter(1.0, 8)))


def test_top_k() -> None:
    z = torch.tensor([[1.0, 3.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0]])
    crop = truncation.top_k(z, torch.tensor([2, 3]))
    assert sets(crop)[0] == {1, 2}
    assert crop.kept.tolist() == [2, 3]
