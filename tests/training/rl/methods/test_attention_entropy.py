"""Attention entropy: reference figures, chunks and padding, and that it sees what predictive entropy does not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.rl.rows import F64, batch
from waver.entropy import shannon_entropy
from waver.training.rl import Batch, RecipeError, load, make_recipe
from waver.training.rl.methods.attention_entropy import NAME, WITHOUT_SINK, AttentionEntropy, chunked, lowest, soft

AE = torch.tensor([[0.10, 0.35, 0.62, 0.20, 0.80, 0.55, 0.41, 0.30, 0.90, 0.70]], dtype=F64)
FOUR = torch.tensor([[0.2, 0.8, 0.5, 0.3]], dtype=F64)
LATE = [0.439211, 1.756843, 1.106742, 0.697204]


def close(found: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=F64), atol=1e-6, rtol=0)


def spread(*heads: list[float], **parameters: Any) -> torch.Tensor:
    """AE of one query, all of whose keys are visible."""
    weights = torch.tensor(heads, dtype=F64)[None, :, None]
    return AttentionEntropy(**parameters)(weights, torch.ones(1, 1, 1, weights.shape[-1]) > 0)[0, 0]


def test_figures() -> None:
    close(spread([0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]), 0.860964)
    close(spread([0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]) * math.log(4), 1.193550)
    apart = torch.stack([spread([0.7, 0.1, 0.1, 0.1]), spread([0.1, 0.1, 0.1, 0.7])]).mean()
    close(apart, 0.678390)  # what the wrong order would give
    close(spread([1, 0, 0, 0], [0, 0, 1, 0]), 0.5)
    close(spread([1 / 8] * 8), 1.0)
    close(spread([0, 1, 0, 0]), 0.0)
    close(spread([1]), 0.0)


def test_the_context_counts_and_not_the_width() -> None:
    """A query that sees two of four keys evenly is as spread as can be."""
    weights = torch.tensor([[[[0.5, 0.5, 0, 0], [0.25] * 4, [1, 0, 0, 0]]]], dtype=F64)
    visible = torch.tensor([[[[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]]]) > 0
    close(AttentionEntropy()(weights, visible), [[1, 1, 0]])


def test_a_sink_can_be_taken_out() -> None:
    close(spread([0.7, 0.1, 0.1, 0.1], drop_sink=True), 1.0)
    close(spread([0.4, 0.6], drop_sink=True), 0.0)
    close(spread([1.0, 0.0, 0.0], drop_sink=True), 0.0)
    padded = torch.tensor([[[[0, 0.7, 0.1, 0.2]]]], dtype=F64)
    found = AttentionEntropy(drop_sink=True)(padded, torch.tensor([[[[0, 1, 1, 1]]]]) > 0)
    close(found, [[-(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3)) / math.log(2)]])


def causal(rows: int, length: int, pad: int = 0) -> torch.Tensor:
    seen = torch.ones(length, length).tril() > 0
    seen[:, :pad] = False
    return seen.expand(rows, 1, -1, -1)


@pytest.mark.parametrize("drop_sink", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 20])
def test_chunks_equal_the_whole(chunk: int, drop_sink: bool) -> None:
    """With four query heads on two key heads."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 20, 8, generator=generator), torch.randn(2, 2, 20, 8, generator=generator)
    visible = causal(2, 20)
    of = AttentionEntropy(drop_sink)
    full = (query @ key.repeat_interleave(2, 1).mT / math.sqrt(8)).masked_fill(~visible, -torch.inf).softmax(-1)
    found = chunked(query, key, visible, drop_sink=drop_sink, chunk=chunk)
    torch.testing.assert_close(found, of(full, visible), atol=1e-5, rtol=0)
    left = [nn.functional.pad(x, (0, 0, 3, 0), value=5.0) for x in (query, key)]
    torch.testing.assert_close(
        chunked(*left, causal(2, 23, 3), drop_sink=drop_sink, chunk=chunk)[:, 3:], found, atol=1e-5, rtol=0
    )
    half = chunked(query.bfloat16(), key.bfloat16(), visible, drop_sink=drop_sink, chunk=chunk)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, found, atol=0.02, rtol=0)


