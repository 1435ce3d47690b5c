"""TEA-RL of Light-IF: reference figures, gradients, micro-batches, and the entropy that it keeps in a toy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training.rl.rows import F64, batch
from tests.training.rl.tabular import Keys
from waver.training.rl import Batch, RecipeError, make_recipe
from waver.training.rl.entropy_change import covariance
from waver.training.rl.methods.light_if import batch_weights, coefficients, length_reward, row_softmax

MASK = [[1, 1, 1, 0], [1, 1, 1, 1]]
LOGPROB = [[-0.1, -2, -0.5, 0], [-0.05, -1, -3, -0.2]]
ADVANTAGE = [[1, 1, 1, 0], [-1, -1, -1, -1]]
ENTROPY = [[0.3, 1.5, 0.6, 0], [0.2, 1, 1.8, 0.4]]
SOFTMAX = [[0.572376, 0.065259, 0.362365, 0], [0.059066, 0.133344, 0.740421, 0.067169]]
COEFFICIENT = [[5, 0.652592, 3.623652, 0], [0.590655, 1.333441, 5, 0.671695]]


def flat(rows: list[list[float]]) -> list[float]:
    return [each for row in rows for each in row]


def rows(**given: Any) -> Batch:
    live = torch.tensor(ENTROPY, dtype=F64, requires_grad=True)
    logprob = torch.tensor(LOGPROB, dtype=F64, requires_grad=True)
    fields = {"logprob": logprob, "old_logprob": LOGPROB, "advantage": ADVANTAGE, "live": {"entropy": live}}
    return batch(MASK, **(fields | {"ref_logprob": LOGPROB} | given))


def recipe(**given: Any) -> Any:
    settings = {name: given.pop(name) for name in ("kl",) if name in given}
    return make_recipe("grpo", [{"name": "light_if"} | given], **settings)


def bonus(rows: Batch, **given: Any) -> torch.Tensor:
    """Return L_TEA: what the term takes from the loss."""
    with_it, without = recipe(kl=0.0, **given), recipe(kl=0.0, **given | {"scale": 0.0})
    return without.loss(rows)[0] - with_it.loss(rows)[0]


def cov() -> torch.Tensor:
    b = rows()
    return covariance(b.logprob, b.advantage, b.mask)


def test_the_figures() -> None:
    mask = torch.tensor(MASK, dtype=F64)
    assert row_softmax(cov(), mask).flatten().tolist() == pytest.approx(flat(SOFTMAX), abs=6e-7)
    found = coefficients(cov(), mask, 10.0, 5.0)
    assert found.flatten().tolist() == pytest.approx(flat(COEFFICIENT), abs=6e-6)
    assert float(found.sum() / 7) == pytest.approx(2.4102907, abs=6e-7)
    assert bonus(rows()).item() == pytest.approx(2.1961899, abs=6e-7)


def test_the_weights_over_a_whole_batch() -> None:
    mask = torch.tensor(MASK, dtype=F64)
    figures = [0.219989, 0.025082, 0.139273, 0.036364, 0.082094, 0.455844, 0.041353]
    found = batch_weights(cov(), mask, 1.0, 100.0)
    assert found[mask > 0].tolist() == pytest.approx(figures, abs=6e-7)
    capped = batch_weights(cov(), mask, 1.0, 2.0)[mask > 0].tolist()
    assert capped == pytest.approx([*figures[:5], 0.285714, figures[6]], abs=6e-7)
    entropies = torch.tensor(ENTROPY)[mask > 0].tolist()
    mean = sum(w * h for w, h in zip(figures, entropies, strict=True))
    assert bonus(rows(), scope="batch").item() == pytest.approx(0.05 * mean, abs=1e-6)
    assert bonus(rows(), scope="batch", literal=True).item() == pytest.approx(0.05 * 7 * mean, abs=1e-5)


def test_the_entropy_alone_has_a_gradient_unless_asked_for() -> None:
    for detach in (True, False):
        b = rows()
        inputs = (b.live["entropy"], b.logprob)
        of_entropy, of_logprob = torch.autograd.grad(bonus(b, detach_weights=detach), inputs, allow_unused=True)
        assert of_entropy.flatten().tolist() == pytest.approx([c / 7 for c in flat(COEFFICIENT)], abs=1e-6)
        moved = of_logprob is not None and bool(of_logprob.abs().sum() > 0)
        assert moved is not detach
    assert bonus(rows(), detach_weights=False).item() == pytest.approx(2.1961899, abs=6e-7)


def test_a_response_without_tokens_has_no_bonus_and_no_nan() -> None:
    b = rows()
    empty = Batch(**vars(b) | {"mask": b.mask * torch.tensor([[0.0], [1.0]], dtype=F64)})
    for detach in (True, False):
        loss, _ = recipe(detach_weights=detach).loss(empty)
        (gradient,) = torch.autograd.grad(loss, empty.live["entropy"], retain_graph=True)
        assert loss.isfinite()
        assert not gradient[0].any()
        assert gradient.isfinite().all()
    assert recipe().loss(Batch(**vars(b) | {"mask": b.mask * 0}))[0].item() == 0


@pytest.mark.parametrize(
    "given", [{}, {"detach_weights": False}, {"scope": "batch"}, {"scope": "batch", "literal": True}]
)
def test_micro_batches_add_up(given: dict[str, Any]) -> None:
    made = recipe(**given)
    whole, _ = made.loss(rows())
    parts = torch.stack([made.loss(micro)[0] for micro in made.begin_update(rows()).split(2)]).sum()
    assert parts.item() == pytest.approx(whole.item(), abs=1e-12)


def test_alpha_may_follow_the_length() -> None:
    """At 3 of 30 tokens alpha is 1: the softmax itself."""
    b = rows()
    made = recipe(alpha_length=30.0)
    found = made.begin_update(b).measures["light_if_coefficient"]
    assert found[0].tolist() == pytest.approx(SOFTMAX[0], abs=6e-7)
    assert found[1].tolist() == pytest.approx([4 / 3 * each for each in SOFTMAX[1]], abs=2e-6)


def test_the_report_counts_what_the_cap_cuts() -> None:
    _, metrics = recipe().control(rows())
    assert metrics["light_if/coefficient"] == pytest.approx(2.4102907, abs=6e-7)
    assert metrics["light_if/capped"] == pytest.approx(2 / 7)


def test_the_reward_for_length() -> None:
    score, lengths = torch.tensor([1.2, 1.2, 0.1, 1.2], dtype=F64), torch.tensor([2048, 4096, 4096, 8192], dtype=F64)
    figures = [0.3514719, 1.2, -0.5, -2]
    assert length_reward(score, lengths).tolist() == pytest.approx(figures, abs=6e-8)
    b = batch(torch.ones(2, 4), reward=[1.0, 0.1])
    found = make_recipe("grpo", [{"name": "light_if", "zero": True, "longest": 8}], advantage="dr_grpo", kl=0.0)
    assert found.advantages(b).reward.tolist() == pytest.approx([2.0, -0.4])
    assert recipe().advantages(b).reward.tolist() == [1.0, 0.1]


def test_defaults_and_refusals() -> None:
    s = recipe().settings
    assert (s.clip_low, s.clip_high, s.dual_clip, s.aggregation, s.kl) == (1, 1, 10, "token-mean", 0.001)
    assert recipe().needs_reference
    with pytest.raises(RecipeError, match="leave detach_weights on"):
        recipe(scope="batch", detach_weights=False)


def test_more_ways_to_be_right_are_kept() -> None:
    """Ways at 95 % accuracy: 2.55 without the term, 3.05 with it at a scale for eight tokens (reference runs). At full
    scale, meant for thousands of tokens, nothing is learned."""
    found = {}
    for scale in (0.0, 0.03):
        keys = Keys(0)
        made = recipe(scale=scale, kl=0.0)
        for _ in keys.train(made, steps=100, group=16, updates=4, rate=30):
            if keys.accuracy() >= 0.95:
                found[scale] = keys.ways()
                break
    assert found[0.0] + 0.2 < found[0.03]
    keys = Keys(0)
    for _ in keys.train(recipe(kl=0.0), steps=40, group=16, updates=4, rate=30):
        pass
    assert keys.accuracy() < 0.6
