"""Advantages against reference figures (check 1), and what must hold for any rewards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from waver.training.rl.advantages import advantages

R = torch.tensor([1, 0, 0, 1, 1, 1, 1, 0], dtype=torch.float64)
GROUP = torch.tensor([7, 7, 7, 7, 3, 3, 3, 3])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("grpo", [0.8660239, -0.8660239, -0.8660239, 0.8660239, 0.4999990, 0.4999990, 0.4999990, -1.4999970]),
        ("dr_grpo", [0.5, -0.5, -0.5, 0.5, 0.25, 0.25, 0.25, -0.75]),
        ("rloo", [2 / 3, -2 / 3, -2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 3, -1]),
    ],
)
def test_the_card(estimator: str, expected: list[float]) -> None:
    found = advantages(R, GROUP, estimator)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=5e-8, rtol=0)


def test_one_right_row_of_eight() -> None:
    """Times G / K: the reference's figures; groups that are all right or all wrong have no advantage."""
    reward, group = torch.tensor([1.0] + [0.0] * 7, dtype=torch.float64), torch.zeros(8, dtype=torch.long)
    plain, found = (advantages(reward, group, each) for each in ("grpo", "maxrl"))  # type: ignore[arg-type]
    assert plain[:2].tolist() == pytest.approx([2.474867, -0.353552], abs=1e-6)
    assert found[:2].tolist() == pytest.approx([19.798934, -2.828419], abs=1e-5)
    for same in (torch.ones(4), torch.zeros(4)):
        assert advantages(same, torch.zeros(4, dtype=torch.long), "maxrl").tolist() == [0] * 4


def test_eps_of_trl() -> None:
    found = advantages(R, GROUP, eps=1e-4)
    assert found[0].item() == pytest.approx(0.8658754, abs=5e-8)
    assert found[-1].item() == pytest.approx(-1.4997001, abs=5e-8)


def test_batch_scaling_divides_by_the_spread_of_all_rewards() -> None:
    found = advantages(R, GROUP, "batch", eps=1e-4)
    centred = advantages(R, GROUP, "dr_grpo")
    torch.testing.assert_close(found, centred / (R.std() + 1e-4))


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "maxrl"])
def test_a_group_of_one_keeps_its_reward(estimator: str) -> None:
    """verl: mean 0 and spread 1."""
    found = advantages(torch.tensor([0.7, 1.0, 0.0]), torch.tensor([5, 1, 1]), estimator)  # type: ignore[arg-type]
    assert found[0].item() == pytest.approx(0.7, abs=1e-6)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5, width=32)), min_size=1, max_size=24),
    st.sampled_from(["grpo", "dr_grpo", "rloo", "batch", "maxrl"]),
    st.randoms(use_true_random=False),
)
def test_rows_of_a_group_need_not_lie_together(rows: list[tuple[int, float]], estimator: str, random: object) -> None:
    group, reward = torch.tensor([g for g, _ in rows]), torch.tensor([r for _, r in rows], dtype=torch.float64)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    found = advantages(reward, group, estimator)  # type: ignore[arg-type]
    torch.testing.assert_close(advantages(reward[order], group[order], estimator), found[order])  # type: ignore[arg-type]


@given(st.floats(-3, 3, width=32), st.integers(2, 9))
def test_equal_rewards_have_no_advantage_at_all(reward: float, size: int) -> None:
    """Exactly 0: in float32 the mean of three 0.1 is not 0.1, and the difference would be divided by eps."""
    for estimator in ("grpo", "dr_grpo", "rloo", "batch"):
        found = advantages(torch.full((size,), reward), torch.zeros(size, dtype=torch.long), estimator)  # type: ignore[arg-type]
        assert not found.any()


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=12))
def test_advantages_of_a_group_sum_to_nothing(rewards: list[float]) -> None:
    reward = torch.tensor(rewards, dtype=torch.float64)
    for estimator in ("grpo", "dr_grpo", "rloo"):
        found = advantages(reward, torch.zeros(len(reward), dtype=torch.long), estimator)  # type: ignore[arg-type]
        assert found.sum().item() == pytest.approx(0, abs=1e-6)
