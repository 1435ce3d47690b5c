"""STEER: reference figures, over what the largest change is taken, and that it damps changes of entropy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training.rl.rows import F64, batch
from tests.training.rl.tabular import Bandits
from waver.entropy import shannon_entropy
from waver.training.rl import Batch, RecipeError, make_recipe
from waver.training.rl.entropy_change import expected_discriminator
from waver.training.rl.methods.steer import entropy_change, exponential, linear, range_of, scale_of

X, O = [[0.9, 0.1, 0.6, 0.05]], [[0.8, 0.1, 0.6, 0.1]]  # noqa: E741
ENTROPY, ADVANTAGE = [[0.5, 1.2, 0.5, 2.0]], [[1.0, 1, -1, -1]]
ONES = torch.ones(1, 4, dtype=F64)


def logs(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=F64).log()


def omega(scale: float = 1.0) -> torch.Tensor:
    advantage = scale * torch.tensor(ADVANTAGE, dtype=F64)
    return entropy_change(logs(X), logs(O), torch.tensor(ENTROPY, dtype=F64), advantage, ONES)


def rows(**given: Any) -> Batch:
    logprob = logs(X).requires_grad_()
    filled = {"logprob": logprob, "old_logprob": logs(O), "entropy": ENTROPY, "advantage": ADVANTAGE}
    return batch(given.pop("mask", [[1, 1, 1, 1]]), **filled | given)


def recipe(**given: Any) -> Any:
    return make_recipe("grpo", [{"name": "steer"} | given])


def near(*values: float) -> list[Any]:
    return [pytest.approx(value, abs=6e-8) for value in values]


def test_the_change() -> None:
    assert omega()[0].tolist() == near(0.0443969, -0.9923266, 0.0043302, 0.4729728)


@pytest.mark.parametrize(
    ("scale", "figures"),
    [(1.0, (0.9900662, 0.8, 0.9990267, 0.8991036)), (0.01, (0.9950588, 0.8951933, 0.9995170, 0.9485978))],
)
def test_exponential_weights(scale: float, figures: tuple[float, ...]) -> None:
    """At a hundredth of the advantage the floor acts."""
    changes = omega(scale)
    assert exponential(changes, scale_of(changes, ONES))[0].tolist() == near(*figures)


def test_linear_weights() -> None:
    assert linear(omega(), *range_of(omega(), ONES))[0].tolist() == near(1.1837786, 0.8, 1.2, 1.0102655)
    assert linear(torch.full((1, 4), 0.3), *torch.tensor([0.3, 0.3]))[0].tolist() == pytest.approx([1.0] * 4)


def test_the_loss() -> None:
    b = rows()
    loss, metrics = recipe().loss(b)
    assert loss.item() == pytest.approx(-0.0488787, abs=6e-8)
    assert make_recipe("grpo", clip_high=0.28, dual_clip=10).loss(b)[0].item() == pytest.approx(-0.08125)
    assert metrics["weight"] == pytest.approx((0.9900662 + 0.8 + 0.9990267 + 0.8991036) / 4, abs=6e-8)
    linear_loss, _ = recipe(form="linear").loss(b)
    assert linear_loss.item() == pytest.approx((-1.125 * 1.1837786 - 0.8 + 1.2 + 0.8 * 1.0102655) / 4, abs=6e-8)


def test_no_gradient_flows_through_a_weight() -> None:
    b = rows()
    (found,) = torch.autograd.grad(recipe().loss(b)[0], b.logprob)
    ratio = b.logprob.exp() / b.old_logprob.exp()
    weight = exponential(omega(), scale_of(omega(), ONES))
    expected = -b.advantage * ratio * weight / 4 * torch.tensor([1, 1, 1, 0])  # the last is clipped
    torch.testing.assert_close(found, expected.detach())


def test_a_weight_follows_the_policy() -> None:
    """x is the policy's probability now: other than at the first update, weights are other than they were."""
    first, later = (recipe().loss(rows(logprob=at))[1]["weight"] for at in (logs(O), logs(X)))
    assert abs(first - later) > 1e-3


def test_no_advantage_no_damping() -> None:
    assert recipe().loss(rows(advantage=[[0.0] * 4]))[1]["weight"] == 1
    assert recipe(floor=0).loss(rows(advantage=[[0.0] * 4]))[1]["weight"] == 1


def test_padding_has_no_weight_and_sets_no_scale() -> None:
    loss, metrics = recipe().loss(rows(mask=[[0, 0, 0, 0]]))
    assert loss.item() == metrics["weight"] == 0
    spoiled = rows(mask=[[1, 1, 1, 0]], old_logprob=[[*logs(O)[0, :3].tolist(), -40.0]], entropy=[[*ENTROPY[0][:3], 9]])
    _, metrics = recipe().loss(spoiled)
    assert metrics["weight"] == pytest.approx((0.9900662 + 0.8 + 0.9990267) / 3, abs=6e-8)


def test_what_is_not_finite_counts_for_nothing() -> None:
    b = rows(entropy=[[0.5, 1.2, torch.nan, 2.0]])
    assert recipe().loss(b)[1]["weight"] == pytest.approx((0.9900662 + 0.8 + 1 + 0.8991036) / 4, abs=6e-8)