def test_subsets() -> None:
    mask = torch.ones(1, 10, dtype=F64)
    assert lowest(AE, mask, 0.2).nonzero()[:, 1].tolist() == [0, 3]
    assert lowest(-AE, mask, 0.2).nonzero()[:, 1].tolist() == [4, 8]
    assert lowest(AE, mask, 0.21).sum() == 3
    assert lowest(torch.zeros(1, 10), mask, 0.3).nonzero()[:, 1].tolist() == [0, 1, 2]
    assert lowest(AE, mask, 0.01).sum() == 1


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, [1.756843, 0.439211, 0.697204, 1.106742]), (0.5, [1.0] * 4), (1.0, LATE)],
)
def test_soft_weights(progress: float, expected: list[float]) -> None:
    found = soft(FOUR, torch.ones(1, 4, dtype=F64), -1 + 2 * progress, math.log(2))
    close(found, [expected])
    close(found.mean(), 1.0)


def rows(**given: Any) -> Batch:
    """The four tokens among padding, and a row of one token and one of none."""
    mask = [[1, 0, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0], [0] * 6]
    measure = torch.full((3, 6), torch.nan, dtype=F64)
    measure[0, [0, 2, 3, 4]] = FOUR[0]
    measure[1, 2] = 0.9
    return batch(mask, **({"measures": {NAME: measure}, "step": 10, "total_steps": 10} | given))


def weight(b: Batch, **parameters: Any) -> torch.Tensor:
    hook = load("attention_entropy", **parameters).token_weight
    assert hook
    return hook(b)


def test_ranks_belong_to_a_response() -> None:
    found = weight(rows())
    close(found[0, [0, 2, 3, 4]], LATE)
    close(found.sum(1), [4, 1, 0])
    assert not found[rows().mask == 0].any()
    close(weight(rows(step=5)), rows().mask)
    close(weight(rows(), last=0.0), rows().mask)
    assert weight(rows(), subset="anchors").nonzero().tolist() == [[0, 0], [1, 2]]
    assert weight(rows(), subset="explorers", fraction=0.5).nonzero().tolist() == [[0, 2], [0, 3], [1, 2]]
    entropy = [[0, 9, 1, 3, 2, 9], [0] * 6, [9] * 6]
    assert weight(rows(entropy=entropy), subset="entropy").nonzero().tolist() == [[0, 3], [1, 2]]


def test_a_random_subset_is_fresh_each_step_and_goes_on_after_a_checkpoint() -> None:
    b = batch(torch.ones(4, 50), measures={NAME: torch.zeros(4, 50)})
    recipe = make_recipe("dapo", [{"name": "attention_entropy", "subset": "random"}])

    def step() -> torch.Tensor:
        return recipe.control(b)[0].weight

    first, saved, second = step(), recipe.state_dict(), step()
    assert first.sum(1).tolist() == second.sum(1).tolist() == [10] * 4
    assert not first.equal(second)
    recipe.load_state_dict(saved)
    assert step().equal(second)


@pytest.mark.parametrize(("norm", "expected"), [("kept", "selected"), ("all", "all")])
def test_both_denominators(norm: str, expected: str) -> None:
    recipe = make_recipe("dapo", [{"name": "attention_entropy", "subset": "anchors", "norm": norm}])
    assert recipe.settings.denominator == expected
    assert make_recipe("dapo", ["attention_entropy"]).settings.denominator == "all"


