"""EMPG: reference figures, what counts as a step, and that updates of sure and unsure steps become alike."""

from __future__ import annotations

import pytest
import torch

from tests.training.rl.rows import F64, batch
from waver.entropy import shannon_entropy
from waver.training.rl import Batch, RecipeError, load, make_recipe
from waver.training.rl.methods.empg import Parameters, Steps, modulated, normalise, scale
from waver.training.rl.toy import train

STEPS = [[0, 0, 1, 2], [0, 1, -1, -1]]
ENTROPY = [[0.1, 0.3, 0.8, 0.4], [0.1, 1.1, 9.0, 9.0]]
ADVANTAGE = [[1.0] * 4, [-1.0] * 4]
FINAL = [[1.085843, 1.085843, 0.528730, 0.802547], [-1.640379, -0.776741, 0, 0]]


def close(found: torch.Tensor, expected: object) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=F64), atol=1e-6, rtol=0)


def rows(**given: object) -> Batch:
    """Two trajectories: step entropies .2, .8, .4 and .1, 1.1."""
    fields = {"step_id": torch.tensor(STEPS), "entropy": ENTROPY, "advantage": ADVANTAGE} | given
    return batch([[1, 1, 1, 1], [1, 1, 0, 0]], **fields)


def transformed(b: Batch, **parameters: object) -> torch.Tensor:
    hook = load("empg", **({"bonus": 0.1} | parameters)).advantage_transform
    assert hook
    return hook(b)


def test_figures() -> None:
    b = rows()
    steps = Steps.of(b.mask, b.step_id)
    n = normalise(steps.mean(b.entropy))
    close(n, [0.1, 0.7, 0.3, 0, 1])
    close(scale(n, 1.0), [1.288898, 0.707362, 1.055260, 1.424453, 0.524027])
    close(transformed(b), FINAL)
    before = FINAL[0][0] + 0.2527139
    assert before == pytest.approx(1.338556, abs=1e-6)


@pytest.mark.parametrize(
    ("k", "g"),
    [
        (0.5, [1.212663, 1.153521, 1.043749, 0.854549, 0.735517]),
        (2.0, [1.818529, 1.488886, 0.998030, 0.448444, 0.246111]),
        (3.0, [2.155515, 1.596845, 0.876367, 0.263957, 0.107317]),
    ],
)
def test_sharpness(k: float, g: list[float]) -> None:
    close(scale(torch.tensor([0, 0.1, 0.3, 0.7, 1], dtype=F64), k), g)


def test_steps_count_once_however_long_they_are() -> None:
    """Segment lengths 10, 1, 1 and 1, 1: the mean that is taken off stays that of five steps."""
    step_id = torch.tensor([[0] * 10 + [1, 2], [0, 1] + [-1] * 10])
    entropy = torch.tensor([[0.2] * 10 + [0.8, 0.4], [0.1, 1.1] + [0.0] * 10], dtype=F64)
    advantage = torch.tensor([[1.0], [-1.0]], dtype=F64).expand(2, 12)
    found = modulated(advantage, entropy, Steps.of((step_id >= 0).double(), step_id), Parameters(bonus=0.1))
    close(found[0, [0, 9, 10, 11]], [1.085843, 1.085843, 0.528730, 0.802547])
    close(found[1, :3], [-1.640379, -0.776741, 0])


def test_equal_entropies_leave_the_bonus() -> None:
    """The bonus goes to all but the last step of a row, and is not scaled."""
    found = transformed(rows(entropy=[[0.5] * 4] * 2))
    mean = (3 - 2 + 0.1 * 3) / 5
    close(found, [[1.1 - mean, 1.1 - mean, 1.1 - mean, 1 - mean], [-0.9 - mean, -1 - mean, 0, 0]])


def test_sure_and_wrong_is_punished_most_and_the_mean_is_0() -> None:
    found = transformed(rows())
    assert found[1, 0] < found[1, 1] < 0
    b = rows()
    assert abs(float(Steps.of(b.mask, b.step_id).mean(found).mean())) < 1e-9


def test_padding_and_tool_text_change_nothing() -> None:
    """Text of the environment stands between the turns: mask 0 and step -1, whatever its entropy."""
    mask = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 0, 1, 0, 0, 0]])
    step_id = torch.tensor([[0, 0, -1, -1, 1, 2], [0, -1, 1, -1, -1, -1]])
    entropy = [[0.1, 0.3, 7, 7, 0.8, 0.4], [0.1, 7, 1.1, 7, 7, 7]]
    found = transformed(batch(mask, step_id=step_id, entropy=entropy, advantage=[[1.0] * 6, [-1.0] * 6]))
    close(found, [[*FINAL[0][:2], 0, 0, *FINAL[0][2:]], [FINAL[1][0], 0, FINAL[1][1], 0, 0, 0]])
    # A row without a valid token is no step; numbers of turns may have gaps.
    far = torch.tensor([[0, 0, 5, 7], [2, 9, -1, -1], [0, 0, 0, 0]])
    empty = batch(
        [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]],
        step_id=far,
        entropy=[*ENTROPY, [50.0] * 4],
        advantage=[*ADVANTAGE, [1.0] * 4],
    )
    close(transformed(empty), [*FINAL, [0.0] * 4])
    assert not transformed(batch([[0, 0]], advantage=[[1, 1]])).any()


