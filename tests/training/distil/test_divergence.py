"""Divergences to an expert: reference figures, buckets that bound, gradients, and what each does to the reward."""

from __future__ import annotations

import math

import pytest
import torch

from waver.training.distil.divergence import Expert, cost, reward_change, student_of
from waver.training.distil.names import DivergenceName

F64 = torch.float64
STUDENT = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04], dtype=F64)
TEACHER = torch.tensor([0.2, 0.5, 0.05, 0.05, 0.2], dtype=F64)


def expert(ids: list[int], complete: bool = False) -> Expert:
    return Expert(torch.tensor(ids), TEACHER[ids].log(), complete)


def found(of: Expert, divergence: DivergenceName = "forward") -> float:
    return cost(student_of(STUDENT.log(), of), of, divergence).item()


def test_the_figures() -> None:
    whole, some = expert([0, 1, 2, 3, 4], complete=True), expert([0, 1])
    assert found(whole) == pytest.approx(1.640190, abs=1e-6)
    assert found(whole) - whole.entropy().item() == pytest.approx(0.350269, abs=6e-7)
    assert found(some) == pytest.approx(1.223447, abs=6e-7)
    assert found(some) - some.entropy().item() == pytest.approx(0.193794, abs=6e-7)
    assert some.tail().item() == pytest.approx(0.3)


def test_buckets_bound_from_below_and_the_entropy_from_above() -> None:
    """More names, tighter bounds."""
    whole = expert([0, 1, 2, 3, 4], complete=True)
    for divergence in ("forward", "reverse", "js"):
        bounds = [found(expert(list(range(n))), divergence) for n in (1, 2, 3)]
        assert bounds == sorted(bounds)
        assert bounds[-1] <= found(whole, divergence) + 1e-12
    true = whole.entropy().item()
    for n in (1, 2, 3):
        assert expert(list(range(n))).entropy().item() <= true <= expert(list(range(n))).most_entropy(5).item()


def test_the_other_divergences_against_their_definitions() -> None:
    whole = expert([0, 1, 2, 3, 4], complete=True)
    p, q = STUDENT, TEACHER
    m = (p + q) / 2
    assert found(whole, "reverse") == pytest.approx((p * (p / q).log()).sum().item())
    js = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    assert found(whole, "js") == pytest.approx(js.item())


def test_a_token_named_twice_counts_once() -> None:
    """Its second place has the log-probability -inf, and no gradient is NaN."""
    twice = Expert(torch.tensor([0, 1, 0]), torch.tensor([math.log(0.2), math.log(0.5), -math.inf], dtype=F64))
    for divergence in ("forward", "reverse", "js"):
        logits = STUDENT.log().requires_grad_()
        value = cost(student_of(logits, twice), twice, divergence)
        assert value.item() == pytest.approx(found(expert([0, 1]), divergence))
        (gradient,) = torch.autograd.grad(value, logits)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_the_gradient_of_the_forward_cost_is_student_less_expert() -> None:
    logits = STUDENT.log().requires_grad_()
    whole = expert([0, 1, 2, 3, 4], complete=True)
    (gradient,) = torch.autograd.grad(cost(student_of(logits, whole), whole), logits)
    torch.testing.assert_close(gradient, STUDENT - TEACHER)
    drawn = Expert(torch.tensor([3]), torch.zeros(1, dtype=F64), complete=True)
    assert cost(student_of(STUDENT.log(), drawn), drawn).item() == pytest.approx(-math.log(0.06))


def test_only_the_forward_cost_always_follows_a_better_expert() -> None:
    """The expert earns .61 and the student .27, and yet two of the three lower the reward."""
    p, q = torch.tensor([0.02, 0.5, 0.48], dtype=F64), torch.tensor([0.6, 0.02, 0.38], dtype=F64)
    reward = torch.tensor([1.0, 0.5, 0.0], dtype=F64)
    assert (q @ reward).item() == pytest.approx(0.61)
    assert (p @ reward).item() == pytest.approx(0.27)
    figures: dict[DivergenceName, float] = {"forward": 0.34, "reverse": -0.290237, "js": -0.010465}
    for divergence, figure in figures.items():
        assert reward_change(p, q, reward, divergence).item() == pytest.approx(figure, abs=6e-7)
    mixed = [((1 - a) * p + a * q) @ reward for a in (0.1, 0.5, 1.0)]
    assert [each.item() for each in mixed] == pytest.approx([0.304, 0.44, 0.61])


def test_gradient_steps_on_logits_end_at_the_expert_though_not_monotonically() -> None:
    """The reward falls from .27 to .2548 in the first step, is .432 after nine: the guarantee is for policy space."""
    logits = torch.tensor([0.02, 0.5, 0.48], dtype=F64).log()
    whole = Expert(torch.arange(3), torch.tensor([0.6, 0.02, 0.38], dtype=F64).log(), complete=True)
    reward, earned = torch.tensor([1.0, 0.5, 0.0], dtype=F64), {}
    for step in range(1, 201):
        logits = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(cost(student_of(logits, whole), whole), logits)
        if step == 1:
            p = logits.detach().softmax(-1)
            slope = -(gradient * p * (reward - p @ reward)).sum()
            assert slope.item() == pytest.approx(-0.033772, abs=6e-7)
        logits = logits.detach() - 0.5 * gradient
        earned[step] = (logits.softmax(-1) @ reward).item()
    assert earned[1] == pytest.approx(0.2548, abs=6e-5)
    assert earned[9] == pytest.approx(0.432, abs=6e-4)
    assert earned[200] == pytest.approx(0.61, abs=1e-2)
