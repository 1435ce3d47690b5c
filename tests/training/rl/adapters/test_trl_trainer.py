"""Recipes in TRL's trainer: hooks, measures, draws, checkpoints, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

import trl
from trl import GRPOTrainer

from tests.training.rl.adapters.sums import made, reward
from waver.entropy import shannon_entropy
from waver.training.rl import Batch, Draw, Measure, Method, Recipe, RecipeError, load
from waver.training.rl.adapters.trl_draws import drawn_by
from waver.training.rl.adapters.trl_rows import is_cut, stack, turns
from waver.training.rl.adapters.trl_trainer import RecipeTrainer
from waver.training.tasks.tools import calculator


def named(**hooks: Any) -> Method:
    return Method(name="one", paper="none", summary="for a test", **hooks)


def follow(state: dict[str, Any]) -> Method:
    """A method with every kind of need: state, measures before and in the update, a weight, an extra loss."""

    def control(batch: Batch) -> Batch:
        assert torch.allclose(
            batch.measures["peak"][batch.mask > 0], batch.measures["peak"][batch.mask > 0].clamp(0, 1)
        )
        state["steps"] = [*state.get("steps", []), (batch.step, batch.total_steps, float(batch.entropy.sum()))]
        state["bar"] = batch.entropy[batch.mask > 0].quantile(0.5)
        return batch

    return named(
        step_controller=control,
        token_weight=lambda batch: (batch.entropy >= state["bar"]).float(),
        extra_loss=lambda batch, _: 0.01 * (batch.live["entropy"] * batch.mask).sum() / batch.totals["tokens"],
        report=lambda batch: {"bar": float(state["bar"])},
        measures=(
            Measure("peak", lambda logits: logits.softmax(-1).amax(-1)),
            Measure("entropy", shannon_entropy, old=False, live=True),
        ),
        state=state,
        defaults={"denominator": "selected"},
    )


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def test_a_method_trains_and_resumes_exactly(tmp_path: Path) -> None:
    """Two steps at a stretch, and one step, a checkpoint and one step: the same weights, state and metrics."""
    run = {"save_strategy": "steps", "save_steps": 1}
    whole = made(RecipeTrainer, tmp_path / "whole", recipe=Recipe("dapo", [follow({})]), correct=1.0, **run)
    before = weights(whole)
    whole.train()
    assert not all(torch.equal(weight, before[name]) for name, weight in weights(whole).items())
    state: dict[str, Any] = {}
    again = made(RecipeTrainer, tmp_path / "again", recipe=Recipe("dapo", [follow(state)]), correct=1.0, **run)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    for name, weight in weights(again).items():
        assert torch.equal(weight, weights(whole)[name])
    remembered = whole.recipe.state_dict()["one"]
    assert [step[:2] for step in remembered["steps"]] == [(1, 2), (2, 2)]
    assert state["steps"] == remembered["steps"]
    last, expected = (trainer.state.log_history[-2] for trainer in (again, whole))
    shared = {"loss", "reward", "accuracy", "entropy", "selected", "kept", "updated", "ratio", "one/bar"}
    assert {name: last[name] for name in shared} == {name: expected[name] for name in shared}
    assert 0.4 < last["kept"] < 0.6
    assert last["ratio"] == pytest.approx(1, abs=1e-5)


def test_curves_are_those_of_all_rows_as_drawn(tmp_path: Path) -> None:
    """Under DAPO too, which drops groups: the same rows, and the same figures."""
    cut = {"max_steps": 1, "correct": 1.0}
    plain, filtered = (
        made(RecipeTrainer, tmp_path, recipe=Recipe(base, [named()]), **cut) for base in ("grpo", "dapo")
    )
    logs = []
    for trainer in (plain, filtered):
        torch.manual_seed(0)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    all_, dapo = logs
    for name in ("accuracy", "length", "entropy", "reward"):
        assert dapo[name] == pytest.approx(all_[name], abs=1e-6), name
        assert all_[f"kept/{name}"] == pytest.approx(all_[name], abs=1e-6), name
    assert dapo["length"] == pytest.approx(dapo["completions/mean_length"])
    assert all_["kept/rows"] == 1 > dapo["kept/rows"]


def test_trl_is_not_asked_twice_for_the_old_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain recipe with one update needs no pass before it; with two, TRL's own pass is ours."""
    seen: list[bool] = []
    pass_over = GRPOTrainer._get_per_token_logps_and_entropies

    def count(*args: Any, **kwargs: Any) -> Any:
        seen.append(torch.is_grad_enabled())
        return pass_over(*args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", count)
    for given, before in (({}, 0), ({"num_iterations": 2}, 2), ({"recipe": Recipe("grpo", [named()])}, 2)):
        seen.clear()
        trainer = made(RecipeTrainer, tmp_path, **{"max_steps": 1, **given})
        trainer.train()
        assert seen == [False] * before + [True] * 2  # two micro-batches of eight rows
        assert 0 < trainer.state.log_history[0]["entropy"] < 2


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    made(RecipeTrainer, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    other = made(RecipeTrainer, tmp_path, recipe=Recipe("grpo", [follow({})]))
    with pytest.raises(RecipeError, match="made with no method, this recipe has one"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_both_ways_to_look_agree(tmp_path: Path) -> None:
    """With TRL's fused head, and with logits: the same log-probabilities and entropies, and the measured ones."""
    seen: dict[str, Batch] = {}

    def keep(name: str) -> Any:
        return lambda batch: seen.setdefault(name, batch)

    peak = Measure("peak", lambda logits: logits.softmax(-1).amax(-1))
    for name, measures in (("fused", ()), ("logits", (peak,))):
        method = named(step_controller=keep(name), measures=measures)
        made(RecipeTrainer, tmp_path, recipe=Recipe("grpo", [method]), max_steps=1).train()
    fused, logits = seen["fused"], seen["logits"]
    valid = fused.mask > 0
    assert torch.equal(fused.tokens, logits.tokens)
    torch.testing.assert_close(fused.old_logprob[valid], logits.old_logprob[valid], atol=3e-5, rtol=0)
    torch.testing.assert_close(fused.entropy[valid], logits.entropy[valid], atol=3e-5, rtol=0)
    assert (logits.old_logprob[valid].exp() <= logits.measures["peak"][valid] + 1e-5).all()


def test_attention_is_measured_where_the_model_keeps_it(tmp_path: Path) -> None:
    def sums(attention: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        return (attention * visible).sum(-1).mean(1)

    found: dict[str, torch.Tensor] = {}
    method = named(
        measures=(Measure("mass", sums, source="attention", live=True),),
        step_controller=lambda batch: found.update(old=batch.measures["mass"], mask=batch.mask) or batch,
        extra_loss=lambda batch, _: 0 * batch.live["mass"].sum(),
    )
    with pytest.raises(RecipeError, match='attn_implementation="eager"'):
        made(RecipeTrainer, tmp_path, recipe=Recipe("grpo", [method]))
    eager = {"attn_implementation": "eager"}
    made(RecipeTrainer, tmp_path, recipe=Recipe("grpo", [method]), model=eager, max_steps=1).train()
    mass = found["old"][found["mask"] > 0]
    torch.testing.assert_close(mass, torch.ones_like(mass))


@dataclass(frozen=True)
class Only:
    """Nothing but one token."""

    token: int

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.full_like(logits, -1e9).index_fill(-1, torch.tensor([self.token], device=logits.device), 0.0)


def test_auxiliary_draws_are_groups_of_their_own(tmp_path: Path) -> None:
    seen: list[Batch] = []
    method = named(
        rollout_sampler=lambda plan: (*plan, Draw(share=0.25, temperature=1.5, logits=Only(7))),
        step_controller=lambda batch: seen.append(batch) or batch,
    )
    trainer = made(RecipeTrainer, tmp_path, recipe=Recipe("grpo", [method]), max_steps=1)
    trainer.train()
    (batch,) = seen
    main, other = batch.select(batch.draw == 0), batch.select(batch.draw == 1)
    assert len(main) == 16
    assert len(other) == 4
    assert (other.tokens == 7).all()
    assert other.truncated.all()
    assert not (main.tokens == 7).all(1).any()
    assert len(set(other.group.tolist())) == 1
    assert not set(other.group.tolist()) & set(main.group.tolist())
    history = trainer.state.log_history[0]
    assert history["completions/max_length"] < 64  # of the main draw alone
    assert trainer.generation_config.temperature == 1.3


def wrapped(model: Any) -> Any:
    """A model that generates through the one inside, as PEFT's wrapper does."""

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = model

        def get_base_model(self) -> Any:
            return self.inside

        def forward(self, **given: Any) -> Any:
            return self.inside(**given)

    return Wrapper()


class Answer(torch.nn.Module):
    """Gives logits."""

    def forward(self) -> Any:
        return SimpleNamespace(logits=torch.zeros(1, 2, 9))


@pytest.mark.parametrize("wrap", [lambda model: model, wrapped])
def test_a_rule_on_logits_reaches_the_model_that_generates(wrap: Any) -> None:
    inside = Answer()
    model = wrap(inside)
    plain = SimpleNamespace(temperature=1.0)
    trainer = SimpleNamespace(
        model=model, generation_config=plain, accelerator=SimpleNamespace(unwrap_model=lambda model: model)
    )
    with drawn_by(trainer, Draw(logits=Only(7))):
        drawn = inside().logits
    assert drawn[0, -1].argmax() == 7
    assert not drawn[0, 0].any()
    assert not inside().logits.any()
    with pytest.raises(RecipeError, match="generates without the rule"), drawn_by(trainer, Draw(logits=Only(7))):
        pass


def test_a_rule_on_logits_holds_under_lora(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    seen: list[Batch] = []
    method = named(
        rollout_sampler=lambda plan: (Draw(logits=Only(7)),),
        step_controller=lambda batch: seen.append(batch) or batch,
    )
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    recipe = Recipe("grpo", [method])
    made(RecipeTrainer, tmp_path, recipe=recipe, peft_config=lora, max_steps=1, max_completion_length=4).train()
    assert (seen[0].tokens == 7).all()


def test_the_evaluation_weighs_the_kl_term_as_the_recipe_does(tmp_path: Path) -> None:
    """Every answer of a question earns the same, so that what is left of TRL's loss is the KL term."""

    def same(completions: list[Any], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    recipe = Recipe("grpo", kl=0.25)
    trainer = made(RecipeTrainer, tmp_path, recipe=recipe, reward_funcs=same, per_device_eval_batch_size=8)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.mul_(1.02)
    trainer.eval_dataset = trainer.train_dataset
    found = trainer.evaluate()
    assert found["eval_kl"] > 1e-4
    assert found["eval_loss"] == pytest.approx(0.25 * found["eval_kl"], rel=0.2)
    assert trainer.beta == 1


def test_nothing_to_learn_from_leaves_the_weights_alone(tmp_path: Path) -> None:
    """Every group is alike, and DAPO drops it: no step, not even by the momentum and decay of the optimizer."""

    def same(completions: list[Any], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    trainer = made(RecipeTrainer, tmp_path, recipe="dapo", correct=1.0, reward_funcs=same, weight_decay=0.1)
    before = weights(trainer)
    trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in weights(trainer).items())
    assert trainer.state.log_history[0]["kept/rows"] == 0


class Scripted(RecipeTrainer):
    """Calls the calculator in every first turn, and then answers."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        call = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "12 + 30"}}\n</tool_call>'
        asked = ["<tool_response>\n42\n</tool_response>" in self._tokenizer.decode(ids) for ids in prompt_ids]
        said = [f"The answer is 4{i}." if told else call for i, told in enumerate(asked)]
        return [[*self._tokenizer(text)["input_ids"], self.eos_token_ids[0]] for text in said], None


def test_turns_with_a_tool_are_the_steps_of_empg(tmp_path: Path) -> None:
    """The words of a tool are no token of the policy; the turns before and after it are steps of their own."""
    seen: list[Batch] = []
    trainer = made(
        Scripted,
        tmp_path,
        recipe=Recipe("grpo", [load("empg"), named(step_controller=lambda batch: seen.append(batch) or batch)]),
        tools=[calculator],
        template=(Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text(),
        reward_funcs=lambda completions, **_: [float("42." in str(c[-1].get("content"))) for c in completions],
        max_completion_length=256,
        max_steps=1,
    )
    trainer.train()
    history = trainer.state.log_history[0]
    assert history["tools/call_frequency"] == 1
    assert history["empg/steps"] == 2 * 16
    assert history["empg/step_entropy"] > 0
    batch = seen[0]
    assert batch.step_id.unique().tolist() == [-1, 0, 1]
    assert ((batch.step_id >= 0) == (batch.mask > 0)).all()
    own = trainer._tokenizer.decode(batch.tokens[0][batch.mask[0] > 0])
    assert "<tool_call>" in own
    assert "The answer is" in own
    assert "<tool_response>" not in own


def test_groups_that_are_left_out_are_drawn_anew(tmp_path: Path) -> None:
    """Answers to half of the sums all earn the same. With refills there are four groups to learn from all the same."""
    seen: list[Batch] = []

    def uneven(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        return [float(i % 2 or int(known) % 2) for i, known in enumerate(answer)]

    def groups(refill: int) -> int:
        seen.clear()
        recipe = Recipe(
            "dapo", [named(step_controller=lambda batch: seen.append(batch) or batch)], mask_truncated=False
        )
        given = {"prompts": 32, "reward_funcs": uneven, "max_completion_length": 4, "max_steps": 1, "correct": 1.0}
        trainer = made(RecipeTrainer, tmp_path, recipe=recipe, refill=refill, shuffle_dataset=False, **given)
        trainer.train()
        assert trainer.state.log_history[0]["kept"] == 1
        return len(seen[0].group.unique())

    assert 0 < groups(0) < 4
    assert groups(8) == 4
    assert len(seen[0]) == 16


def test_rows_without_a_score_are_left_out(tmp_path: Path) -> None:
    seen: list[Batch] = []

    def some(completions: list[Any], **columns: Any) -> list[float | None]:
        scores = reward(completions, **columns)
        return [None if i == 0 else score for i, score in enumerate(scores)]

    method = named(step_controller=lambda batch: seen.append(batch) or batch)
    made(RecipeTrainer, tmp_path, recipe=Recipe("grpo", [method]), reward_funcs=some, max_steps=1).train()
    assert len(seen[0]) == 15
    assert not seen[0].reward.isnan().any()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"loss_type": "grpo"}, "set aggregation there"),
        ({"beta": 0.1}, "set kl there"),
        ({"top_entropy_quantile": 0.2}, "no place beside a recipe"),
        ({"steps_per_generation": 3, "per_device_train_batch_size": 4}, "must not mix rows of two generations"),
        ({"num_iterations": 2, "save_strategy": "steps", "save_steps": 3}, "a multiple of 2"),
        ({"recipe": "nothing"}, "there is no method 'nothing'"),
        ({"recipe": "aepo", "use_vllm": True}, "aepo plans how rows are drawn.*leave use_vllm out"),
        ({"recipe": "hapo", "rollout_func": print}, "hapo plans.*leave rollout_func out"),
        ({"recipe": "hapo", "use_transformers_continuous_batching": True}, "leave use_transformers_continuous"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=reason):
        made(RecipeTrainer, tmp_path, **arguments)


def test_the_length_of_the_trainer_is_that_of_the_recipe(tmp_path: Path) -> None:
    assert made(RecipeTrainer, tmp_path, recipe="dr_grpo").recipe.settings.max_length == 64


def test_turns_are_counted_by_gaps() -> None:
    assert turns(torch.tensor([[1, 1, 0, 1, 0], [0, 1, 0, 0, 1]])).tolist() == [[0, 0, -1, 1, -1], [-1, 0, -1, -1, 1]]


def test_a_response_is_cut_if_it_does_not_end() -> None:
    ids = torch.tensor([[5, 2, 0], [5, 6, 7], [0, 0, 0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    assert is_cut(ids, mask, [2]).tolist() == [False, True, False]


def test_generations_of_unequal_width_are_stacked() -> None:
    one = {"prompt_ids": torch.ones(1, 2), "completion_ids": torch.ones(1, 1), "n": torch.tensor(1)}
    two = {"prompt_ids": torch.ones(1, 1), "completion_ids": torch.ones(1, 2), "n": torch.tensor(2)}
    whole = stack([one, two], padding=9)
    assert whole["prompt_ids"].tolist() == [[1, 1], [9, 1]]
    assert whole["completion_ids"].tolist() == [[1, 9], [1, 1]]
    assert whole["n"] == 3
