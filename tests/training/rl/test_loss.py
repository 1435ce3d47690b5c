"""The token loss against reference figures (checks 2 to 6), and what must hold for any batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.rl.rows import F64, batch
from waver.training.rl import Recipe
from waver.training.rl.loss import aggregate, clipped_loss, importance_ratio, k3
from waver.training.rl.shaping import mixed_groups, overlong_penalty

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=F64)
OLD = torch.tensor([[-1, -0.5, -2, -0.1], [-0.7, -1.2, 0, 0]], dtype=F64)
NEW = torch.tensor([[-0.7, -0.6, -2.4, -0.1], [-0.4, -1.6, 0, 0]], dtype=F64)
A = torch.tensor([[1.0] * 4, [-1.0] * 4], dtype=F64)
MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")


def close(found: torch.Tensor, expected: list[list[float]] | float) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), atol=6e-8, rtol=0)


def test_the_ratio_and_the_clipped_matrix() -> None:
    ratio = importance_ratio(NEW, OLD, MASK)
    close(ratio, [[1.3498588, 0.9048374, 0.6703200, 1], [1.3498588, 0.6703200, 1, 1]])
    loss = clipped_loss(ratio, A, 0.2, 0.28)
    close(loss * MASK, [[-1.28, -0.9048374, -0.6703200, -1], [1.3498588, 0.8, 0, 0]])


@pytest.mark.parametrize(
    ("mode", "high", "expected"),
    [
        ("token-mean", 0.28, -0.2842164),
        ("seq-mean-token-mean", 0.28, 0.0555700),
        ("seq-mean-token-sum", 0.28, -0.8526493),
        ("seq-mean-token-sum-norm", 0.28, -0.2131623),
        ("token-mean", 0.2, -0.2708831),
    ],
)
def test_the_aggregations(mode: str, high: float, expected: float) -> None:
    loss = clipped_loss(importance_ratio(NEW, OLD, MASK), A, 0.2, high)
    close(aggregate(loss, MASK, mode=mode, constant=4), expected)  # type: ignore[arg-type]


def test_the_gradient() -> None:
    new = NEW.clone().requires_grad_()
    aggregate(clipped_loss(importance_ratio(new, OLD, MASK), A, 0.2, 0.28), MASK).backward()
    assert new.grad is not None
    close(new.grad, [[0, -0.1508062, -0.1117200, -0.1666667], [0.2249765, 0, 0, 0]])


def test_bounds_may_differ_by_token() -> None:
    low, high = torch.full_like(A, 0.2), torch.full_like(A, 0.28)
    ratio = importance_ratio(NEW, OLD, MASK)
    assert torch.equal(clipped_loss(ratio, A, low, high), clipped_loss(ratio, A, 0.2, 0.28))
    high[0, 0] = 0.5
    assert clipped_loss(ratio, A, 0.2, high)[0, 0].item() == pytest.approx(-1.3498588, abs=6e-8)


def test_gspo() -> None:
    new = NEW.clone().requires_grad_()
    ratio = importance_ratio(new, OLD, MASK, "gspo")
    close(ratio[:, :1], [[0.9512294], [0.9512294]])
    matrix = clipped_loss(ratio, A, 3e-4, 4e-4)
    close(matrix * MASK, [[-0.9512294] * 4, [0.9997] * 2 + [0, 0]])
    loss = aggregate(matrix, MASK, mode="seq-mean-token-mean")
    close(loss, 0.0242353)
    (gradient,) = torch.autograd.grad(loss, new, retain_graph=True)
    close(gradient, [[-0.1189037] * 4, [0.0] * 4])
    wider = aggregate(clipped_loss(ratio, A, 0.2, 0.2), MASK, mode="seq-mean-token-mean")
    (gradient,) = torch.autograd.grad(wider, new)
    close(gradient, [[-0.1189037] * 4, [0.2378074, 0.2378074, 0, 0]])


def test_gspo_has_the_gradient_of_the_row_form() -> None:
    """TRL lets the gradient flow through the row's mean; for advantages constant in a row both are one."""
    new = NEW.clone().requires_grad_()
    lengths = MASK.sum(1)
    row = (((new - OLD) * MASK).sum(1) / lengths).exp()
    (expected,) = torch.autograd.grad(torch.maximum(-A[:, 0] * row, -A[:, 0] * row.clamp(0.8, 1.2)).mean(), new)
    token = aggregate(clipped_loss(importance_ratio(new, OLD, MASK, "gspo"), A), MASK, mode="seq-mean-token-mean")
    torch.testing.assert_close(torch.autograd.grad(token, new)[0], expected)


def test_the_sequence_ratio_is_not_normalised_by_length() -> None:
    ratio = importance_ratio(NEW, OLD, MASK, "sequence")
    close(ratio[:, 0], [math.exp(-0.2), math.exp(-0.1)])  # type: ignore[arg-type]


def test_the_dual_clip() -> None:
    ratio, advantage = torch.tensor([[math.e**2]], dtype=F64), torch.tensor([[-1.0]], dtype=F64)
    close(clipped_loss(ratio, advantage, dual=3.0), [[3.0]])
    close(clipped_loss(ratio, advantage), [[7.3890561]])
    assert clipped_loss(ratio, -advantage, dual=3.0).item() == pytest.approx(-1.2)


def test_k3() -> None:
    ref = torch.tensor([[-0.9, -0.6, -2, -0.3], [-0.4, -1, 0, 0]], dtype=F64)
    kl = k3(NEW, ref, MASK)
    close(kl, [[0.0187308, 0, 0.0918247, 0.0187308], [0, 0.2221188, 0, 0]])
    close(aggregate(kl, MASK), 0.0585675)


