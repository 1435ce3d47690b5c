"""Learning to query: complexities, the adversary, thresholds on a line against rules, and arms."""

from __future__ import annotations

import pytest
import torch

from waver.training.selection.active import adversary
from waver.training.selection.active.complexity import best_arm, linear, threshold
from waver.training.selection.active.policies import RULES, Flat, Learnt, Policy, Shared, halving, uniform
from waver.training.selection.active.tasks import Arms, Thresholds, averages, draw_arms
from waver.training.selection.active.train import Robust, Settings, expected_losses, play, train, train_robust

BASIS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_complexities() -> None:
    assert float(best_arm(torch.tensor([1.0, 0.7, 0.5, 0.2]))) == pytest.approx(16.673611, abs=1e-4)
    assert float(best_arm(torch.tensor([1.0, 0.5, 0.2]))) == pytest.approx(5.5625, abs=1e-5)
    assert float(best_arm(torch.tensor([0.5, 0.5]))) == float("inf")
    value, shares = linear(BASIS, BASIS, [1.0, 0.5, 0.2])
    assert value == pytest.approx(17.938302, abs=1e-5)
    assert shares == pytest.approx([0.452589, 0.439548, 0.107863], abs=1e-4)
    assert threshold(0.25) == pytest.approx(4)
    with pytest.raises(ValueError, match="do not span"):
        linear(BASIS[:2], BASIS, [1.0, 0.5, 0.2])
    with pytest.raises(ValueError, match="two answers are best"):
        linear(BASIS, BASIS, [1.0, 1.0, 0.2])


def test_the_adversarys_weights() -> None:
    weights, excess = torch.tensor([0.2, -0.1, 0.5]), torch.tensor([0.3, 0.1, 0.4])
    assert weights.softmax(0).tolist() == pytest.approx([0.323554, 0.239694, 0.436752], abs=1e-6)
    gradient = adversary.weight_gradient(weights, excess)
    assert gradient.tolist() == pytest.approx([0.001380, -0.046917, 0.045537], abs=1e-6)
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-7)
    sampled = adversary.sampled_gradient(weights, 2, 0.4)
    assert sampled.tolist() == pytest.approx([-0.129421, -0.095878, 0.225299], abs=1e-6)
    q = weights.softmax(0)
    mean = sum(q[i] * adversary.sampled_gradient(weights, i, float(excess[i])) for i in range(3))
    assert torch.allclose(torch.as_tensor(mean), gradient, atol=1e-6)
    assert float(adversary.probabilities(torch.tensor([50.0, 0.0]))[1]) == pytest.approx(0.05)


def test_gaps_over_nested_classes() -> None:
    risks = torch.tensor([[0.05, 0.30, 0.60], [0.12, 0.22, 0.55], [0.20, 0.28, 0.45]])
    best = risks.min(0).values
    assert best.tolist() == pytest.approx([0.05, 0.22, 0.45])
    assert [adversary.gap(each, best) for each in risks] == pytest.approx([0.15, 0.10, 0.15])
    assert adversary.gap(torch.tensor([0.07, 0.25, 0.48]), best) == pytest.approx(0.03)
    nested = adversary.class_risks(torch.tensor([0.5, 0.1, 0.3]), torch.tensor([1, 0, 2]))
    assert nested.tolist() == pytest.approx([0.1, 0.5, 0.5])


def test_thresholds_are_recommended_by_their_errors() -> None:
    task = Thresholds()
    assert len(task.classes) == 18
    seen = torch.zeros(1, 8, 2)
    nothing = task.loss(seen, torch.tensor([0]))
    assert float(nothing) == pytest.approx(sum(range(9)) / 9 / 8)
    seen[0, 3] = torch.tensor([1.0, 0.0])  # point 3 is a 0: the threshold is 4 or more
    seen[0, 4] = torch.tensor([1.0, 1.0])  # point 4 is a 1: it is 4 at most
    assert float(task.loss(seen, torch.tensor([4]))) == 0.0
    assert float(task.loss(seen, torch.tensor([6]))) == pytest.approx(2 / 8)
    clean = Thresholds(noises=(0.0,))
    points = torch.arange(8)
    labels = clean.observe(torch.full((8,), 5), points, torch.Generator().manual_seed(0))
    assert labels.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


QUICK = Settings(steps=150, rollouts=512, every=50)


@pytest.fixture(scope="module")
def toy() -> Thresholds:
    return Thresholds()


@pytest.fixture(scope="module")
def robust(toy: Thresholds) -> Robust:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return train_robust(toy, Learnt(toy, Flat(17, 8)), QUICK, seed=0)


