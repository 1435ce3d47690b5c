"""D3S: the rows of largest variance, the tokens of largest |A| H, and that this beats as many tokens at random."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch

from tests.training.rl.rows import F64, batch
from waver.training.rl import Recipe, RecipeError, load, make_recipe
from waver.training.rl.advantages import advantages
from waver.training.rl.methods.d3s import chosen_rows, d3s_mask, lerp, max_variance_subset, nearest, top_tokens
from waver.training.rl.toy import train

GROUPS = [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]


def tensor(x: Any) -> torch.Tensor:
    return torch.tensor(x, dtype=F64)


def variance(values: torch.Tensor, n: int) -> float:
    return float(values[max_variance_subset(values, n)].var(correction=0))


def test_a_group_of_eight() -> None:
    a = advantages(tensor([1, 0, 0, 1, 0, 0, 0, 0]), torch.zeros(8), eps=0)
    a = a / a.std(correction=0)
    assert a[:2].tolist() == pytest.approx([1.732051, -0.577350], abs=1e-6)
    assert sorted(max_variance_subset(a, 4)[-2:].tolist()) == [0, 3]
    assert variance(a, 4) == pytest.approx(1.333333, abs=1e-6)
    assert variance(a, 2) == pytest.approx(1.333333, abs=1e-6)
    assert (a[max_variance_subset(a, 2)] > 0).sum() == 1


def test_across_groups_those_without_a_signal_fall_out() -> None:
    reward, group = tensor(GROUPS).flatten(), torch.arange(4).repeat_interleave(4)
    mean = reward.view(4, 4).mean(1).repeat_interleave(4)
    spread = reward.view(4, 4).std(1, correction=0).repeat_interleave(4)
    a = (reward - mean) / (spread + 1e-6)
    four, eight = (max_variance_subset(a, n) for n in (4, 8))
    assert a[four].sort().values.tolist() == pytest.approx([-0.999998] * 2 + [0.999998, 1.732047], abs=1e-6)
    assert variance(a, 4) == pytest.approx(1.466500, abs=1e-6)
    assert sorted(group[eight].tolist()) == [1] * 4 + [3] * 4
    assert variance(a, 8) == pytest.approx(0.999996, abs=1e-6)
    intra = chosen_rows(a, group, 0.5, "intra")
    assert intra.view(4, 4).sum(1).tolist() == [2] * 4


def test_the_solver_equals_brute_force() -> None:
    g = torch.Generator().manual_seed(0)
    for case in range(200):
        size = int(torch.randint(2, 10, (), generator=g))
        n = int(torch.randint(1, size + 1, (), generator=g))
        values = torch.randn(size, generator=g, dtype=F64) + 100
        if case % 2:
            values = values.round()
        subset = max_variance_subset(values, n)
        assert len(subset.unique()) == n
        best = max(float(values[list(s)].var(correction=0)) for s in combinations(range(size), n))
        assert float(values[subset].var(correction=0)) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(
    ("share", "kept"),
    [(0.25, [[0, 1], [0, 3]]), (0.5, [[0, 1], [0, 2], [0, 3], [1, 2]]), (0.01, [[0, 1]]), (0.26, 3), (1, 8)],
)
def test_tokens_by_advantage_times_entropy(share: float, kept: Any) -> None:
    a = tensor([[1.5] * 4, [-0.5] * 4])
    key = a.abs() * tensor([[0.1, 2, 0.4, 1], [1.2, 0.3, 2.2, 0.05]])
    torch.testing.assert_close(key, tensor([[0.15, 3, 0.6, 1.5], [0.6, 0.15, 1.1, 0.025]]))
    found = top_tokens(key, torch.ones(2, 4, dtype=torch.bool), share)
    assert (found.nonzero().tolist() if isinstance(kept, list) else int(found.sum())) == kept


@pytest.mark.parametrize(("p", "n", "k"), [(0, 4, 0.1), (0.25, 5, 0.2), (0.5, 6, 0.3), (1, 8, 0.5)])
def test_the_schedule(p: float, n: int, k: float) -> None:
    assert nearest(lerp(4, 8, p)) == n
    assert lerp(0.1, 0.5, p) == pytest.approx(k)
    assert nearest(4.5) == 5


def test_padding_and_empty_rows_are_no_candidates() -> None:
    mask = tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0]])
    a = tensor([[1.0] * 3, [9] * 3, [-1] * 3, [0] * 3]) * mask
    entropy = tensor([[1, 2, 99.0], [99] * 3, [3, 1, 0.5], [99, 99, 99]])
    found = d3s_mask(a, entropy, mask, torch.zeros(4), 0.67, 0.5)
    assert found.nonzero().tolist() == [[0, 1], [2, 0], [2, 1]] or found.nonzero().tolist() == [[0, 0], [0, 1], [2, 0]]
    assert int(found.sum()) == 3


def recipe_and_step(**given: Any) -> Any:
    recipe = make_recipe("grpo", [{"name": "d3s", "rows": 0.5, "rows_end": 0.5, "tokens": 0.5, "tokens_end": 0.5}])
    entropy = torch.arange(32, dtype=F64).reshape(8, 4) % 7
    rows = batch(torch.ones(8, 4), reward=[1, 0, 0, 0, 1, 1, 0, 0], group=[0] * 4 + [1] * 4, entropy=entropy, **given)
    return recipe, *recipe.control(recipe.advantages(rows))


def test_the_mean_is_over_kept_tokens_however_rows_are_cut() -> None:
    recipe, found, metrics = recipe_and_step(logprob=torch.full((8, 4), 0.1))
    assert metrics["selected"] == 8 / 32
    assert metrics["d3s/useful"] == 1
    loss, log = recipe.loss(found)
    kept = found.weight > 0
    assert loss.item() == pytest.approx(float(-(found.advantage[kept] * 1.1051709).mean()))
    assert log["kept"] == 0.25
    assert sum(recipe.loss(part)[0].item() for part in found.counted().split(3)) == pytest.approx(loss.item())


def test_advantages_are_those_of_the_whole_group() -> None:
    _, found, _ = recipe_and_step()
    assert found.advantage[0, 0].item() == pytest.approx(1.5, abs=1e-5)
    assert found.advantage[4, 0].item() == pytest.approx(0.8660254, abs=1e-5)


def test_a_gspo_ratio_is_that_of_all_tokens_of_a_row() -> None:
    recipe = make_recipe("gspo", [{"name": "d3s", "tokens": 0.25, "tokens_end": 0.25}], clip_low=9, clip_high=9)
    rows = batch(torch.ones(2, 2), reward=[1, 0], entropy=[[1, 0], [0, 0]], logprob=[[0.0, 0.2], [0, 0]], total_steps=1)
    found, _ = recipe.control(recipe.advantages(rows))
    loss, _ = recipe.loss(found)
    row = int((found.weight > 0).any(1).nonzero()[0])
    assert loss.item() == pytest.approx(float(-found.advantage[row, 0] * torch.tensor([1.1051709, 1.0])[row]))


def test_without_any_advantage_nothing_is_selected() -> None:
    recipe = make_recipe("grpo", ["d3s"])
    found, metrics = recipe.control(
        recipe.advantages(batch(torch.ones(4, 2), reward=[1] * 4, entropy=torch.ones(4, 2)))
    )
    assert metrics["selected"] == found.counted().totals["selected"] == metrics["d3s/useful"] == 0


def test_it_reads_the_advantage_that_others_have_shaped() -> None:
    shaped = replace(load("d3s"), name="flip", token_weight=None, report=None)
    shaped = replace(shaped, advantage_transform=lambda b: b.advantage * (torch.arange(4) == 3))
    recipe = Recipe("grpo", [load("d3s", rows=1, rows_end=1, tokens=0.25, tokens_end=0.25), shaped])
    rows = batch(torch.ones(4, 4), reward=[1, 0, 0, 0], entropy=torch.ones(4, 4))
    found, _ = recipe.control(recipe.advantages(rows))
    assert found.weight.sum(0).tolist() == [0, 0, 0, 4]


@pytest.mark.parametrize("bad", [{"rows": 0}, {"tokens_end": 1.1}, {"scope": "prompt"}])
def test_refusals(bad: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"d3s\."):
        load("d3s", **bad)


def pivots(choose: str, seed: int) -> float:
    """Sixteen prompts with one open position among eight; steps of length 1. The mean success at the open position."""
    g = torch.Generator().manual_seed(seed)
    prompts, size, positions, symbols, steps = 16, 8, 8, 4, 60
    logits = torch.zeros(prompts, positions, symbols, dtype=F64)
    logits[..., 0] = 5
    open_at = torch.randint(positions, (prompts,), generator=g)
    index = torch.arange(prompts)
    logits[index, open_at, 0] = torch.linspace(-3, 5, 16, dtype=F64)
    prompt = index.repeat_interleave(size)
    success = 0.0
    for _ in range(steps):
        p = logits.softmax(-1)
        success += float(p[index, open_at, 0].mean()) / steps
        rows = p[prompt]
        drawn = torch.multinomial(rows.flatten(0, 1), 1, generator=g).view(-1, positions)
        hit = drawn[torch.arange(len(prompt)), open_at[prompt]] == 0
        a = advantages(hit.double(), prompt).unsqueeze(1).expand(-1, positions)
        entropy = -(rows * rows.log()).sum(-1)
        ones = torch.ones_like(entropy)
        match choose:
            case "all":
                mask = ones
            case "d3s":
                mask = d3s_mask(a, entropy, ones, prompt, 0.25, 0.2).double()
            case _:
                mask = torch.zeros_like(ones)
                chosen = torch.randperm(len(prompt), generator=g)[:32]
                mask[chosen] = (torch.rand(32, positions, generator=g) < 0.2).double()
        slope = (mask * a).unsqueeze(-1) * (torch.nn.functional.one_hot(drawn, symbols) - rows)
        step = torch.zeros_like(logits).index_add_(0, prompt, slope)
        logits = logits + step / step.norm().clamp(min=1e-12)
    return success


def test_a_twentieth_of_the_tokens_does_what_all_do_and_as_many_at_random_do_not() -> None:
    whole, chosen, blind = (sum(pivots(c, seed) for seed in range(3)) / 3 for c in ("all", "d3s", "random"))
    assert chosen > blind + 0.04
    assert chosen > whole - 0.01


def test_on_the_toy_it_updates_few_tokens_and_learns() -> None:
    run = train(make_recipe("grpo", ["d3s"]), 0, steps=60)
    assert run.tokens_updated < 0.2 * 60 * 48 * 8
    assert run.end.accuracy > run.start.accuracy + 0.2
