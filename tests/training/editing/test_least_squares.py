"""Recursive least squares: the worked example, equality with the solution over all batches, undoing, and old edits."""

from __future__ import annotations

import pytest
import torch

from waver.benchmarks.weights_editing import Edits, rlsedit
from waver.training.editing.least_squares import invert, nullspace, removal, solve, start, start_weight, step


def matrix(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(found, wanted, atol=1e-7)


WEIGHT = torch.eye(2, dtype=torch.float64)
ANCHORS = 0.5 * matrix([1, 0], [0, 0])  # mu^2 K_0' K_0 of the key [1, 0]
BATCHES = ((matrix([1, 1]), matrix([0, 2])), (matrix([0, 1], [2, 1]), matrix([1, 1], [0, 0])))


def test_the_worked_example() -> None:
    inverse = start(1.0, ANCHORS)
    assert close(inverse, torch.diag(matrix([0.6666667, 1])[0]))
    weights, inverses, deviation = [WEIGHT], [inverse], []
    for keys, values in BATCHES:
        one = step(inverses[-1], keys, values - keys @ weights[-1])
        weights.append(one.weight(weights[-1]))
        inverses.append(one.inverse(inverses[-1]))
    assert close(inverses[1], matrix([0.5, -0.25], [-0.25, 0.625]))
    assert close(weights[1], matrix([0.75, 0.25], [-0.375, 1.375]))
    assert close(weights[2], matrix([3, -4], [2, 20]) / 17)
    assert close(inverses[2], matrix([0.2352941, -0.1764706], [-0.1764706, 0.3823529]))
    keys, values = (torch.cat(part) for part in zip(*BATCHES, strict=True))
    assert close(weights[2], solve(WEIGHT, keys, values, 1.0, ANCHORS, ANCHORS @ WEIGHT))

    def objective(weight: torch.Tensor) -> float:
        anchors = 0.5 * (matrix([1, 0]) @ (weight - WEIGHT)).square().sum()
        return float((keys @ weight - values).square().sum() + (weight - WEIGHT).square().sum() + anchors)

    assert [objective(each) for each in weights] == pytest.approx([8.0, 7.5625, 3.8823529], abs=1e-7)
    moved = weights[2] - WEIGHT
    deviation = float((moved.T @ torch.linalg.inv(inverses[2]) @ moved).trace())
    assert deviation == pytest.approx(4.1176471, abs=1e-7)
    assert deviation == pytest.approx(objective(WEIGHT) - objective(weights[2]))


def test_anchors_of_other_values_move_the_start() -> None:
    inverse = start(1.0, ANCHORS)
    assert close(
        start_weight(inverse, WEIGHT, 1.0, torch.zeros(2, 2, dtype=torch.float64)), torch.diag(matrix([2 / 3, 1])[0])
    )
    assert close(start_weight(inverse, WEIGHT, 1.0, ANCHORS @ WEIGHT), WEIGHT)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-8), (torch.float32, 1e-2)])
def test_sixty_batches_come_to_the_solution_over_all(dtype: torch.dtype, most: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, sample = normal(256, 16) / 16, normal(1000, 256)
    anchors = 100 * sample.T @ sample / 1000
    keys, values = normal(600, 256), normal(600, 16)
    whole = solve(weight, keys, values, 1e-6, anchors, anchors @ weight)
    inverse, edited = start(1e-6, anchors.to(dtype)), weight.to(dtype)
    for place in range(0, 600, 10):
        key, value = keys[place : place + 10].to(dtype), values[place : place + 10].to(dtype)
        one = step(inverse, key, value - key @ edited)
        inverse, edited = one.inverse(inverse), one.weight(edited)
    assert float((edited.double() - whole).norm() / whole.norm()) < most


def test_what_is_taken_out_was_never_there() -> None:
    inverse, weight = start(1.0, ANCHORS), WEIGHT
    (first, wanted), (second, other) = BATCHES
    one = step(inverse, first, wanted - first @ weight)
    both = step(one.inverse(inverse), second, other - second @ one.weight(weight))
    inverse_of_both, edited = both.inverse(one.inverse(inverse)), both.weight(one.weight(weight))
    out = removal(inverse_of_both, first, wanted - first @ edited)
    alone = step(inverse, second, other - second @ weight)
    assert close(out.weight(edited), alone.weight(weight))
    assert close(out.inverse(inverse_of_both), alone.inverse(inverse))
    with pytest.raises(ValueError, match="are not among the edits"):
        removal(inverse, 5 * first, wanted)


def test_a_matrix_that_is_barely_singular_is_inverted_all_the_same() -> None:
    singular = matrix([1, 1], [1, 1])
    assert torch.isfinite(invert(singular)).all()
    assert close(invert(matrix([4, 1], [1, 3])), torch.linalg.inv(matrix([4, 1], [1, 3])))


def test_the_nullspace_leaves_general_keys_alone() -> None:
    moment = torch.diag(torch.tensor([1.0, 1e-3, 0.5, 0.0]))
    projector = nullspace(moment)
    assert torch.equal(projector, torch.diag(torch.tensor([0.0, 1.0, 0.0, 1.0])))
    one = step(projector, torch.ones(1, 4), torch.ones(1, 2))
    assert torch.equal(one.weight(torch.zeros(4, 2))[[0, 2]], torch.zeros(2, 2))


def test_old_edits_are_kept_where_c_is_carried() -> None:
    """A smaller one than `waver bench weights` runs: half the sizes."""
    found = rlsedit(0, Edits(keys=256, values=32, edits=300, batch=5, ends=50))
    ours = found["rlsedit"]
    assert ours["first"] >= 0.95
    assert abs(ours["first"] - ours["last"]) <= 0.05
    assert found["memit"]["first"] < 0.2
    assert found["least_squares"]["first"] < 0.5
    assert ours["drift"] < found["least_squares"]["drift"]
