"""Clip-Cov: reference figures, what may be picked, and that it holds entropy at equal accuracy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training.rl.rows import F64, batch
from tests.training.rl.tabular import Keys
from waver.training.rl import Batch, RecipeError, make_recipe
from waver.training.rl.loss import clipped
from waver.training.rl.methods.clip_cov import candidates, pick

MASK = [[1, 1, 1, 0], [1, 1, 1, 1]]


def rows(**given: Any) -> Batch:
    logprob = torch.tensor([[-0.1, -2, -0.5, 0], [-0.05, -1, -3, -0.2]], dtype=F64, requires_grad=True)
    moved = torch.tensor([[0.10, -0.05, 0, 0], [0.02, -0.10, 0.05, 0]], dtype=F64)
    advantage = [[1, 1, 1, 0], [-1, -1, -1, -1]]
    return batch(MASK, **{"logprob": logprob, "old_logprob": logprob.detach() - moved, "advantage": advantage} | given)


def recipe(**given: Any) -> Any:
    return make_recipe("grpo", [{"name": "clip_cov", "low": 0.3, "share": 0.3} | given])


def test_the_figures() -> None:
    """Of the three candidates two are picked; for the pair of the reference, loss and gradient are known."""
    seen = set()
    for seed in range(12):
        b = rows()
        loss, _ = recipe(seed=seed).loss(b)
        (gradient,) = torch.autograd.grad(loss, b.logprob)
        zero = tuple(map(tuple, ((gradient == 0) & (b.mask > 0)).nonzero().tolist()))
        seen.add(zero)
        if zero == ((0, 0), (1, 2)):
            assert loss.item() == pytest.approx(0.1391156, abs=6e-8)
            found = gradient[b.mask > 0].tolist()
            figures = [0, -0.135890, -0.142857, 0.145743, 0.129262, 0, 0.142857]
            assert found == pytest.approx(figures, abs=6e-7)
    assert seen == {((0, 0), (0, 2)), ((0, 0), (1, 2)), ((0, 2), (1, 2))}


def test_what_is_left_out_still_counts() -> None:
    b = rows(old_logprob=torch.tensor([[-0.1, -2, -0.5, 0], [-0.05, -1, -3, -0.2]]))
    loss, _ = recipe(share=1.0).loss(b)
    assert loss.item() == pytest.approx((-1 + 3) / 7)


def test_candidates() -> None:
    """Bounds are open; padding and what PPO clips already are none."""
    cov = torch.tensor([[1.0, 1.1, 4.9, 5.0, 2.0, 2.0]])
    mask = torch.tensor([[1.0, 1, 1, 1, 0, 1]])
    outside = torch.tensor([[False, False, False, False, False, True]])
    assert candidates(cov, mask, outside).tolist() == [[False, True, True, False, False, False]]


def test_a_clipped_token_is_not_picked() -> None:
    """At 0.05 the ratio exp(0.1) of the first token is clipped: two candidates are left, and both are picked."""
    for seed in range(6):
        b = rows()
        made = make_recipe("grpo", [{"name": "clip_cov", "low": 0.3, "share": 0.3, "seed": seed}], clip_high=0.05)
        loss, _ = made.loss(b)
        (gradient,) = torch.autograd.grad(loss, b.logprob)
        assert gradient[0, 0] == gradient[0, 2] == gradient[1, 2] == 0
        assert loss.item() == pytest.approx((-1.05 - 0.951229 + 1.020201 + 0.904837 + 1) / 7, abs=1e-6)
    assert clipped(torch.tensor(1.1), torch.tensor(1.0), 0.2, 0.05)


def test_picks_are_uniform_and_without_replacement() -> None:
    generator = torch.Generator().manual_seed(0)
    among = torch.tensor([[True, False, True], [True, True, False]])
    counts = sum(pick(among, 2, generator).int() for _ in range(2000))
    assert isinstance(counts, torch.Tensor)
    assert not counts[~among].any()
    assert counts[among].float().tolist() == pytest.approx([1000] * 4, abs=80)
    assert pick(among, 9, generator).equal(among)
    assert not pick(among & ~among, 1, generator).any()


def test_at_least_one_for_each_update() -> None:
    """0.0002 of seven is none, but one is picked, by the means of all rows in however many micro-batches."""
    advantage = [[2, -2, 2, 0], [2, -2, -2, 2]]
    for parts in (1, 2):
        made, zeros = recipe(share=2e-4), 0
        for micro in made.begin_update(rows(advantage=advantage)).split(parts):
            (gradient,) = torch.autograd.grad(made.loss(micro)[0], micro.logprob)
            zeros += int(((gradient == 0) & (micro.mask > 0)).sum())
        assert zeros == 1


def test_nothing_valid_is_no_loss() -> None:
    b = rows()
    loss, _ = recipe().loss(Batch(**vars(b) | {"mask": b.mask * 0}))
    assert loss.item() == 0


def test_defaults() -> None:
    settings = make_recipe("grpo", ["clip_cov"]).settings
    assert (settings.clip_low, settings.clip_high, settings.dual_clip) == (1, 1, None)
    assert settings.denominator == "all"


def test_the_picks_go_through_a_checkpoint() -> None:
    first = recipe()
    first.loss(rows())
    saved = first.state_dict()
    expected = [first.loss(rows())[0].item() for _ in range(8)]
    again = recipe()
    again.load_state_dict(saved)
    assert [again.loss(rows())[0].item() for _ in range(8)] == expected
    assert [recipe().loss(rows())[0].item() for _ in range(8)] == [recipe().loss(rows())[0].item()] * 8
    assert len(set(expected)) > 1


def test_the_report_tells_good_from_bad() -> None:
    b = rows()
    _, metrics = recipe().control(Batch(**vars(b) | {"old_logprob": b.logprob.detach()}))
    assert metrics["clip_cov/covariance"] == pytest.approx(0.0959184, abs=6e-8)
    assert metrics["clip_cov/candidates"] == pytest.approx(3 / 7)
    assert metrics["clip_cov/bad_candidates"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        ([{"name": "clip_cov", "low": 5}], "low must be below high"),
        ([{"name": "clip_cov", "share": 0}], "share"),
        (["clip_cov", "kl_cov"], "both replace the clipped loss"),
    ],
)
def test_refusals(methods: list[Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        make_recipe("grpo", methods)


def test_entropy_is_held_at_equal_accuracy() -> None:
    """Ways to be right at 95 %: 2.65 for GRPO, 3.34 at a share of 0.02, 4.68 at 0.1 (reference runs), in more steps."""
    found = {}
    for share in (None, 0.02, 0.1):
        methods = [{"name": "clip_cov", "share": share, "low": 0.5}] if share else []
        keys = Keys(0)
        for step in keys.train(make_recipe("grpo", methods), steps=120, group=16, updates=4, rate=30):
            if keys.accuracy() >= 0.95:
                found[share] = keys.ways(), keys.key_entropy(), step
                break
    ways, entropies, steps = zip(*(found[s] for s in (None, 0.02, 0.1)), strict=True)
    assert ways[0] + 0.3 < ways[1] < ways[2] - 0.6
    assert entropies[0] < entropies[1] < entropies[2]
    assert steps[0] < steps[2]
