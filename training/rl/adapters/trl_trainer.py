"""Run recipes in TRL: a `GRPOTrainer` whose advantages, weights and loss are those of a recipe.

    RecipeTrainer(model, reward, args, dataset, recipe={"base": "dapo", "methods": ["steer"]}, correct=1.0).train()

TRL draws, scores, shuffles, accumulates and steps; everything between a score and a loss is the recipe's. Several
data-parallel processes show each other their rows, and run the hooks of a step over all of them. Written against
TRL 1.16.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from trl import GRPOConfig, GRPOTrainer

from waver.training.rl.adapters.forward import (
    ForwardPass,
    check_attention,
    from_entropy,
    from_head,
    needs_logits,
    watching,
)
from waver.training.rl.adapters.head import add_measuring_head
from waver.training.rl.adapters.trl_arguments import (
    as_recipe,
    asks_for_old,
    check_engine,
    check_refill,
    updates_per_generation,
)
from waver.training.rl.adapters.trl_correct import Correct, Judge, make_judge
from waver.training.rl.adapters.trl_draws import drawn_by, share_of_prompts
from waver.training.rl.adapters.trl_generation import Generation, further_rows, to_learn_from
from waver.training.rl.adapters.trl_ranks import Ranks
from waver.training.rl.adapters.trl_rows import PLACE, rollouts, turns
from waver.training.rl.adapters.trl_update import Update
from waver.training.rl.batch import Batch, Rollouts
from waver.training.rl.composition import RecipeError
from waver.training.rl.method import Draw
from waver.training.rl.recipe import Recipe
from waver.training.rl.unknown import Unknown

STATE = "recipe.pt"


class RecipeTrainer(GRPOTrainer):
    """TRL's trainer with a recipe. All arguments are TRL's but the last three.

    Evaluation is TRL's own, with the recipe's coefficient of the KL term. Rows that no reward function scores are left
    out of their groups.

    Args:
        recipe: a `Recipe`, a name, or a mapping of `make_recipe`'s arguments. It remembers: a new one for each run.
        correct: which rows are right: the least reward of a right answer, with several reward functions a `Correct`
            that names one of them, or a function `[B, reward functions] -> [B] bool` of the scores.
        refill: under dynamic sampling, how often a step may draw again, from prompts chosen at random, until as many
            groups are left as it has prompts (DAPO, arXiv 2503.14476).

    Raises:
        RecipeError: the recipe cannot be, it and the other arguments do not go together, or it reads which rows are
            right and `correct` is left out.
    """

    _tag_names = ("trl", "grpo", "waver")
    beta: float

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: GRPOConfig,
        train_dataset: Any,
        *,
        recipe: Recipe | str | Mapping[str, Any] = "grpo",
        correct: Correct | float | Judge | None = None,
        refill: int = 0,
        **options: Any,
    ) -> None:
        self.recipe = as_recipe(recipe, args.max_completion_length)
        self.per_generation = updates_per_generation(args)
        check_engine(self.recipe, args, options.get("rollout_func"))
        check_refill(self.recipe, refill, train_dataset)
        self.refill = refill
        args = copy.copy(args)
        # TRL loads the frozen reference, and asks it, where its own coefficient is not 0.
        args.beta = 1.0 if self.recipe.needs_reference else 0.0
        super().__init__(model, reward_funcs, args, train_dataset, **options)
        if self.aux_loss_enabled:
            raise RecipeError("the load-balancing loss of a mixture of experts is left out: set router_aux_loss_coef=0")
        check_attention(self.model, self.recipe)
        if any(needs_logits(self.recipe, live=live) for live in (False, True)):
            add_measuring_head(getattr(self.model, "get_base_model", lambda: self.model)())
        self._judge = make_judge(correct, self.reward_func_names, self.recipe)
        self._ranks = Ranks(self.accelerator)
        self._old_is_asked_for = asks_for_old(self.args)
        self._old_is_needed = self._old_is_asked_for or not self.recipe.is_plain
        self._said: ForwardPass | None = None
        self._rows: Batch | None = None
        self._now = Update()
        self._state_what_it_costs()

    def _state_what_it_costs(self) -> None:
        """Log which methods need a pass of their own to see whole optimizer batches."""
        parts = self.args.gradient_accumulation_steps * self._ranks.count
        if self.recipe.looks_ahead and parts > 1 and self.per_generation > 1:
            get_logger(__name__).warning(
                f"{' and '.join(self.recipe.looks_ahead)} chooses by all rows of an update, of which there are {parts} "
                "parts: every update but the first of a generation runs one more forward pass over its rows"
            )

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Give TRL's own loss, which evaluation reports, the recipe's coefficient of the KL term."""
        training, settings = self.beta, self.recipe.settings
        self.beta = settings.kl if settings.kl_in == "loss" else 0.0
        try:
            yield
        finally:
            self.beta = training

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._scores: torch.Tensor = super()._calculate_rewards(*args, **kwargs)
        return self._scores

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            with self._evaluating():
                return super()._generate_and_score_completions(inputs)
        generation = Generation(self._ranks, self.num_generations)
        rows, seed = len(inputs) * self._ranks.count, self.args.seed + self.state.global_step
        for i, draw in enumerate(self.recipe.plan()):
            if draw.share == 1:
                generation.add(self._draw(draw, inputs, logged=i == 0), self._scores, i)
                continue
            chosen = share_of_prompts(draw, rows, self.num_generations, seed)
            everyones = self._ranks.all_of(inputs)
            own = [everyones[j] for j in self._ranks.mine(self._ranks.spread(chosen, self.num_generations))]
            generation.add(self._draw(draw, own, logged=i == 0), self._scores, i, real=len(chosen))
        groups = rows // self.num_generations
        self._refill(generation, groups, seed)
        everything = generation.everything(self._tokenizer.pad_token_id)
        drawn = rollouts(
            everything,
            generation.all_scores,
            self.reward_weights,
            self._judge(generation.all_scores),
            generation.group,
            generation.draw,
            self.eos_token_ids,
            self.state.global_step // self.per_generation + 1,
            max(1, self.state.max_steps // self.per_generation),
        )
        place = self._control(self._batch(drawn, everything), everything.get("importance_sampling_ratio"), groups)
        return to_learn_from(everything, place, self._ranks, self.args.steps_per_generation)

    def _refill(self, generation: Generation, groups: int, seed: int) -> None:
        """Draw rows of further prompts, until there are so many groups with a contrast or the tries are used up."""
        for again in range(self.refill):
            missing = groups - generation.mixed(self._judge)
            if missing <= 0:
                return
            total = len(self._ranks.spread(range(missing * self.num_generations), self.num_generations))
            mine = self._ranks.mine(range(total))
            own = further_rows(self.train_dataset, mine, total, self.num_generations, seed + 7919 * (again + 1))
            generation.add(self._draw(Draw(), own, logged=True), self._scores, 0)

    def _draw(self, draw: Draw, rows: list[dict[str, Any]], *, logged: bool) -> dict[str, Any]:
        """Return rows of this process, drawn and scored by TRL, with what the old policy says of them.

        Args:
            logged: whether TRL's metrics shall speak of them.
        """
        metrics, self._said = self._metrics["train"], None
        if not logged:
            self._metrics["train"] = defaultdict(list)
        with drawn_by(self, draw):
            part: dict[str, Any] = super()._generate_and_score_completions(rows)
        self._metrics["train"] = metrics
        if self._said is None and self._old_is_needed:
            self._said = self._pass_without_gradient(part)
        return part | ({} if self._said is None else self._said.as_rows())

    def _batch(self, drawn: Rollouts, everything: Mapping[str, torch.Tensor]) -> Batch:
        """Return the rows with what the old policy says of them, if the recipe has to know it before the updates."""
        zeros = torch.zeros_like(drawn.mask)
        said = ForwardPass.of_rows(everything) if self._old_is_needed else ForwardPass(zeros, zeros)
        batch = Batch.of(
            drawn,
            old_logprob=said.logprob,
            entropy=said.entropy,
            ref_logprob=everything.get("ref_per_token_logps"),
            measures=said.measures,
            step_id=turns(drawn.mask),
        )
        if self._old_is_needed:
            return batch
        unknown = Unknown.because("the policy has not been asked yet: the only update on these rows asks it")
        return replace(batch, old_logprob=unknown, logprob=unknown, entropy=unknown)

    def _control(self, batch: Batch, correction: torch.Tensor | None, groups: int) -> torch.Tensor:
        """Run the hooks of the step over all rows. Returns the place of each among those that are kept, -1 for none.

        Args:
            groups: how many of the main draw to keep at most.
        """
        self._note({name: value for name, value in self.recipe.drawn(batch).items() if name != "reward"})  # TRL has it
        scored = (~batch.reward.isnan()).nonzero().squeeze(1)
        kept = scored[self.recipe.keep(batch.select(scored))]
        main = batch.group[kept[batch.draw[kept] == 0]].unique()[:groups]
        kept = kept[torch.isin(batch.group[kept], main) | (batch.draw[kept] > 0)]
        self._note({"kept/rows": len(kept) / max(1, len(scored))})
        self._rows = None
        if len(kept):
            self._rows, metrics = self.recipe.control(self.recipe.advantages(batch.select(kept)))
            self._note(metrics)
            if correction is not None:  # vLLM drew with other rounding: see TRL
                self._rows = replace(self._rows, correction=correction[kept].expand_as(self._rows.mask))
        place = torch.full((len(batch),), -1, device=kept.device)
        place[kept] = torch.arange(len(kept), device=kept.device)
        return place

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, **options: Any
    ) -> Any:
        """Answer TRL's question for the old log-probabilities by the pass that the recipe needs, so that there is one
        pass and not two."""
        old = self._old_is_asked_for and self._said is None and model is self.model and model.training
        if not old or torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, **options
            )
        width = input_ids.size(1) - logits_to_keep
        names = ("prompt_ids", "completion_ids", "prompt_mask", "completion_mask")
        cut = (input_ids[:, :width], input_ids[:, width:], attention_mask[:, :width], attention_mask[:, width:])
        self._said = self._pass_without_gradient(dict(zip(names, cut, strict=True)))
        return self._said.logprob, None, None

    @torch.no_grad()
    def _pass_without_gradient(self, rows: dict[str, Any], *, live: bool = False) -> ForwardPass:
        """Run the policy over rows of this process, a micro-batch at a time.

        Args:
            live: for the measures of an update; else for those of the old policy.
        """
        size = self.args.per_device_train_batch_size
        starts = range(0, len(rows["completion_ids"]), size)
        cut = [{n: x[start : start + size] for n, x in rows.items() if x.ndim} for start in starts]
        return ForwardPass.below_each_other([self._forward(self.model, part, live=live) for part in cut])

    def _forward(self, model: Any, inputs: dict[str, Any], *, live: bool) -> ForwardPass:
        if "pixel_values" in inputs:
            raise RecipeError("prompts with pictures are not supported: train on text")
        with watching(self.model, inputs, self.recipe, live=live) as attention:
            if needs_logits(self.recipe, live=live):
                with self.accelerator.autocast():
                    said = from_head(model, inputs, self.recipe, temperature=self.temperature, live=live)
            else:
                logprob, entropy, _ = super()._get_per_token_logps_and_entropies(
                    model,
                    torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
                    torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
                    inputs["completion_ids"].size(1),
                    compute_entropy=True,
                )
                said = from_entropy(self.recipe, logprob, entropy, live=live)
        return replace(said, measures=said.measures | attention)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not self.model.training:
            with self._evaluating():
                return super()._compute_loss(model, inputs)
        accumulation = self.args.gradient_accumulation_steps
        at = self._step % self.args.steps_per_generation
        if at % accumulation == 0:
            self._now = self._begin_update(self._buffered_inputs[at : at + accumulation])
        counts = inputs[PLACE] >= 0
        if self._now.batch is None or not counts.any():
            some = {name: x[:1] for name, x in inputs.items() if x.ndim}
            loss = self._forward(model, some, live=True).logprob.sum() * 0
        else:
            said = self._forward(model, {name: x[counts] for name, x in inputs.items() if x.ndim}, live=True)
            batch = self._now.at(inputs[PLACE][counts])
            if not self._old_is_needed:
                batch = replace(batch, old_logprob=said.logprob.detach(), entropy=said.entropy.detach())
                self._now.add({"entropy": float((batch.entropy * batch.mask).sum()) / self._now.totals["tokens"]})
            loss, metrics = self.recipe.loss(replace(batch, logprob=said.logprob, live=said.measures))
            self._now.add(metrics)
        if at % accumulation == accumulation - 1:
            self._note(self._ranks.sums(self._now.metrics))
        return loss * self._ranks.count  # the gradients of the processes are averaged

    @torch.no_grad()
    def _begin_update(self, parts: list[dict[str, Any]]) -> Update:
        """Return the rows of an update, of all processes.

        Args:
            parts: the micro-batches of this process.
        """
        none = dict.fromkeys((*self.recipe.update_metrics, *(() if self._old_is_needed else ("entropy",))), 0.0)
        window = self._ranks.rows({PLACE: torch.cat([part[PLACE] for part in parts])})[PLACE]
        window = window[window >= 0].sort().values
        if self._rows is None or not len(window):
            return Update(none)
        batch = self._rows.select(window)
        if self.recipe.looks_ahead:
            if len(parts) * self._ranks.count == 1:  # the loss itself sees all rows
                return Update(none, window, batch)
            batch = self._as_it_is_now(batch, parts)
        return Update(none, window, self.recipe.begin_update(batch))

    def _as_it_is_now(self, batch: Batch, parts: list[dict[str, Any]]) -> Batch:
        """Return the rows of an update with what the policy as it is now says of them, without gradient."""
        each = self.args.steps_per_generation * self.num_iterations
        live = self.recipe.live_at_first(batch)
        if self._step % each < self.args.gradient_accumulation_steps and live is not None:
            return replace(batch, live=live)
        own = ForwardPass.below_each_other([self._pass_without_gradient(part, live=True) for part in parts])
        rows = self._ranks.rows({PLACE: torch.cat([part[PLACE] for part in parts]), **own.as_rows()})
        order = rows[PLACE].argsort()
        order = order[rows[PLACE][order] >= 0]
        now = ForwardPass.of_rows({name: x[order] for name, x in rows.items()})
        return replace(batch, logprob=now.logprob, live=now.measures)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not self._now.totals.get("selected"):
            # Nothing to learn from: without gradients the optimizer leaves weights and moments alone.
            self.model.zero_grad(set_to_none=True)
        return loss

    def _note(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            torch.save(self.recipe.state_dict(), folder / STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.recipe.load_state_dict(torch.load(Path(checkpoint) / STATE, weights_only=True))
