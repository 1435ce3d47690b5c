"""ARES: reference figures, what counts as a window, and that windows find stretches where single tokens do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import ROOT
from tests.training.rl.rows import F64, batch
from waver.entropy import entropy_bounds
from waver.training.rl import Batch, RecipeError, load, make_recipe
from waver.training.rl.methods.ares import (
    EASY,
    HARD,
    KL_WEIGHT,
    MEDIUM,
    Parameters,
    count_windows,
    difficulty,
    followed,
    gap,
    shaping,
    thresholds,
    trigger_tokens,
    windows,
)
from waver.training.rl.toy import train

H = [0.1, 0.2, 2.0, 0.1, 0.1, 1.2, 1.5, 1.1, 1.4, 0.2, 0.1, 0.0]
AFTER = [0.6, 0.85, 0.725, 0.975, 1.3, 1.05, 0.7, 0.425]


def close(found: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=F64), atol=1e-6, rtol=0)


def test_windows() -> None:
    entropy, mask = torch.tensor([H], dtype=F64), torch.ones(1, 12, dtype=F64)
    means, full = windows(entropy, mask, 4)
    close(means[full], AFTER)
    assert full[0].tolist() == [True] * 8 + [False] * 4
    close(thresholds(entropy, mask, 4, 0.95)[0], 1.1625)
    close(entropy[0].quantile(0.95), 1.725)
    # At 1, the windows that begin after 4 and 5 stand out; the spike at 2 does not.
    assert (means >= 1).nonzero()[:, 1].tolist() == [4, 5]
    assert (entropy >= 1).nonzero()[:, 1].tolist() == [2, 5, 6, 7, 8]


def test_a_window_may_have_to_come_after_a_word() -> None:
    """Of the tokens at 4 and 5, after which there is a window each, the second is that word."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "small")
    word = "answer"
    found = trigger_tokens([word], str(ROOT / "models" / "small"))
    assert {tokenizer.decode([i]).strip().lower() for i in found.tolist()} == {word}
    rows = batch(torch.ones(1, 12), entropy=[H], tokens=[[0] * 5 + [int(found[0])] + [0] * 6])
    state = {"theta": 1.0, "triggers": found}
    assert count_windows(rows, state, Parameters())[1].nonzero()[:, 1].tolist() == [4, 5]
    given = Parameters(triggers=(word,), tokenizer=str(ROOT / "models" / "small"))
    assert count_windows(rows, state, given)[1].nonzero()[:, 1].tolist() == [5]
    assert "tokens" in load("ares", triggers=(word,), tokenizer=str(ROOT / "models" / "small")).reads
    with pytest.raises(RecipeError, match="give both, or neither"):
        load("ares", triggers=(word,))


def test_padding_changes_no_window() -> None:
    """Wherever it stands; a row shorter than a window has none."""
    at = [0, 2, 3, *range(5, 14)]
    entropy, mask = torch.full((3, 15), 9.0, dtype=F64), torch.zeros(3, 15, dtype=F64)
    entropy[0, at], mask[0, at] = torch.tensor(H, dtype=F64), 1.0
    mask[1, 1:5] = 1
    means, full = windows(entropy, mask, 4)
    close(means[0, at[:8]], AFTER)
    assert full.sum(1).tolist() == [8, 0, 0]
    assert not full[0, [1, 4, 14]].any()
    found = thresholds(entropy, mask, 4, 0.95)
    close(found, [1.1625, 9.0])
    assert windows(entropy[:, :2], mask[:, :2], 4)[1].sum() == 0


def test_a_tail_bucket() -> None:
    """Ten log-probabilities leave out part of the entropy, so exact entropies are used here."""
    top = torch.tensor([0.5, 0.2, 0.1, 0.05], dtype=F64)
    known = float(-(top * top.log()).sum())
    assert known == pytest.approx(1.0485063, abs=1e-7)
    assert known - 0.15 * float(torch.tensor(0.15, dtype=F64).log()) == pytest.approx(1.3330743, abs=1e-7)
    low, high = entropy_bounds(top.log(), vocab_size=100)
    assert known < low < high