def gap_of(task: Thresholds, policy: Policy, best: list[float]) -> float:
    losses = expected_losses(task, policy, 1000, torch.Generator().manual_seed(7))
    return adversary.gap(adversary.class_risks(losses, task.classes), torch.tensor(best))


def test_the_gap_objective_is_near_the_best_of_every_class(toy: Thresholds, robust: Robust) -> None:
    learnt, blind = gap_of(toy, robust.policy, robust.best), gap_of(toy, uniform, robust.best)
    assert learnt <= 0.02
    assert learnt <= blind - 0.05
    assert robust.gap <= 0.02
    assert robust.risks["gap"][0] < 0.03
    assert gap_of(toy, halving(toy), robust.best) < blind


def test_a_wrong_prior_is_worse_than_none(toy: Thresholds, robust: Robust) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = Learnt(toy, Flat(17, 8))
    few = torch.nonzero(toy.truth < 3)[:, 0]
    wrong = train(toy, start, few, torch.zeros(2), QUICK, torch.Generator().manual_seed(0))
    assert gap_of(toy, wrong, robust.best) > gap_of(toy, uniform, robust.best) + 0.05


def test_the_class_value_is_subtracted(monkeypatch: pytest.MonkeyPatch, toy: Thresholds) -> None:
    """The adversary leaves the hard class for the easy one if b says that the hard one cannot be better."""
    chosen: list[torch.Tensor] = []
    real = adversary.probabilities

    def watch(weights: torch.Tensor) -> torch.Tensor:
        chosen.append(real(weights))
        return chosen[-1]

    monkeypatch.setattr("waver.training.selection.active.train.probabilities", watch)
    settings = Settings(steps=30, rollouts=128, every=30, measured=20)
    share = []
    for best in ([0.0, 0.0], [0.0, 0.9]):
        torch.manual_seed(0)
        start, generator = Learnt(toy, Flat(17, 8)), torch.Generator().manual_seed(0)
        train(toy, start, torch.arange(18), torch.tensor(best), settings, generator)
        share.append(float(chosen[-1][toy.classes == 0].sum()))
    assert share[0] < 0.5 < share[1]


def test_arms_are_drawn_in_classes() -> None:
    task = draw_arms(arms=3, budget=10, classes=3, instances=30, seed=0)
    hard = best_arm(task.means)
    assert task.means.shape == (30, 3)
    assert float(task.means.min()) >= 0
    assert float(task.means.max()) <= 1
    limits = [8.0 * 4**k for k in range(3)]
    for k, limit in enumerate(limits):
        own = hard[task.classes == k]
        assert len(own) == 10
        assert bool((own <= limit).all())
        assert k == 0 or bool((own > limits[k - 1]).all())
    again = draw_arms(arms=3, budget=10, classes=3, instances=30, seed=0)
    assert torch.equal(task.means, again.means)


def test_regret_is_that_of_the_empirical_best() -> None:
    task = Arms(torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([0]), budget=4)
    seen = torch.tensor([[[2.0, 1.0], [1.0, 1.0], [0.0, 0.0]]])
    assert float(task.loss(seen, torch.tensor([0]))) == pytest.approx(0.4)
    assert float(task.loss(torch.zeros(1, 3, 2), torch.tensor([0]))) == pytest.approx(0.4)  # any of them
    assert averages(seen, 0.5).tolist() == [[0.5, 1.0, 0.5]]
    assert task.features(seen, 2).shape == (1, 3, 6)


@pytest.mark.parametrize("name", RULES)
def test_rules_find_an_arm_that_is_far_better(name: str) -> None:
    task = Arms(torch.tensor([[0.9, 0.1, 0.1]]), torch.tensor([0]), budget=30)
    _, made, losses = play(task, RULES[name], torch.zeros(200, dtype=torch.long), torch.Generator().manual_seed(0))
    assert float(losses.mean()) < 0.02
    share = made[10:].flatten().bincount(minlength=3) / made[10:].numel()
    if name == "thompson":
        assert share[0] > 0.8
    if name == "top_two":
        assert 0.4 < share[0] < 0.6
    if name == "uniform":
        assert share.tolist() == pytest.approx([1 / 3] * 3, abs=0.05)


def test_a_shared_network_does_not_know_the_order_of_arms() -> None:
    torch.manual_seed(0)
    network, features = Shared(), torch.rand(5, 4, 6)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(network(features)[:, order], network(features[:, order]), atol=1e-6)