def test_over_what_the_largest_is_taken() -> None:
    """Of all rows of an update under the policy as it is now, or of a step under the old one: micro-batches change
    nothing."""
    given: dict[str, Any] = {
        "mask": torch.ones(2, 2),
        "logprob": logs([[0.9, 0.1], [0.6, 0.05]]),
        "old_logprob": logs([[0.8, 0.1], [0.6, 0.1]]),
        "entropy": [[0.5, 1.2], [0.5, 2.0]],
        "advantage": [[1, 1], [-1, -1]],
    }

    def weights(parts: int, scope: str) -> float:
        made = recipe(scope=scope)
        step, _ = made.control(batch(**given | {"logprob": given["old_logprob"]}))
        step = made.begin_update(Batch(**vars(step) | {"logprob": given["logprob"]}))
        return sum(made.loss(micro)[1]["weight"] for micro in step.split(parts))

    assert weights(1, "update") == pytest.approx((0.9900662 + 0.8 + 0.9990267 + 0.8991036) / 4, abs=6e-8)
    assert weights(2, "update") == pytest.approx(weights(1, "update"), abs=1e-12)
    assert weights(2, "step") == pytest.approx(weights(1, "step"), abs=1e-12)


def test_one_outlier_need_not_set_the_scale() -> None:
    changes = torch.tensor([[0.1] * 999 + [1e6]], dtype=F64)
    mask = torch.ones_like(changes)
    assert exponential(changes, scale_of(changes, mask))[0, 0] > 0.9999
    found = exponential(changes, scale_of(changes, mask, quantile=0.99))
    assert [found[0, 0].item(), found[0, -1].item()] == pytest.approx([0.8, 0.8])


def test_estimators_against_the_true_change() -> None:
    """Reference correlations: 0.652 for the released form, 0.743 with x, 1.000 for the exact one."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(5000, 1, 50, generator=g, dtype=F64) * (
        0.2 + 3.8 * torch.rand(5000, 1, 1, generator=g, dtype=F64)
    )
    p = logits.softmax(-1)
    token = torch.multinomial(p.squeeze(1), 1, generator=g)
    advantage = torch.randint(2, (5000, 1), generator=g).to(F64) * 2 - 1
    way = torch.zeros_like(p).scatter_(-1, token.unsqueeze(-1), 1.0) - p
    h = shannon_entropy(logits)
    change = shannon_entropy(logits + 1e-4 * advantage.unsqueeze(-1) * way) - h
    logprob = p.log().squeeze(1).gather(1, token)
    nec = expected_discriminator(logits)
    for estimator, figure in (("released", 0.652), ("with_x", 0.743), ("exact", 1.0)):
        found = entropy_change(logprob, logprob, h, advantage, torch.ones(5000, 1), estimator, nec)  # type: ignore[arg-type]
        correlation = torch.corrcoef(torch.stack([-found.squeeze(1), change.squeeze(1)]))[0, 1]
        assert float(correlation) == pytest.approx(figure, abs=0.03), estimator


def test_the_tail_of_the_changes_shrinks_more_than_by_uniform_damping() -> None:
    """Reference, smallest weight 0.1, a step of 0.05: the 99th percentile of |change| is 0.0188; 0.0219 under one
    weight for all of the same mean; 0.0255 undamped."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(5000, 50, generator=g) * (0.2 + 3.8 * torch.rand(5000, 1, generator=g))
    p, h = logits.softmax(-1), shannon_entropy(logits)
    token = torch.multinomial(p, 1, generator=g)
    advantage = torch.randint(2, (5000, 1), generator=g) * 2.0 - 1
    way = advantage * (torch.zeros_like(p).scatter_(-1, token, 1.0) - p)
    logprob = p.log().gather(1, token)
    changes = entropy_change(logprob, logprob, h.unsqueeze(1), advantage, torch.ones(5000, 1))
    weight = exponential(changes, scale_of(changes, torch.ones(5000, 1)), 0.1)

    def tail(w: torch.Tensor) -> float:
        return float((shannon_entropy(logits + 0.05 * w * way) - h).abs().quantile(0.99))

    steer, uniform, plain = tail(weight), tail(weight.mean()), tail(torch.ones(()))
    assert steer < 0.93 * uniform < 0.93 * plain
    assert [steer, uniform, plain] == pytest.approx([0.0188, 0.0219, 0.0255], rel=0.15)


def test_entropy_is_kept_among_bandits() -> None:
    """Reference: 0.12 to 0.20 nats for GRPO, 0.43 to 0.49 at a smallest weight of 0.1, success not lower by more than
    0.03."""
    unclipped = {"clip_low": 1.0, "clip_high": 1e9, "dual_clip": None}
    plain = Bandits(0).run(make_recipe("grpo", **unclipped), steps=150)
    damped = Bandits(0).run(make_recipe("grpo", [{"name": "steer", "smallest": 0.1}], **unclipped), steps=150)
    assert damped.entropy() > plain.entropy() + 0.1
    assert damped.success() > plain.success() - 0.03


def test_defaults() -> None:
    settings = recipe().settings
    assert (settings.clip_low, settings.clip_high, settings.dual_clip) == (0.2, 0.28, 10)
    assert (settings.denominator, settings.kl, settings.entropy) == ("all", 0, 0)
    assert {m.name for m in recipe(estimator="exact").measures} == {"nec"}
    assert recipe().state_dict() == {"steer": {}}


@pytest.mark.parametrize(
    ("given", "settings", "reason"),
    [
        ({"smallest": 0.0}, {}, "smallest"),
        ({"form": "linear", "largest": 0.5}, {}, "largest must not be below smallest"),
        ({"form": "linear", "scope": "step"}, {}, "belong to the exponential form"),
        ({}, {"denominator": "selected"}, "cannot be counted ahead"),
    ],
)
def test_refusals(given: dict[str, Any], settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        make_recipe("grpo", [{"name": "steer"} | given], **settings)
