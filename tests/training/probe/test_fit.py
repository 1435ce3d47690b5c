"""Reference numbers on the network and its training, and its behavioural check: a simulated model from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from waver.engines.probe import Probe, Record
from waver.training.probe.fit import PAPER, Recipe, confusion, fit, macro_f1, mlp, schedule, split, weights
from waver.training.probe.labels import CLASSES, PLAIN, Answers, Thresholds, paper, strict_easy


def test_the_network_of_the_card() -> None:
    given = {
        "W1": torch.tensor([[1.0, -1], [0.5, 0.5], [-1, 2]]),
        "b1": torch.tensor([0, -0.5, 0.25]),
        "W2": torch.tensor([[1.0, 0, -1], [0, 1, 0], [-0.5, 0.5, 1]]),
        "b2": torch.tensor([0.1, 0, -0.1]),
    }
    logits = Probe(given, Record(model="m", words="", labels="paper"), (), torch.zeros(2))(torch.tensor([2.0, 1.0]))
    assert logits.tolist() == pytest.approx([0.85, 1.0, 0.15])
    assert logits.softmax(-1).tolist() == pytest.approx([0.3761634, 0.4370395, 0.1867968], abs=1e-6)
    assert CLASSES[int(logits.argmax())] == "normal"


@pytest.mark.parametrize(
    ("hidden", "count"), [(1536, 788_483), (2560, 1_312_771), (3584, 1_837_059), (4096, 2_099_203)]
)
def test_parameters(hidden: int, count: int) -> None:
    assert sum(tensor.numel() for tensor in mlp(hidden).parameters()) == count


def test_what_is_trained_is_what_a_probe_runs(tmp_path: Path) -> None:
    network, states = mlp(7, 5), torch.randn(4, 7)
    Probe(weights(network), Record(model="m", words="", labels="paper"), (1, 2), states[0]).save(tmp_path)
    torch.testing.assert_close(Probe.load(tmp_path)(states), network(states))


def test_the_learning_rate_falls_along_a_cosine() -> None:
    network = mlp(2, 2)
    optimiser = torch.optim.AdamW(network.parameters(), lr=PAPER.learning_rate)
    rates, seen = schedule(optimiser, PAPER), []
    for _ in range(PAPER.epochs + 1):
        seen.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        rates.step()
    assert [seen[0], seen[50], seen[100]] == pytest.approx([1e-3, 5.05e-4, 1e-5])


def test_scores() -> None:
    truth, told = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    assert confusion(truth, told).tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert macro_f1(truth, told) == pytest.approx((2 / 3 + 4 / 5) / 2)  # nothing is hard, and nothing was taken for it


def test_a_fifth_is_held_out_always_the_same() -> None:
    taught, held = split(100, PAPER)
    assert len(held) == 20
    assert sorted([*taught.tolist(), *held.tolist()]) == list(range(100))
    assert torch.equal(held, split(100, PAPER)[1])


TAUGHT, FRESH = 2400, 20_000
"""Questions to train on as the reference has them, and more than it has to judge by, which leaves little to chance."""


class World:
    """The simulated model (b): what questions are like to it, all `[questions]` or `[questions, ...]`."""

    def __init__(self, seed: int) -> None:
        count, draw = TAUGHT + FRESH, torch.Generator().manual_seed(seed)
        mixing, u = torch.randn(3, 64, generator=draw), torch.rand(count, generator=draw)

        def success(middle: float) -> torch.Tensor:
            return 1 / (1 + torch.exp(14 * (u - middle)))

        self.right = torch.stack([success(0.45), success(0.75), 0.92 * success(0.72)], -1)
        self.tokens = torch.stack([250 + 500 * u, 1500 + 7000 * u, 1100 + 3200 * u], -1)
        normal = torch.rand(count, 10, generator=draw) < self.right[:, 1:2]
        rates = normal.double().mean(-1).tolist()
        entropies = 0.30 + 0.175 * (u - 0.45) ** 2 / 0.2025 + 0.015 * torch.randn(count, generator=draw)
        self.asked = [{PLAIN: Answers(c, 0, h, 0)} for c, h in zip(rates, entropies.tolist(), strict=True)]
        seen = torch.stack([torch.sin(5 * u + 0.3), torch.cos(5 * u - 0.2), u], -1)
        self.states = seen @ mixing + 0.35 * torch.randn(count, 64, generator=draw)

    def routed(self, classes: torch.Tensor) -> tuple[float, float]:
        """Expected accuracy and mean tokens on the fresh questions, each answered by its own strategy."""
        chosen = (table[TAUGHT:].gather(1, classes[:, None]).mean() for table in (self.right, self.tokens))
        accuracy, tokens = (float(each) for each in chosen)
        return accuracy, tokens

    def mixed(self, classes: torch.Tensor) -> tuple[float, float]:
        """The same where the same strategies are dealt out at random, on average over all ways to."""
        shares = torch.bincount(classes, minlength=3) / len(classes)
        accuracy, tokens = (float(table[TAUGHT:].mean(0) @ shares) for table in (self.right, self.tokens))
        return accuracy, tokens


def test_a_probe_routes_better_than_chance_and_saves_tokens() -> None:
    world, recipe = World(seed=0), Recipe(epochs=40, batch=128)
    fixed = [world.routed(torch.full((FRESH,), each)) for each in range(3)]
    near = 0.02  # of reference figures, which are of 480 questions
    for found, (accuracy, tokens) in zip(fixed, ((0.436, 504), (0.737, 5060), (0.650, 2727)), strict=True):
        assert found == (pytest.approx(accuracy, abs=near), pytest.approx(tokens, rel=near))
    for rule, accuracy, score, linear_score in ((paper, 0.640, 0.90, 0.87), (strict_easy, 0.717, 0.93, 0.92)):
        labels = torch.tensor([rule(asked, Thresholds()) for asked in world.asked])
        taught, truth = labels[:TAUGHT], labels[TAUGHT:]
        probe, linear = (
            fit(world.states[:TAUGHT], taught, recipe, make=make).network(world.states[TAUGHT:]).argmax(-1)
            for make in (mlp, lambda hidden, _: nn.Linear(hidden, 3))
        )
        assert macro_f1(truth, probe) > macro_f1(truth, linear)
        assert macro_f1(truth, probe) == pytest.approx(score, abs=near)
        assert macro_f1(truth, linear) == pytest.approx(linear_score, abs=near)
        routed = world.routed(probe)
        assert routed[0] > world.mixed(probe)[0]
        assert routed[0] == pytest.approx(accuracy, abs=near)
        if rule is strict_easy:
            assert routed[0] >= 0.96 * fixed[1][0]
            assert routed[1] <= 0.8 * fixed[1][1]
