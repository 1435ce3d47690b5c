"""Entropy-Guided Attention: the worked example, its gradient, temperature, the scaled feed-forward, and padding."""

from __future__ import annotations

import math

import pytest
import torch

from waver.entropy.attention import head_fractions, row_entropy
from waver.training.tuning.attention_entropy import (
    EntropyRegulariser,
    ScaledFeedForward,
    SoftmaxOnlyBlock,
    TemperedAttention,
)

THIRD = 1 / 3
ROWS = torch.tensor(
    [
        [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [THIRD, THIRD, THIRD, 0], [0.25] * 4],
        [[1, 0, 0, 0], [0.9, 0.1, 0, 0], [0.8, 0.1, 0.1, 0], [0.7, 0.1, 0.1, 0.1]],
    ],
    dtype=torch.float64,
).unsqueeze(0)


def regulariser(tolerance: float = 0.2, heads: int = 2, length: int = 4) -> EntropyRegulariser:
    return EntropyRegulariser(1, heads, length, tolerance).double()


def test_row_entropies() -> None:
    found = row_entropy(ROWS)[0]
    assert found[0].tolist() == pytest.approx([-1e-9, 0.69314718, 1.09861229, 1.38629436], abs=1e-8)
    assert found[1].tolist() == pytest.approx([-1e-9, 0.32508297, 0.63903186, 0.94044799], abs=1e-8)


def test_the_loss_and_its_gradient() -> None:
    made = regulariser()
    loss = made([ROWS])
    assert loss.item() == pytest.approx(0.21765403, abs=1e-8)
    released = 4 * loss  # the released code's sum over texts and places
    assert released.item() == pytest.approx(0.87061613, abs=1e-8)
    (gradient,) = torch.autograd.grad(released, made.thresholds)
    assert gradient[0].tolist() == pytest.approx([-0.56209398, 1.47115137], abs=1e-7)
    assert 4 * regulariser(0.0)([ROWS]).item() == pytest.approx(0.90265920, abs=1e-8)
    assert 1e-5 * released.item() == pytest.approx(8.70616e-06, abs=1e-11)


def test_the_dead_zone() -> None:
    uniform = torch.ones(128, 128, dtype=torch.float64).tril()
    uniform = uniform / uniform.sum(-1, keepdim=True)
    made = regulariser(heads=1, length=128)
    free = [row for row in range(128) if float(made([uniform[None, None, row : row + 1]]).detach()) == 0]
    assert free == list(range(4, 29))


def test_padding_does_not_count() -> None:
    made = regulariser()
    junk = ROWS.clone()
    junk[:, :, 3] = 0.25
    both = torch.cat([ROWS, junk])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]])
    assert made([both], mask).item() == pytest.approx(made([ROWS], mask[:1]).item())
    assert made([both]).item() != pytest.approx(made([ROWS]).item())


@pytest.mark.parametrize(("t", "entropy"), [(0.5, 0.45542862), (1, 0.94753696), (2, 1.24505042), (4, 1.34824261)])
def test_temperature_widens_a_row(t: float, entropy: float) -> None:
    module = TemperedAttention(1, 1, 4).double()
    with torch.no_grad():
        # The last query sees keys whose logits are 2, 1, 0 and -1.
        module.inputs.weight.copy_(torch.tensor([[0.0], [1.0], [0.0]]))
        module.inputs.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
        module.temperature.fill_(t)  # type: ignore[union-attr]
    x = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64).view(1, 4, 1)
    _, attention = module(x)
    assert row_entropy(attention)[0, 0, 3].item() == pytest.approx(entropy, abs=1e-7)


def test_the_scaled_feed_forward() -> None:
    module = ScaledFeedForward(2, alpha=2.0, beta=0.5)
    with torch.no_grad():
        module.fused.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    assert module(torch.tensor([1.0, -2.0])).tolist() == [-1, -2]


def test_a_block_is_causal_and_hands_out_its_rows() -> None:
    torch.manual_seed(0)
    block = SoftmaxOnlyBlock(8, 2, 6)
    x = torch.randn(3, 6, 8)
    out, attention = block(x)
    assert torch.allclose(attention.sum(-1), torch.ones(3, 2, 6))
    x[:, 4:] += 1
    assert torch.allclose(block(x)[0][:, :4], out[:, :4], atol=1e-6)
    assert not torch.allclose(block(x)[0][:, 4:], out[:, 4:])


def test_heads_are_told_apart_by_their_fraction() -> None:
    fractions = head_fractions(ROWS)
    assert float(fractions[0]) == pytest.approx(1.0, abs=1e-8)
    assert float(fractions[1]) == pytest.approx(
        sum(e / math.log(n) for e, n in ((0.32508297, 2), (0.63903186, 3), (0.94044799, 4))) / 3, abs=1e-7
    )
    masked = head_fractions(torch.cat([ROWS, ROWS]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
    assert float(masked[1]) < float(fractions[1])