def test_micro_batches_add_up() -> None:
    """The gradient of a token is its weight over all valid tokens, however the rows are cut."""
    recipe = make_recipe("dapo", ["attention_entropy"])
    b, metrics = recipe.control(rows(advantage=torch.ones(3, 6)))
    assert metrics["attention_entropy/attention_entropy"] == pytest.approx((1.8 + 0.9) / 5)
    for parts in (1, 3):
        logprob = torch.zeros(3, 6, dtype=F64, requires_grad=True)
        for part in replace(b.counted(), logprob=logprob).split(parts):
            recipe.loss(part)[0].backward()
        assert logprob.grad is not None
        close(logprob.grad, -b.weight / 5)


def test_what_it_asks_of_the_trainer() -> None:
    (plain,) = make_recipe("dapo", [{"name": "attention_entropy", "layer": 3}]).measures
    assert (plain.name, plain.source, plain.layer, plain.old, plain.live) == (NAME, "attention", 3, True, False)
    both = make_recipe("dapo", [{"name": "attention_entropy", "drop_sink": True}])
    assert [m.name for m in both.measures] == [NAME, WITHOUT_SINK]
    measures = {NAME: torch.zeros(1, 4), WITHOUT_SINK: FOUR}
    b, metrics = both.control(batch(torch.ones(1, 4), measures=measures, step=1, total_steps=1))
    close(b.weight, [LATE])
    assert metrics["attention_entropy/attention_entropy_without_sink"] == pytest.approx(0.45)
    with pytest.raises(RecipeError, match=r"attention_entropy\.fraction"):
        make_recipe("dapo", [{"name": "attention_entropy", "fraction": 0}])


class Reader(nn.Module):
    """One attention layer of four heads, read at the last position."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(8 + 25, 64), nn.Parameter(torch.randn(25, 64))
        self.q, self.k, self.v = (nn.Linear(64, 64, bias=False) for _ in range(3))
        self.out, self.mlp = nn.Linear(64, 64), nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
        self.head = nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, 25]` -> logits `[B, 8]`, attention weights `[B, 4, 1, 25]`."""
        h = self.tokens(x) + self.places
        q = self.q(h[:, -1:]).view(len(x), 1, 4, 16).transpose(1, 2)
        k, v = (f(h).view(len(x), 25, 4, 16).transpose(1, 2) for f in (self.k, self.v))
        a = (q @ k.mT / 4).softmax(-1)
        h = h[:, -1] + self.out((a @ v).transpose(1, 2).reshape(len(x), 64))
        return self.head(h + self.mlp(h)), a


def examples(rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """24 items and a query: copy item k, or say whether more than 12 are below 4. Inputs, answers, whether majority."""
    items = torch.randint(8, (rows, 24), generator=generator)
    place = torch.randint(24, (rows,), generator=generator)
    majority = torch.rand(rows, generator=generator) < 0.5
    answer = torch.where(majority, ((items < 4).sum(1) > 12).long(), items.gather(1, place[:, None])[:, 0])
    return torch.cat([items, torch.where(majority, 32, 8 + place)[:, None]], 1), answer, majority


def auc(score: torch.Tensor, positive: torch.Tensor) -> float:
    above = score[positive][:, None] - score[~positive][None]
    return float(((above > 0).double() + 0.5 * (above == 0)).mean())


def test_it_knows_diffuse_support_where_entropy_does_not() -> None:
    """After 400 steps nearly all is right: AE 0.81 where it copies, 1.00 where it counts; AUC 1.00 against 0.45."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(400):
        x, answer, _ = examples(128, generator)
        loss = nn.functional.cross_entropy(model(x)[0], answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, answer, majority = examples(1000, generator)
    with torch.no_grad():
        logits, weights = model(x)
    right = logits.argmax(-1) == answer
    spread = AttentionEntropy()(weights, torch.ones(1, 1, 1, 25) > 0)[:, 0]
    assert spread[majority].mean() > 0.98
    assert spread[~majority].mean() < 0.9
    assert right.float().mean() > 0.9
    assert auc(spread, majority) > 0.9
    assert auc(spread, majority) > auc(shannon_entropy(logits), majority) + 0.2
