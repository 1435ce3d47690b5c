"""Routing over experts and atoms: the worked numbers of DynMoLE and Queryable LoRA, and the edges of the rule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from waver.entropy import renyi_entropy, tsallis_entropy
from waver.entropy.routing import RoutingRule, balance_loss, convex_weights, expert_mask, route, routing_entropy

TOKENS = torch.tensor(
    [
        [0.4, 0.3, 0.15, 0.1, 0.03, 0.02],
        [0.8, 0.1, 0.05, 0.03, 0.01, 0.01],
        [0.25, 0.2, 0.18, 0.15, 0.12, 0.10],
        [0.5, 0.2, 0.2, 0.05, 0.03, 0.02],
    ],
    dtype=torch.float64,
)
UNIFORM = torch.full((6,), 1 / 6, dtype=torch.float64)
RULE = RoutingRule()


def test_entropies() -> None:
    raw = routing_entropy(TOKENS, eps=0, normalise=False)
    assert raw.tolist() == pytest.approx([1.30888067, 0.67418309, 1.59873641, 1.21239163], abs=1e-8)
    assert float(routing_entropy(UNIFORM, eps=0, normalise=False)) == pytest.approx(1.64041198, abs=1e-8)
    eight = torch.full((8,), 1 / 8, dtype=torch.float64)
    assert float(routing_entropy(eight, eps=0, normalise=False)) == pytest.approx(1.87747604, abs=1e-8)
    without = routing_entropy(TOKENS, eps=0).tolist()
    assert without == pytest.approx([0.79789753, 0.41098401, 0.97459445, 0.73907753], abs=1e-8)
    found = routing_entropy(TOKENS).tolist()
    assert found == pytest.approx([0.79757559, 0.41068362, 0.97425952, 0.73875851], abs=1e-8)
    assert float(routing_entropy(UNIFORM)) == pytest.approx(0.99966366, abs=1e-8)


@pytest.mark.parametrize("q", [0.5, 1.0, 1.1, 2.0])
def test_without_a_floor_they_are_those_of_the_core(q: float) -> None:
    tsallis = routing_entropy(TOKENS, q, eps=0, normalise=False)
    assert torch.allclose(tsallis, tsallis_entropy(TOKENS.log(), q).double(), atol=1e-6)
    if q != 1:
        renyi = routing_entropy(TOKENS, q, eps=0, kind="renyi", normalise=False)
        assert torch.allclose(renyi, renyi_entropy(TOKENS.log(), q).double(), atol=1e-6)


def masks(rule: RoutingRule) -> list[str]:
    found = expert_mask(TOKENS, routing_entropy(TOKENS, rule.q, rule.eps, rule.kind), rule)
    return ["".join(str(int(each)) for each in row) for row in found.tolist()]


def test_masks() -> None:
    assert masks(RULE) == ["110000", "110000", "111111", "110000"]
    crossing = masks(replace(RULE, crossing=True))
    assert (crossing[0], crossing[1], crossing[3]) == ("111000", "110000", "111000")
    assert masks(replace(RULE, threshold=1.0))[2] == "111000"  # no token goes to all
    assert masks(replace(RULE, keep=1))[1] == "100000"
    weights, _ = route(TOKENS, RULE)
    assert weights.sum(-1).tolist() == pytest.approx([0.7, 0.9, 1.0, 0.7])
    assert route(TOKENS, replace(RULE, renormalise=True))[0].sum(-1).tolist() == pytest.approx([1.0] * 4)


def test_experts_are_found_in_any_order() -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled, _ = route(TOKENS[:, order], RULE)
    assert torch.equal(shuffled, route(TOKENS, RULE)[0][:, order])


def test_losses_and_their_gradient() -> None:
    logits = TOKENS[:3].log().requires_grad_()
    p = logits.softmax(-1)
    weights, entropy = route(p, RULE)
    assert float(entropy.mean().detach()) == pytest.approx(0.72750624, abs=1e-8)
    balance = balance_loss(p, weights)
    assert float(balance.detach()) == pytest.approx(1.73673333, abs=1e-8)
    total = 0.01 * entropy.mean() + 0.001 * balance
    assert float(total.detach()) == pytest.approx(0.0090117958, abs=1e-10)
    total.backward()
    wanted = [-0.320919, -1.905626, 0.017696, 0.726436, 0.816019, 0.666394]
    assert (1e4 * logits.grad[0]).tolist() == pytest.approx(wanted, abs=1e-6)


def test_convex_combinations_of_atoms() -> None:
    logits = torch.tensor([math.sqrt(2), -math.sqrt(2), 0.0], dtype=torch.float64)
    assert convex_weights(logits).tolist() == pytest.approx([0.76791794, 0.04538836, 0.18669370], abs=1e-8)
    assert convex_weights(logits, 2).tolist() == pytest.approx([0.80442968, 0, 0.19557032], abs=1e-8)
    log_prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()
    for beta, wanted in (
        (0.5, [0.89008925, 0.02812090, 0.08178985]),
        (1.0, [0.95091535, 0.01605845, 0.03302620]),
        (2.0, [0.99030832, 0.00477820, 0.00491348]),
    ):
        assert convex_weights(logits, None, log_prior, beta).tolist() == pytest.approx(wanted, abs=1e-8)
    assert convex_weights(torch.zeros(3, dtype=torch.float64), None, log_prior).tolist() == pytest.approx(
        [0.7, 0.2, 0.1]
    )
    # the prior goes in before the choice: it brings back an atom that the logits alone leave out
    assert convex_weights(torch.tensor([1.0, 0.9, 0.0]), 1, torch.tensor([0.0, 0.0, 5.0])).tolist() == [0, 0, 1]
