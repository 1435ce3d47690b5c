"""The toy task: plain GRPO gets right there, and forgets all ways but one or two (figures of the base method)."""

from __future__ import annotations

import pytest
import torch

from waver.training.rl import Draw, Measure, Method, Recipe, Rollouts
from waver.training.rl.toy import Task, train


def named(**hooks: object) -> Method:
    return Method(name="one", paper="none", summary="for a test", **hooks)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grpo_rises_and_collapses(seed: int) -> None:
    """Ten seeds: 0.16 to 0.24 -> 0.86 to 0.98 right, 0.75 to 0.77 -> 0.03 to 0.10 nats, 9 to 12 -> 1 to 2.3 ways."""
    run = train(Recipe(), seed)
    assert run.start.accuracy == pytest.approx(0.20, abs=0.06)
    assert run.start.entropy == pytest.approx(0.75, abs=0.03)
    assert run.start.pairs == pytest.approx(11.5, abs=2)
    assert 0.90 <= run.end.accuracy <= 0.99
    assert 0.02 <= run.end.entropy <= 0.12
    assert 1 <= run.end.pairs <= 3


def test_a_run_is_a_function_of_its_seed() -> None:
    assert train(Recipe(), 3, steps=3) == train(Recipe(), 3, steps=3)
    assert train(Recipe(), 3, steps=3) != train(Recipe(), 4, steps=3)


def test_rows_of_equal_length_make_two_aggregations_one() -> None:
    token, row = (train(Recipe(aggregation=mode), 0, steps=3) for mode in ("token-mean", "seq-mean-token-mean"))
    assert row.end.entropy == pytest.approx(token.end.entropy, abs=1e-5)


def test_micro_batches_change_nothing() -> None:
    whole, cut = (train(Recipe(kl=0.01, entropy=0.01), 0, steps=3, microbatches=n) for n in (1, 5))
    assert cut.end.entropy == pytest.approx(whole.end.entropy, abs=1e-5)
    assert cut.tokens_updated == pytest.approx(whole.tokens_updated)


def test_auxiliary_rows_come_from_a_draw_of_their_own() -> None:
    seen: list[Rollouts] = []

    def watch(rollouts: Rollouts) -> torch.Tensor:
        seen.append(rollouts)
        return rollouts.draw < 2

    def only_zero(logits: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill(torch.arange(logits.shape[-1]) > 0, -torch.inf)

    method = named(
        rollout_sampler=lambda plan: (*plan, Draw(share=0.5, temperature=1.2), Draw(share=0.1, logits=only_zero)),
        rollout_filter=watch,
    )
    (step,) = train(Recipe(methods=[method], dynamic_sampling=False), 0, steps=1).steps
    (rollouts,) = seen
    assert rollouts.draw.bincount().tolist() == [48, 24, 8]
    assert len(rollouts.group.unique()) == 6 + 3 + 1
    assert not rollouts.tokens[rollouts.draw == 2].any()
    assert step["tokens_updated"] <= 72 * 8


@pytest.mark.parametrize(
    "method",
    [
        named(rollout_filter=lambda rollouts: rollouts.draw < 0),
        named(token_weight=lambda batch: torch.zeros_like(batch.mask)),
    ],
)
def test_nothing_to_learn_from_is_no_update(method: Method) -> None:
    run = train(Recipe(methods=[method]), 0, steps=2)
    assert run.end == run.start
    assert run.tokens_updated == 0


def test_a_reward_of_ones_own_and_the_second_rule() -> None:
    """The rule of test-time RL: the second fork answers, and pretraining hints at the right class."""
    task = Task(rule="second", hint=0.45)
    prompts = torch.arange(6).repeat_interleave(500)
    examples = task.examples(prompts, torch.Generator().manual_seed(0))
    assert (task.answer(examples) == prompts % 4).float().mean().item() == pytest.approx(0.45, abs=0.03)
    run = train(
        Recipe(), 0, task=task, steps=1, reward=lambda tokens, prompts: 2 * task.correct(tokens, prompts).float()
    )
    assert run.steps[0]["reward"] == pytest.approx(2 * run.steps[0]["accuracy"])


def test_attention_is_not_there() -> None:
    measure = Measure("attention_entropy", max, source="attention")
    with pytest.raises(ValueError, match="the toy's policy has none"):
        train(Recipe(methods=[named(measures=(measure,))]))