def test_a_single_turn_is_a_weight_per_response() -> None:
    found = transformed(batch([[1, 1], [1, 1]], entropy=[[0.0, 0.0], [1.0, 1.0]], advantage=[[2.0] * 2, [2.0] * 2]))
    g = scale(torch.tensor([0, 1], dtype=F64), 1.0)
    close(found[:, 0], 2 * g - 2 * g.mean())


def test_dropped_rows_do_not_move_the_normalisation() -> None:
    """Rows that a controller has folded into the mask are not steps."""
    more = batch(
        [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]],
        step_id=torch.tensor([*STEPS, [0, 1, 2, 3]]),
        entropy=[*ENTROPY, [0.0, 99.0, 0.0, 0.0]],
        advantage=[*ADVANTAGE, [0.0] * 4],
    )
    close(transformed(more)[:2], FINAL)


def test_outliers_are_cut() -> None:
    entropy = torch.cat([torch.linspace(0, 1, 199, dtype=F64), torch.tensor([100.0], dtype=F64)]).unsqueeze(1)
    b = batch(torch.ones(200, 1), entropy=entropy, advantage=torch.ones(200, 1))
    assert transformed(b)[198, 0] > transformed(b)[0, 0] - 0.02
    assert transformed(b, outliers=0.01)[198, 0] < transformed(b, outliers=0.01)[0, 0] - 0.5


def test_a_window_finds_a_short_unsure_stretch() -> None:
    b = batch(
        [[1] * 6, [1] * 6], entropy=[[0, 2, 2, 0, 0, 0], [1.0] * 6], step_id=torch.tensor([[0] * 6, [0] * 5 + [1]])
    )
    steps = Steps.of(b.mask, b.step_id)
    close(steps.mean(b.entropy), [2 / 3, 1, 1])
    close(steps.most(b.entropy, 2), [2, 1, 1])
    close(steps.most(b.entropy, 3), [4 / 3, 1, 1])
    assert transformed(b, window=2)[0, 0] == transformed(b, window=2)[:1].min()


@pytest.mark.parametrize(
    ("probabilities", "expected"), [([0.7, 0.2, 0.1], 0.46), ([0.25] * 4, 0.75), ([0.97, 0.01, 0.01, 0.01], 0.0588)]
)
def test_expected_squared_score(probabilities: list[float], expected: float) -> None:
    """Proposition 1, from the gradient itself."""
    z = torch.tensor(probabilities, dtype=F64).log()
    pi = z.softmax(-1)
    scores = torch.eye(len(pi), dtype=F64) - pi
    assert float((pi * scores.square().sum(1)).sum()) == pytest.approx(expected, abs=1e-9)
    assert float(1 - pi.square().sum()) == pytest.approx(expected, abs=1e-9)


def test_updates_become_alike() -> None:
    """4000 steps of 8 tokens: unsure steps make 1.73 times the update of sure ones without the scale."""
    generator = torch.Generator().manual_seed(0)
    sharp = torch.rand(4000, 1, 1, generator=generator, dtype=F64) * 5.8 + 0.2
    z = torch.randn(4000, 8, 32, generator=generator, dtype=F64) * sharp
    pi = z.softmax(-1)
    action = torch.multinomial(pi.flatten(0, 1), 1, generator=generator).view(4000, 8, 1)
    size = (torch.zeros_like(pi).scatter_(-1, action, 1.0) - pi).square().sum((1, 2)).sqrt()
    n = normalise(shannon_entropy(z).mean(1))

    def balance(k: float) -> tuple[float, float]:
        update = size * scale(n, k)
        return float(update[n > 0.8].mean() / update[n < 0.2].mean()), float(update.std() / update.mean())

    (plain, wide), (half, narrow), (one, narrower), (two, _) = (balance(k) for k in (0.0, 0.5, 1.0, 2.0))
    assert plain == pytest.approx(1.73, abs=0.1)
    assert wide == pytest.approx(0.229, abs=0.02)
    assert abs(half - 1) < abs(plain - 1)
    assert abs(one - 1) < abs(plain - 1)
    assert max(narrow, narrower) < wide
    assert two < 0.5


def test_it_trains_and_refuses() -> None:
    run = train(make_recipe("grpo", ["empg"]), 0, steps=3, microbatches=2)
    assert run.steps[-1]["empg/steps"] == 48
    assert not load("empg").state
    with pytest.raises(RecipeError, match=r"empg\.bonus"):
        make_recipe("grpo", [{"name": "empg", "bonus": 2}])
