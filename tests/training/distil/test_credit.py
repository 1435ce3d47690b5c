"""Credit for later disagreement: reference figures by enumeration, the baseline, and what only it can learn."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from waver.training.distil.credit import centred, future, surrogate
from waver.training.distil.divergence import Expert, cost, student_of

F64 = torch.float64


def forward(logits: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    expert = Expert(torch.arange(q.size(-1)).expand(q.shape), q.log(), complete=True)
    return cost(student_of(logits, expert), expert)


def test_the_sum_of_later_costs() -> None:
    c = torch.tensor([[1.0, 2, 3]])
    assert future(c, torch.tensor([[1.0, 1, 1]])).tolist() == [[5, 3, 0]]
    assert future(c, torch.tensor([[1.0, 1, 0]])).tolist() == [[2, 0, 0]]


Q0, Q1 = torch.tensor([0.5, 0.5], dtype=F64), torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=F64)


def two_steps(z0: list[float], z1: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    return (torch.tensor(z0, dtype=F64, requires_grad=True), torch.tensor(z1, dtype=F64, requires_grad=True))


def exact(z0: torch.Tensor, z1: torch.Tensor, entropy: bool = False) -> torch.Tensor:
    """Return the objective by the sum over first tokens."""
    own0 = -(Q0 * Q0.log()).sum() if entropy else 0.0
    own1 = -(Q1 * Q1.log()).sum(-1) if entropy else 0.0
    return forward(z0, Q0) - own0 + (z0.softmax(-1) * (forward(z1, Q1) - own1)).sum()


def enumerated(z0: torch.Tensor, z1: torch.Tensor, weight: float, entropy: bool = False) -> torch.Tensor:
    """Return the surrogate, each of the four answers weighed by its probability."""
    total = torch.zeros((), dtype=F64)
    for first, second in product(range(2), range(2)):
        logits = torch.stack([z0, z1[first]])
        logprob = logits.log_softmax(-1)[[0, 1], [first, second]].unsqueeze(0)
        q = torch.stack([Q0, Q1[first]])
        costs = forward(logits, q).unsqueeze(0)
        own = -(q * q.log()).sum(-1).unsqueeze(0) if entropy else 0.0
        credit = future(costs - own, torch.ones(1, 2, dtype=F64))
        rows = surrogate(costs, logprob, logprob.detach(), credit, weight)
        total = total + logprob.detach().sum().exp() * rows.sum()
    return total


def test_the_gradient_of_the_whole_answer() -> None:
    z = two_steps([0, 0], [[0, 0], [1, -1]])
    assert forward(z[1], Q1).tolist() == pytest.approx([0.693147, 1.126928], abs=6e-7)
    assert exact(*z).item() == pytest.approx(1.603185, abs=6e-7)
    full, local, true = (
        torch.autograd.grad(x, z) for x in (enumerated(*z, weight=1.0), enumerated(*z, weight=0.0), exact(*z))
    )
    assert full[0].tolist() == pytest.approx([-0.108445, 0.108445], abs=6e-7)
    assert local[0].tolist() == pytest.approx([0, 0], abs=1e-15)
    second = [-0.2, 0.2, 0.190399, -0.190399]
    for gradient in (full, local):
        assert gradient[1].flatten().tolist() == pytest.approx(second, abs=6e-7)
    for one, other in zip(full, true, strict=True):
        torch.testing.assert_close(one, other, atol=1e-15, rtol=0)


def test_at_the_expert_only_the_kl_is_at_rest() -> None:
    """The cross-entropy still prefers states where the expert is sure."""
    z = two_steps([0, 0], Q1.log().tolist())
    assert exact(*z).item() == pytest.approx(1.202262, abs=6e-7)
    assert exact(*z, entropy=True).item() == pytest.approx(0, abs=1e-12)
    of_ce, _ = torch.autograd.grad(enumerated(*z, weight=1.0), z)
    of_kl, _ = torch.autograd.grad(enumerated(*z, weight=1.0, entropy=True), z)
    assert of_ce.tolist() == pytest.approx([-0.092016, 0.092016], abs=6e-7)
    assert of_kl.tolist() == pytest.approx([0, 0], abs=1e-12)


def test_the_baseline_is_of_the_group_at_that_position() -> None:
    """A row that has ended counts as 0."""
    mask = torch.tensor([[1.0, 1], [1, 0], [1, 1]])
    found = centred(torch.tensor([[4.0, 2], [2, 0], [7, 1]]), mask, torch.tensor([5, 5, 9]))
    assert found.tolist() == [[1, 1], [-1, 0], [0, 0]]


def test_rows_that_the_model_has_moved_from_weigh_at_most_two() -> None:
    logprob = torch.tensor([[-1.0, -1, -1]], requires_grad=True)
    old = torch.tensor([[-1.0, -4, -0.5]])
    found = surrogate(torch.ones(1, 3), logprob, old, torch.zeros(1, 3))
    assert found.tolist()[0] == pytest.approx([1, 2, 0.606531])
    (gradient,) = torch.autograd.grad(found.sum(), logprob)
    assert not gradient.any()  # the ratio itself has none


def branches(weight: float, seed: int) -> float:
    """Return the success of a student that first picks a branch and then acts four times by one rule for both: the
    expert acts one way in one branch and the other way in the other, so that only a branch can be learned."""
    g = torch.Generator().manual_seed(seed)
    z, u = torch.zeros(2, requires_grad=True), torch.tensor([0.2, 0.0], requires_grad=True)
    later = torch.tensor([[0.95, 0.05], [0.05, 0.95]])
    ones = torch.ones(64, 5)
    optimizer = torch.optim.SGD([z, u], lr=0.5)
    for _ in range(400):
        logits = torch.cat([z.expand(64, 1, 2), u.expand(64, 4, 2)], 1)
        drawn = torch.multinomial(logits.detach().softmax(-1).flatten(0, 1), 1, generator=g).view(64, 5)
        q = torch.cat([torch.full((64, 1, 2), 0.5), later[drawn[:, 0]].unsqueeze(1).expand(-1, 4, -1)], 1)
        logprob = logits.log_softmax(-1).gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        costs = forward(logits, q)
        credit = centred(future(costs, ones), ones, torch.zeros(64, dtype=torch.long))
        optimizer.zero_grad()
        surrogate(costs, logprob, logprob.detach(), credit, weight).mean().backward()
        optimizer.step()
    branch, act = z.detach().softmax(-1), u.detach().softmax(-1)
    return float(branch[0] * act[0] ** 4 + branch[1] * act[1] ** 4)


def test_only_credit_for_later_costs_learns_a_branch() -> None:
    """Reference runs: success .0625 to .0652 with the local term, .594 to .612 with both."""
    assert branches(0.0, 0) < 0.1
    assert branches(1.0, 0) > 0.5
