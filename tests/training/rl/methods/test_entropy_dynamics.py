"""Clip_B and Clip_V: reference figures, whose tokens are dropped, and that entropy rises as the threshold falls."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training.rl.rows import F64, batch
from tests.training.rl.tabular import Bandits
from waver.entropy import shannon_entropy
from waver.training.rl import Batch, Method, Recipe, RecipeError, make_recipe
from waver.training.rl.entropy_change import discriminator, expected_discriminator
from waver.training.rl.methods.entropy_dynamics import clip_b, clip_v, spread

P = torch.tensor([[0.9, 0.5, 0.02, 0.3, 0.6, 0.01]], dtype=F64)
ENTROPY = torch.tensor([[0.4, 1, 2.5, 1.5, 0.9, 3]], dtype=F64)
LOGITS = torch.tensor([2.0, 1, 0, -1], dtype=F64)
FOUR = torch.ones(1, 4, dtype=F64)


def near(*values: float) -> list[Any]:
    return [pytest.approx(value, abs=6e-8) for value in values]


def vocabulary() -> tuple[torch.Tensor, torch.Tensor]:
    """S and E[S] of the four reference tokens, each drawn once."""
    s = discriminator(LOGITS.log_softmax(-1), shannon_entropy(LOGITS))
    return s.unsqueeze(0), expected_discriminator(LOGITS).expand(1, 4)


def test_clip_b() -> None:
    s = discriminator(P.log(), ENTROPY)
    ones = torch.ones_like(s)
    assert s[0].tolist() == near(0.2651755, 0.1534264, -0.0282405, 0.0888082, 0.2335046, -0.0160517)
    mean, sd = spread(s, ones)
    assert [float(mean), float(sd)] == near(0.1161038, 0.1128743)
    assert ((s - mean) / sd)[0].tolist() == pytest.approx([1.3207, 0.3307, -1.2788, -0.2418, 1.0401, -1.1708], abs=6e-5)
    assert clip_b(s, -ones, ones, 1).int().tolist() == [[1, 1, 0, 1, 1, 0]]
    assert clip_b(s, ones, ones, 1).all()
    assert clip_b(s, 0 * ones, ones, 1).all()
    assert clip_b(s, ones, ones, 1, "both").int().tolist() == [[0, 1, 1, 1, 0, 1]]
    assert clip_b(s, -ones, ones, 1, "both").int().tolist() == [[1, 1, 0, 1, 1, 0]]


@pytest.mark.parametrize(
    ("threshold", "max_share", "keep"),
    [(1, 1.0, [1, 0, 0, 0]), (1.5, 1.0, [1, 0, 0, 1]), (1, 1e-4, [1, 1, 0, 1]), (1, 0.5, [1, 0, 0, 1])],
)
def test_clip_v(threshold: float, max_share: float, keep: list[int]) -> None:
    s, nec = vocabulary()
    assert (nec - s)[0].tolist() == near(-0.1578707, 0.2855184, 0.2988937, 0.2487284)
    assert float(spread(nec - s, FOUR)[1]) == pytest.approx(0.1895058, abs=6e-8)
    assert clip_v(s, nec, -FOUR, FOUR, threshold, max_share)[0].int().tolist() == keep


def test_clip_v_by_sign() -> None:
    """Never where A > 0; at A = 0 too, as in the code, but not once the cap decides."""
    s, nec = vocabulary()
    assert clip_v(s, nec, FOUR, FOUR, 1, 1.0).all()
    mixed = torch.tensor([[-1.0, -1, 0, 1]], dtype=F64)
    assert clip_v(s, nec, mixed, FOUR, 1, 1.0)[0].int().tolist() == [1, 0, 0, 1]
    assert clip_v(s, nec, mixed, FOUR, 1, 1e-4)[0].int().tolist() == [1, 0, 1, 1]
    assert clip_v(s, nec, FOUR, FOUR, 0.5, 1.0, "both")[0].int().tolist() == [0, 1, 1, 1]


def test_padding_counts_for_nothing() -> None:
    s, nec = vocabulary()
    wider = [torch.cat([x, torch.full((1, 2), torch.nan, dtype=F64)], 1) for x in (s, nec)]
    mask = torch.tensor([[1.0, 1, 1, 1, 0, 0]], dtype=F64)
    against = -torch.ones(1, 6, dtype=F64)
    assert clip_v(wider[0], wider[1], against, mask, 1, 1.0)[0].int().tolist() == [1, 0, 0, 0, 1, 1]
    assert clip_b(wider[0], against, mask, 0.5)[0, :4].equal(clip_b(s, -FOUR, FOUR, 0.5)[0])
    assert clip_b(wider[0], against, mask * 0).all()


def test_a_uniform_policy_drops_nothing() -> None:
    flat = torch.zeros(4, dtype=F64)
    s = discriminator(flat.log_softmax(-1), shannon_entropy(flat)).unsqueeze(0)
    nec = expected_discriminator(flat).expand(1, 4)
    assert clip_b(s, -FOUR, FOUR, 1e-9).all()
    assert clip_v(s, nec, -FOUR, FOUR, 1e-9, 1.0).all()


def test_a_dropped_token_leaves_the_denominator() -> None:
    made = make_recipe("grpo", [{"name": "entropy_dynamics", "threshold": 1}])
    step, metrics = made.control(
        batch(torch.ones(1, 6), old_logprob=P.log(), entropy=ENTROPY, advantage=-torch.ones(1, 6))
    )
    assert metrics["entropy_dynamics/dropped"] == pytest.approx(2 / 6)
    assert metrics["entropy_dynamics/discriminator"] == pytest.approx(0.1161038, abs=6e-8)
    logprob = step.logprob.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(made.loss(Batch(**vars(step) | {"logprob": logprob}))[0], logprob)
    assert gradient[0].tolist() == pytest.approx([0.25, 0.25, 0, 0.25, 0.25, 0])


def test_statistics_are_of_the_step_and_micro_batches_add_up() -> None:
    made = make_recipe("grpo", [{"name": "entropy_dynamics", "threshold": 1}])
    shape = (2, 3)
    given = {"old_logprob": P.log().view(shape), "entropy": ENTROPY.view(shape), "advantage": -torch.ones(shape)}
    step, _ = made.control(batch(torch.ones(shape), **given))
    assert step.weight.flatten().tolist() == [1, 1, 0, 1, 1, 0]
    assert sum(made.loss(part)[0].item() for part in step.counted().split(2)) == pytest.approx(
        made.loss(step)[0].item()
    )


def test_clip_v_measures_nec() -> None:
    made = make_recipe("grpo", [{"name": "entropy_dynamics", "rule": "vocabulary", "threshold": 1, "max_share": 1}])
    s, nec = vocabulary()
    found = made.measured(LOGITS.expand(1, 4, 4), live=False)
    torch.testing.assert_close(found["nec"], nec)
    old = LOGITS.log_softmax(-1).unsqueeze(0)
    rows = batch(FOUR, old_logprob=old, entropy=shannon_entropy(LOGITS).expand(1, 4), measures=found, advantage=-FOUR)
    step, metrics = made.control(rows)
    assert step.weight.tolist() == [[1, 0, 0, 0]]
    assert metrics["entropy_dynamics/deviation"] == pytest.approx(float((s - nec).mean()))
    assert not make_recipe("grpo", ["entropy_dynamics"]).measures


def test_defaults_and_refusals() -> None:
    assert make_recipe("grpo", ["entropy_dynamics"]).settings.denominator == "selected"
    assert make_recipe("grpo", ["entropy_dynamics"]).state_dict() == {"entropy_dynamics": {}}
    for wrong in ({"threshold": 0}, {"rule": "row"}, {"max_share": 0}):
        with pytest.raises(RecipeError, match="entropy_dynamics"):
            make_recipe("grpo", [{"name": "entropy_dynamics"} | wrong])
    with pytest.raises(RecipeError, match="cannot be counted ahead"):
        make_recipe("grpo", ["entropy_dynamics", "steer"], dual_clip=10)


@pytest.mark.parametrize(
    ("advantage", "above", "sign"), [(1, True, -1), (1, False, 1), (-1, True, 1), (-1, False, -1), (1, None, 0)]
)
def test_the_sign_of_the_deviation_is_that_of_the_change(advantage: int, above: bool | None, sign: int) -> None:
    """Reference: 400 states, 64 tokens each, one step of 0.05 / 64 with one side of S - E[S] only: +-0.0036 nats, and
    nothing with both sides."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 30, generator=g, dtype=F64)
    p, h, nec = logits.softmax(-1), shannon_entropy(logits), expected_discriminator(logits)
    tokens = torch.multinomial(p, 64, True, generator=g)
    s = discriminator(p.log().gather(1, tokens), h.unsqueeze(1))
    keep = torch.ones_like(s) if above is None else ((s > nec.unsqueeze(1)) == above).to(F64)
    push = torch.zeros_like(p).scatter_add_(1, tokens, keep) - keep.sum(1, keepdim=True) * p
    change = shannon_entropy(logits + advantage * 0.05 / 64 * push) - h
    if sign:
        assert (change.sign() == sign).all()
        assert 1e-3 < abs(float(change.mean())) < 1e-2
    else:
        assert abs(float(change.mean())) < 1e-4


def test_entropy_rises_as_the_threshold_falls_and_not_by_chance() -> None:
    """Reference: 0.48 to 0.57 nats for GRPO, 0.82 to 0.92 at 1.5, 1.45 to 1.63 at 1; dropping a quarter of the negative
    tokens at random gives 0.26 to 0.38."""
    g = torch.Generator().manual_seed(0)

    def chance(b: Batch) -> torch.Tensor:
        return 1 - ((torch.rand(b.mask.shape, generator=g) < 0.25) & (b.advantage < 0)).to(b.mask.dtype)

    def entropy(made: Recipe) -> float:
        return Bandits(0).run(made, steps=100).entropy()

    def clip_at(threshold: float) -> Recipe:
        return make_recipe("grpo", [{"name": "entropy_dynamics", "threshold": threshold}])

    plain, some, more = entropy(make_recipe()), entropy(clip_at(1.5)), entropy(clip_at(1.0))
    assert plain + 0.1 < some < more - 0.1
    at_random = Method(
        name="chance", paper="none", summary="for a test", token_weight=chance, defaults={"denominator": "selected"}
    )
    assert entropy(Recipe("grpo", [at_random])) < plain + 0.1
