"""A recipe: hooks in their order, how they compose, what is refused and why, and what a checkpoint remembers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.training.rl.rows import F64, batch, rollouts
from waver.entropy import shannon_entropy
from waver.training.rl import Batch, Draw, Measure, Method, Recipe, RecipeError, load, make_recipe, names
from waver.training.rl.loss import aggregate


def named(name: str = "one", **hooks: object) -> Method:
    return Method(name=name, paper="none", summary="for a test", **hooks)  # type: ignore[arg-type]


def test_hooks_run_in_the_order_of_the_card() -> None:
    seen: list[str] = []

    def note(name: str, value: object) -> object:
        seen.append(name)
        return value

    recipe = Recipe(
        methods=[
            named(
                rollout_sampler=lambda plan: note("1", plan),
                rollout_filter=lambda rows: note("2", rows.correct | True),
                reward=lambda b: note("3a", b.reward),
                advantage=lambda b: note("3b", b.reward),
                step_controller=lambda b: note("4", b),
                advantage_transform=lambda b: note("5", b.advantage),
                token_weight=lambda b: note("6", b.weight),
                report=lambda b: note("report", {}),
                live_weight=lambda b: note("6 live", b.weight),
                policy_loss=lambda b, s: note("7", -b.logprob),
                extra_loss=lambda b, s: note("9", b.logprob.sum() * 0),
            )
        ]
    )
    recipe.plan()
    recipe.keep(rollouts([[1, 1]]))
    step, _ = recipe.control(recipe.advantages(batch([[1, 1]])))
    recipe.loss(step)
    assert seen == ["1", "2", "3a", "3b", "4", "5", "6", "report", "6 live", "7", "9"]


def test_hooks_compose() -> None:
    """Transforms one after the other, weights multiplied, extra losses added, each filter on what is left."""
    one = named(
        rollout_sampler=lambda plan: (*plan, Draw(temperature=1.2)),
        rollout_filter=lambda rows: torch.arange(len(rows)) > 0,
        advantage_transform=lambda b: b.advantage + 1,
        token_weight=lambda b: torch.full_like(b.mask, 0.5),
        extra_loss=lambda b, s: b.logprob.sum(),
    )
    other = replace(
        one,
        name="other",
        advantage_transform=lambda b: b.advantage * 3,
        live_weight=lambda b: torch.full_like(b.mask, 0.25),
    )
    recipe = Recipe(methods=[one, other], dual_clip=None)
    assert [draw.temperature for draw in recipe.plan()] == [1, 1.2, 1.2]
    assert recipe.keep(rollouts(torch.ones(4, 1))).tolist() == [False, False, True, True]
    step, metrics = recipe.control(recipe.advantages(batch([[1, 1, 0]], old_logprob=[[-1, -2, 0]])))
    assert step.advantage.tolist() == [[3, 3, 0]]
    assert step.weight.tolist() == [[0.25, 0.25, 0]]
    assert metrics["selected"] == 0.25
    loss, metrics = recipe.loss(step)
    assert loss.item() == pytest.approx(-3 * 0.25 * 0.25 + 2 * -3)
    assert metrics["weight"] == 0.25**2
    assert metrics["kept"] == metrics["ratio"] == 1


def test_a_dropped_row_leaves_every_count() -> None:
    drop = named(step_controller=lambda b: replace(b, mask=b.mask * torch.tensor([[1.0], [0.0]])))
    recipe = Recipe(methods=[drop])
    step, _ = recipe.control(recipe.advantages(batch(torch.ones(2, 3), reward=[1, 0], old_logprob=-torch.ones(2, 3))))
    assert step.counted().totals == {"tokens": 3, "rows": 1, "selected": 3, "selected_rows": 1}


def test_totals_sum_the_measures_that_have_tokens() -> None:
    rows = batch([[1, 1, 0]], measures={"nec": torch.tensor([[1.0, 2, torch.nan]]), "bucket": torch.tensor([3])})
    totals = rows.counted().totals
    assert totals["nec"] == 3
    assert "bucket" not in totals


def test_the_batch_of_a_trainer() -> None:
    """Built from rollouts and a pass without gradient: widened, detached, and on-policy."""
    logprob = torch.full((1, 3), -1.0, dtype=torch.bfloat16, requires_grad=True)
    made = Batch.of(rollouts([[1, 1, 0]]), old_logprob=logprob, entropy=logprob, measures={"nec": logprob})
    assert made.old_logprob.dtype == made.mask.dtype == torch.float32
    assert not any(x.requires_grad for x in (made.old_logprob, made.entropy, made.measures["nec"]))
    assert made.logprob is made.old_logprob
    assert made.step_id.tolist() == [[0, 0, -1]]
    with pytest.raises(ValueError, match="ref_logprob"):
        _ = made.reference


def test_rewards_are_shaped_before_they_are_normalised() -> None:
    recipe = Recipe(
        "dr_grpo", [named(reward=lambda b: b.reward * 10)], max_length=4, overlong_buffer=2, kl=0.5, kl_in="reward"
    )
    rows = batch([[1, 1, 1, 1], [1, 1, 0, 0]], reward=[1, 0], ref_logprob=[[-1] * 4, [0] * 4])
    found = recipe.advantages(rows)
    assert found.reward.tolist() == [10 * (1 - 1 - 0.5 * 4), 0]
    assert found.advantage.tolist() == [[-10] * 4, [10, 10, 0, 0]]


def test_truncated_rows_count_for_the_group_but_are_not_learned_from() -> None:
    found = Recipe("dapo").advantages(batch(torch.ones(2, 2), reward=[1, 0], truncated=[True, False]))
    assert found.mask.tolist() == [[0, 0], [1, 1]]
    assert found.advantage[1, 0].item() == pytest.approx(-0.7071058)


def test_figures_of_all_rows_count_those_that_were_cut() -> None:
    recipe = Recipe("dapo")
    given = {"truncated": [True, False], "correct": [True, False], "reward": [1, 0]}
    rows = batch([[1, 1, 1], [1, 0, 0]], entropy=[[3, 3, 3], [1, 0, 0]], **given)
    assert recipe.drawn(rows) == {"reward": 0.5, "accuracy": 0.5, "length": 2, "entropy": 2.5}
    _, metrics = recipe.control(recipe.advantages(rows))
    kept = {name: value for name, value in metrics.items() if name.startswith("kept/")}
    assert kept == {"kept/reward": 0, "kept/accuracy": 0, "kept/length": 1, "kept/entropy": 1}


def test_dapo_leaves_out_groups_without_a_signal_but_no_auxiliary_row() -> None:
    rows = rollouts(torch.ones(5, 1), group=[0, 0, 1, 1, 2], correct=[1, 0, 1, 1, 1], draw=[0, 0, 0, 0, 1])
    assert Recipe("dapo").keep(rows).tolist() == [True, True, False, False, True]
    assert Recipe("grpo").keep(rows).all()


@pytest.mark.parametrize("name", names())
def test_a_filter_is_not_asked_about_nothing(name: str) -> None:
    """DAPO has left out every group already."""
    parameters = {"trained": 2} if name == "spine" else {}
    rows = rollouts(torch.ones(4, 1), group=[0, 0, 1, 1], correct=[1, 1, 0, 0])
    assert not Recipe("dapo", [load(name, **parameters)], dynamic_sampling=True).keep(rows).any()


def test_importance_weights_scale_the_loss_and_choose_no_token() -> None:
    """The weights of an engine that drew with other rounding: KL-Cov holds back the tokens that it would without."""
    g = torch.Generator().manual_seed(0)
    old, advantage = (torch.randn(4, 8, generator=g, dtype=F64) for _ in range(2))
    recipe = Recipe(methods=[load("kl_cov", share=0.1)])
    rows = batch(torch.ones(4, 8), old_logprob=old, logprob=old - 0.3, advantage=advantage)
    plain, _ = recipe.loss(rows)
    for factor in (0.0, 0.5, 2.0):
        assert recipe.loss(replace(rows, correction=torch.full_like(old, factor)))[0] == pytest.approx(factor * plain)
    uneven = torch.rand(4, 8, generator=g, dtype=F64) * 3
    found, _ = recipe.loss(replace(rows, correction=uneven))
    cov = (old - 0.3 - (old - 0.3).mean()) * (advantage - advantage.mean())
    held = torch.zeros(32, dtype=F64).index_fill(0, cov.flatten().topk(3).indices, 1.0).view(4, 8)
    expected = (uneven * (-advantage * math.exp(-0.3) + held * 0.3)).mean()
    assert found == pytest.approx(float(expected))


def test_kl_and_entropy_bonus_enter_the_loss() -> None:
    rows = batch(
        [[1, 1], [1, 1]], draw=[0, 1], ref_logprob=torch.full((2, 2), -1.0), live={"entropy": torch.ones(2, 2)}
    )
    kl = math.exp(-1)
    loss, metrics = Recipe(kl=0.5, entropy=0.1).loss(rows)
    assert loss.item() == pytest.approx(0.5 * kl / 2 - 0.1)
    assert metrics["kl"] == pytest.approx(kl)


def test_metrics_of_an_update() -> None:
    rows = batch([[1, 1, 1, 0]], logprob=[[0.5, -0.5, 0, 9]], advantage=[[1, 1, 0, 0]], weight=[[1, 1, 0.5, 1]])
    _, metrics = Recipe().loss(rows)
    assert metrics == pytest.approx(
        {
            "ratio": (1.6487213 + 0.6065307 + 1) / 3,
            "clip_fraction": 1 / 3,
            "kept": 1,
            "updated": 2 / 3,
            "weight": 2.5 / 3,
            "approx_kl": (1.6487213 - 1.5 + 0.6065307 - 0.5) / 3,
        }
    )


def test_bases() -> None:
    assert Recipe("gspo").settings.aggregation == "seq-mean-token-mean"
    assert Recipe("rloo").needs_reference
    assert Recipe("dapo", clip_high=0.3).settings.clip_high == 0.3
    assert Recipe("grpo", [named(defaults={"clip_high": 0.4})]).settings.clip_high == 0.4
    assert Recipe("grpo", [named(defaults={"clip_high": 0.4})], clip_high=0.1).settings.clip_high == 0.1


def test_rloo_is_a_mean_over_rows_of_the_sequence_ratio() -> None:
    rows = batch([[1, 1], [1, 0]], logprob=[[0.1, -0.05], [0.02, 0]], advantage=[[2, 2], [-1, 0]])
    loss, _ = Recipe("rloo", kl=0).loss(rows)
    row = torch.tensor([0.05, 0.02]).exp()
    assert loss.item() == pytest.approx(float((-2 * row[0] + row[1]) / 2))


@dataclass(frozen=True)
class Tail:
    """A measure with a parameter: equal parameters, equal measures."""

    rank: int

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(-1).sort(descending=True).values[..., self.rank :].sum(-1)


def test_measures_are_merged_and_computed_where_they_are_wanted() -> None:
    old, live = (
        named(n, measures=(Measure("tail", Tail(1), old=o, live=not o),)) for n, o in (("a", True), ("b", False))
    )
    recipe = Recipe(methods=[old, live], entropy=0.01)
    logits = torch.randn(2, 3, 5, requires_grad=True)
    assert {m.name for m in recipe.measures} == {"tail", "entropy"}
    before = recipe.measured(logits, live=False)
    assert not before["tail"].requires_grad
    assert "entropy" not in before
    now = recipe.measured(logits.half(), live=True)
    assert now["tail"].requires_grad
    assert now["entropy"].dtype == torch.float32
    torch.testing.assert_close(recipe.measured(logits, live=True)["entropy"], shannon_entropy(logits))


@pytest.mark.parametrize(
    ("methods", "options", "reason"),
    [
        ([named("a", policy_loss=max), named("b", policy_loss=max)], {}, "a and b both replace the clipped loss"),
        ([named("a", advantage=max), named("b", advantage=max)], {}, "a and b both replace the advantage estimator"),
        ([named("a"), named("a")], {}, "a is in the recipe twice"),
        ([named("a"), named("b", excludes={"a": "it damps what a amplifies"})], {}, "it damps what a amplifies"),
        (
            [named("a", defaults={"dual_clip": 10}), named("b", defaults={"dual_clip": 5})],
            {},
            "a trains with dual_clip=10 and b with 5: say which, by setting dual_clip",
        ),
        ([named("a", live_weight=max)], {"denominator": "selected"}, "cannot be counted ahead"),
        ([named("a", measures=(Measure("rows", abs),))], {}, "a name of the base"),
        ([named(n, measures=(Measure("x", f),)) for n, f in (("a", abs), ("b", min))], {}, "different things by 'x'"),
        ([], {"base": "ppo"}, "there is no base 'ppo'; there are grpo, dapo"),
        ([], {"clip_hihg": 0.3}, "clip_hihg: Extra inputs are not permitted"),
        ([], {"clip_low": -1}, "clip_low: Input should be greater than or equal to 0"),
        ([], {"base": "dr_grpo"}, "set max_length"),
        ([], {"base": "gspo", "aggregation": "token-mean"}, "a GSPO ratio belongs to a row"),
        ([], {"overlong_buffer": 8}, "set max_length"),
    ],
)
def test_what_is_refused(methods: list[Method], options: dict[str, object], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        Recipe(methods=methods, **options)  # type: ignore[arg-type]


def test_two_defaults_that_differ_are_the_users_to_decide() -> None:
    both = [named("a", defaults={"dual_clip": 10}), named("b", defaults={"dual_clip": 5})]
    assert Recipe(methods=both, dual_clip=5).settings.dual_clip == 5


def counter(name: str = "counter") -> Method:
    """Counts steps, and draws from a generator that a checkpoint brings back."""
    generator, state = torch.Generator().manual_seed(0), dict[str, object]()

    def step(b: Batch) -> Batch:
        if "generator" in state:
            generator.set_state(state["generator"])  # type: ignore[arg-type]
        state["steps"] = state.get("steps", 0) + 1  # type: ignore[operator]
        weight = torch.rand(b.mask.shape, generator=generator, dtype=F64)
        state["generator"] = generator.get_state()
        return replace(b, weight=weight)

    return named(name, step_controller=step, state=state, report=lambda b: {"steps": state["steps"]})


def test_state_goes_through_a_checkpoint(tmp_path: Path) -> None:
    first = Recipe(methods=[counter()])
    rows = batch(torch.ones(2, 3))
    first.control(rows)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    expected, _ = first.control(rows)
    again = Recipe(methods=[counter()])
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    found, metrics = again.control(rows)
    assert metrics["counter/steps"] == 2
    assert torch.equal(found.weight, expected.weight)
    with pytest.raises(RecipeError, match="made with counter, this recipe has none"):
        Recipe().load_state_dict(first.state_dict())


def test_a_checkpoint_is_a_copy() -> None:
    recipe = Recipe(methods=[named(state={"seen": [1]})])
    saved = recipe.state_dict()
    recipe.methods[0].state["seen"].append(2)
    assert saved == {"one": {"seen": [1]}}


def test_an_extra_loss_divides_by_the_whole_batch() -> None:
    """Through `totals`, a term over a measure of its own adds up over micro-batches."""
    mark = torch.tensor([[1.0, 0], [1, 1], [0, 1]], dtype=F64)
    term = named(
        extra_loss=lambda b, s: aggregate(
            b.logprob, b.mask, b.measures["mark"], totals={**b.totals, "tokens": b.totals["mark"]}
        )
    )
    rows = batch(torch.ones(3, 2), logprob=torch.arange(6.0).reshape(3, 2), measures={"mark": mark})
    whole, _ = Recipe(methods=[term]).loss(rows)
    parts = [Recipe(methods=[term]).loss(part)[0] for part in rows.counted().split(3)]
    assert whole.item() == pytest.approx((0 + 2 + 3 + 5) / 4)
    assert sum(part.item() for part in parts) == pytest.approx(whole.item())


def test_every_method_loads_with_its_defaults_under_the_name_of_its_file() -> None:
    for name in names():
        method = load(name)
        assert method.name == name
        assert method.paper
        assert method.summary


@pytest.mark.parametrize(
    ("item", "reason"),
    [("no_such", "there is no method 'no_such'"), ("no.such", "cannot be imported"), ({"share": 1}, "`name`")],
)
def test_what_the_registry_refuses(item: object, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        make_recipe(methods=[item])  # type: ignore[list-item]