@pytest.mark.parametrize(
    ("bucket", "correct", "expected"),
    [
        (EASY, True, [1, 1, 1, 1, 0.5, 0.5]),
        (EASY, False, [0.15, 0.15, 0.15, 0.15, 0.291206, 0.3]),
        (MEDIUM, True, [0.5, 1, 1, 1, 0.78125, 0.5]),
        (MEDIUM, False, [0.2, 0.2, 0.2, 0.2, 0.352319, 0.4]),
        (HARD, True, [0.836364, 1.474835, 1.546960, 1.579333, 1.597932, 1.6]),
        (HARD, False, [0.3, 0.3, 0.3, 0.3, 0.438635, 0.59999]),
    ],
)
def test_rewards(bucket: int, correct: bool, expected: list[float]) -> None:
    count = torch.tensor([5, 17, 20, 23, 30, 60], dtype=F64)
    found = correct + shaping(count, torch.full((6,), correct), bucket, 20, 0.5)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), atol=2e-6, rtol=0)


def test_the_paper_s_cases() -> None:
    right, wrong = torch.tensor([True, True]), torch.tensor([False, False])
    close(1 + shaping(torch.tensor([20, 51], dtype=F64), right, EASY, 28, 0.5), [1.0, 0.5])
    close(shaping(torch.tensor([84, 24], dtype=F64), wrong, MEDIUM, 55, 0.475), [0.379150, 0.19])


def test_the_main_text() -> None:
    count, correct = torch.tensor([12, 30, 18, 20], dtype=F64), torch.tensor([True, False, False, True])
    for bucket, expected in (
        (EASY, [1, -1.785714, -0.357143, 1]),
        (MEDIUM, [1, -1.785714, -0.357143, 1]),
        (HARD, [1, 0, 0, 1]),
    ):
        close(correct.double() + gap(count, correct, bucket, 15), expected)
    assert not gap(count, correct, EASY, 20).any()  # lambda as written: the target is the mean


def test_difficulty() -> None:
    """Of eight rows: 6 right are easy, 5 and 3 medium, 2 hard."""
    rights = (8, 6, 5, 3, 2, 0)
    correct = torch.tensor([[i < n for i in range(8)] for n in rights]).flatten()
    found = difficulty(correct, torch.arange(6).repeat_interleave(8)).view(6, 8)
    assert found[:, 0].tolist() == [EASY, EASY, MEDIUM, MEDIUM, HARD, HARD]
    assert (found == found[:, :1]).all()


def test_controllers() -> None:
    p = Parameters()
    assert followed(1.0, 0.02, p) == pytest.approx(1.1)
    assert followed(1.0, 0.005, p) == pytest.approx(0.95)
    assert followed(100.0, 1.0, p) == 100
    kappas = [1.0]
    for _ in range(4):
        kappas.append(followed(kappas[-1], 10.0, p))  # the largest KL that k3 gives
    assert kappas == pytest.approx([1.1**i for i in range(5)])
    assert followed(1e-3, 0.0, p) == 1e-3


def rows(**given: Any) -> Batch:
    """Eight rows of a medium prompt with rising effort, window 1: as many tokens of entropy 1 as the row's number."""
    entropy = torch.tensor([[0.0] + [1.0] * i + [0.0] * (9 - i) for i in range(8)])
    fields: dict[str, Any] = {
        "entropy": entropy,
        "correct": [1, 1, 1, 1, 0, 0, 0, 0],
        "reward": [1, 1, 1, 1, 0, 0, 0, 0],
        "ref_logprob": torch.full((8, 10), 0.2),
    }
    return batch(torch.ones(8, 10), **(fields | given))


def test_a_step() -> None:
    """Shaped before groups are normalised; the target lags; alpha and kappa follow."""
    recipe = make_recipe("grpo", [{"name": "ares", "window": 1}])
    theta = float(thresholds(rows().entropy, rows().mask, 1, 0.95).quantile(0.5))
    first = recipe.advantages(rows())
    state = recipe.state_dict()["ares"]
    assert state["theta"] == pytest.approx(theta)
    assert state["target"] == [None, pytest.approx(3.5), None]
    assert state["alpha"] == [0.5, 0.5, 0.5]
    count = torch.arange(8, dtype=F64)
    close(first.reward, rows().reward + shaping(count, rows().correct, MEDIUM, 3.5, 0.5))
    # All effort one up: the target is still the old mean, and alpha rises by 0.05 for an error of 1.
    more = rows(entropy=torch.tensor([[0.0] + [1.0] * (i + 1) + [0.0] * (8 - i) for i in range(8)]))
    second = recipe.advantages(more)
    close(second.reward, rows().reward + shaping(count + 1, rows().correct, MEDIUM, 3.5, 0.5))
    state = recipe.state_dict()["ares"]
    assert state["alpha"][MEDIUM] == pytest.approx(0.55)
    assert state["target"][MEDIUM] == pytest.approx(3.6)
    step, metrics = recipe.control(second)
    weight = step.measures[KL_WEIGHT]
    assert set(weight.flatten().tolist()) == {0.01, 0.005}
    assert (weight[3] == 0.005).sum() == 4
    kl = torch.tensor(0.2, dtype=F64).exp() - 1.2
    assert recipe.state_dict()["ares"]["kappa"][MEDIUM] == pytest.approx(1 + 0.1 * min(float(kl) / 0.01 - 1, 1.0))
    assert metrics["ares/windows_medium"] == 4.5
    # The leash: a token mean of weight times kl; and parts add up.
    plain, _ = make_recipe("grpo", clip_high=0.3).loss(step)
    whole, _ = recipe.loss(step)
    close(whole - plain, (weight * kl).mean())
    parts = [recipe.loss(part)[0] for part in step.counted().split(3)]
    close(torch.stack(parts).sum(), whole)