def test_overlong_shaping() -> None:
    lengths = torch.tensor([16384, 17408, 18432, 20480], dtype=F64)
    close(overlong_penalty(lengths, 20480, 4096), [0, -0.25, -0.5, -1])  # type: ignore[arg-type]


def test_dynamic_sampling_keeps_groups_with_both_and_groups_of_one() -> None:
    group = torch.tensor([0, 0, 1, 1, 2, 3, 3])
    metric = torch.tensor([1, 0, 1, 1, 0, 0, 0])
    assert mixed_groups(metric, group).tolist() == [True, True, False, False, True, False, False]


@given(st.integers(0, 2**31), st.sampled_from([None, 3.0]), st.sampled_from(["token", "gspo", "sequence"]))
def test_a_weight_may_be_folded_into_the_advantage(seed: int, dual: float | None, level: str) -> None:
    draw = torch.Generator().manual_seed(seed)
    new, old, advantage = (torch.randn(3, 5, generator=draw, dtype=F64) for _ in range(3))
    weight = torch.rand(3, 5, generator=draw, dtype=F64)
    ratio = importance_ratio(new, old, torch.ones(3, 5), level)  # type: ignore[arg-type]
    apart = weight * clipped_loss(ratio, advantage, 0.2, 0.28, dual)
    together = clipped_loss(ratio, weight * advantage, 0.2, 0.28, dual)
    torch.testing.assert_close(apart, together, rtol=1e-12, atol=1e-12)


def test_padding_may_hold_anything() -> None:
    dirty = torch.where(MASK > 0, NEW, torch.nan).requires_grad_()
    loss = aggregate(clipped_loss(importance_ratio(dirty, OLD, MASK), A, 0.2, 0.28), MASK)
    loss.backward()
    close(loss.detach(), -0.2842164)
    assert dirty.grad is not None
    assert dirty.grad.isfinite().all()
    assert k3(dirty, OLD, MASK).isfinite().all()


def test_half_precision_is_widened() -> None:
    ratio = importance_ratio(NEW.bfloat16(), OLD.bfloat16(), MASK)
    assert ratio.dtype == torch.float32
    assert k3(NEW.bfloat16(), OLD.bfloat16(), MASK).dtype == torch.float32


def test_selected_divides_by_what_counts() -> None:
    loss = torch.tensor([[2.0, 4, 6], [8, 10, 12]], dtype=F64)
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0]], dtype=F64)
    weight = torch.tensor([[1.0, 0, 1], [0, 0, 1]], dtype=F64)
    found = {(m, d): aggregate(loss, mask, weight, m, d, constant=2).item() for m in MODES for d in ("all", "selected")}  # type: ignore[arg-type]
    assert found == pytest.approx(
        {
            ("token-mean", "all"): 8 / 5,
            ("token-mean", "selected"): 8 / 2,
            ("seq-mean-token-mean", "all"): 8 / 3 / 2,
            ("seq-mean-token-mean", "selected"): 8 / 2 / 1,
            ("seq-mean-token-sum", "all"): 8 / 2,
            ("seq-mean-token-sum", "selected"): 8 / 1,
            ("seq-mean-token-sum-norm", "all"): 8 / 4,
            ("seq-mean-token-sum-norm", "selected"): 8 / 2,
        }
    )


@pytest.mark.parametrize("mode", MODES)
def test_nothing_selected_is_a_loss_of_nothing(mode: str) -> None:
    none = torch.zeros_like(MASK)
    assert aggregate(NEW, MASK, none, mode, "selected", constant=4).item() == 0  # type: ignore[arg-type]
    assert aggregate(NEW, none, None, mode, constant=4).item() == 0  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    mode=st.sampled_from(MODES),
    denominator=st.sampled_from(["all", "selected"]),
    parts=st.integers(1, 7),
)
def test_micro_batches_add_up(seed: int, mode: str, denominator: str, parts: int) -> None:
    """Loss, gradient and metrics do not depend on how an optimizer batch is cut, rows without a token included."""
    draw = torch.Generator().manual_seed(seed)
    new, old, ref, advantage = (torch.randn(7, 5, generator=draw, dtype=F64) for _ in range(4))
    lengths = torch.randint(0, 6, (7,), generator=draw)
    mask = (torch.arange(5) < lengths.unsqueeze(1)).to(F64)
    weight = torch.rand(7, 5, generator=draw, dtype=F64).round(decimals=1)
    weight[torch.rand(7, 5, generator=draw) < 0.4] = 0
    recipe = Recipe(aggregation=mode, denominator=denominator, kl=0.1, max_length=9)

    def run(parts: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
        leaf = new.clone().requires_grad_()
        whole = batch(mask, old_logprob=old, logprob=leaf, advantage=advantage, weight=weight, ref_logprob=ref)
        total, sums = torch.zeros((), dtype=F64), dict[str, float]()
        for micro in whole.counted().split(parts):
            loss, metrics = recipe.loss(micro)
            total = total + loss
            sums = {name: sums.get(name, 0.0) + value for name, value in metrics.items()}
        (gradient,) = torch.autograd.grad(total, leaf)
        return total, gradient, sums

    for one, cut in zip(run(1)[:2], run(parts)[:2], strict=True):
        torch.testing.assert_close(one, cut)
    assert run(parts)[2] == pytest.approx(run(1)[2])