def test_auxiliary_and_empty_rows_are_left_alone() -> None:
    recipe = make_recipe("grpo", [{"name": "ares", "window": 1}])
    entropy = torch.cat([rows().entropy, torch.full((2, 10), 50.0)])
    b = batch(
        torch.cat([torch.ones(9, 10), torch.zeros(1, 10)]),
        entropy=entropy,
        correct=[1, 1, 1, 1, 0, 0, 0, 0, 1, 1],
        reward=[1, 1, 1, 1, 0, 0, 0, 0, 1, 1],
        ref_logprob=torch.full((10, 10), 0.2),
        group=[0] * 8 + [1, 2],
        draw=[0] * 8 + [1, 0],
    )
    shaped = recipe.advantages(b)
    close(shaped.reward[8:], [1, 1])
    close(shaped.reward[:8], make_recipe("grpo", [{"name": "ares", "window": 1}]).advantages(rows()).reward)
    step, _ = recipe.control(shaped)
    assert not step.measures[KL_WEIGHT][8:].any()


def test_it_goes_on_after_a_checkpoint() -> None:
    first, other = (make_recipe("grpo", [{"name": "ares", "window": 1}]) for _ in range(2))
    first.control(first.advantages(rows()))
    other.load_state_dict(first.state_dict())
    more = rows(entropy=rows().entropy.flip(0))
    close(first.advantages(more).reward, other.advantages(more).reward)
    assert first.state_dict() == other.state_dict()


def test_windows_find_stretches() -> None:
    """200 traces of 600 tokens: best F1 over thresholds for labelled stretches among isolated spikes."""
    g = torch.Generator().manual_seed(0)

    def exponential(mean: float, *shape: int) -> torch.Tensor:
        return -mean * torch.rand(*shape, generator=g, dtype=F64).clamp(min=1e-12).log()

    entropy, label = exponential(0.25, 200, 600), torch.zeros(200, 600, dtype=torch.bool)
    spikes = torch.rand(200, 600, generator=g) < 0.05
    entropy = entropy + exponential(1.5, 200, 600) * spikes
    for row in range(200):
        for _ in range(5):
            length = int(torch.randint(10, 25, (1,), generator=g))
            start = int(torch.randint(600 - length, (1,), generator=g))
            stretch = (1 + 0.7 * torch.randn(length, generator=g, dtype=F64)).clamp(min=0)
            quiet = torch.rand(length, generator=g) < 0.25
            entropy[row, start : start + length] = torch.where(quiet, 0.05 * stretch, stretch)
            label[row, start : start + length] = True

    def best(w: int) -> float:
        # A window that looks at the tokens after t marks t + 1, as the reference's does.
        means, full = windows(torch.nn.functional.pad(entropy, (1, 0)), torch.ones(200, 601), w)
        score, truth = means[:, :-1][full[:, :-1]], label[full[:, :-1]]
        order = score.argsort(descending=True)
        hits = truth[order].double().cumsum(0)
        return float((2 * hits / (torch.arange(1, len(hits) + 1) + truth.sum())).max())

    f1 = {w: best(w) for w in (1, 4, 8, 32)}
    assert min(f1[4], f1[8]) > f1[1] + 0.05
    assert min(f1[4], f1[8]) > f1[32] + 0.15


def test_it_trains_and_refuses() -> None:
    run = train(make_recipe("grpo", [{"name": "ares", "window": 2}]), 0, steps=3, microbatches=2)
    assert run.steps[-1]["ares/threshold"] > 0
    assert not make_recipe("grpo", [{"name": "ares", "beta": 0}]).needs_reference
    with pytest.raises(RecipeError, match=r"ares\.window"):
        make_recipe("grpo", [{"name": "ares", "window": 0}])
