"""Run recipes in TRL: a `GRPOTrainer` whose advantages, weights and loss are those of a recipe.

    RecipeTrainer(model, reward, args, dataset, recipe={"base": "dapo", "methods": ["steer"]}, correct=1.0).train()

TRL draws, scores, shuffles, accumulates and steps; everything between a score and a loss is the recipe's. Written
against TRL 1.16.
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
from trl import GRPOConfig, GRPOTrainer

from waver.training.rl.adapters.forward import ForwardPass, check_attention, forward, from_entropy, needs_logits
from waver.training.rl.adapters.trl_arguments import as_recipe, check_engine, updates_per_generation
from waver.training.rl.adapters.trl_correct import Correct, Judge, make_judge
from waver.training.rl.adapters.trl_draws import drawn_by
from waver.training.rl.adapters.trl_rows import rollouts, stack, turns
from waver.training.rl.batch import Batch
from waver.training.rl.composition import RecipeError
from waver.training.rl.recipe import Recipe

STATE = "recipe.pt"


class RecipeTrainer(GRPOTrainer):
    """TRL's trainer with a recipe. All arguments are TRL's but the last two.

    Evaluation is TRL's own, with the recipe's coefficient of the KL term. Rows that no reward function scores are left
    out of their groups. Groups that are filtered out are not drawn anew.

    Args:
        recipe: a `Recipe`, a name, or a mapping of `make_recipe`'s arguments. It remembers: a new one for each run.
        correct: which rows are right: the least reward of a right answer, with several reward functions a `Correct`
            that names one of them, or a function `[B, reward functions] -> [B] bool` of the scores.

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
        **options: Any,
    ) -> None:
        self.recipe = as_recipe(recipe, args.max_completion_length)
        self.per_generation = updates_per_generation(args)
        check_engine(self.recipe, args, options.get("rollout_func"))
        args = copy.copy(args)
        # TRL loads the frozen reference, and asks it, where its own coefficient is not 0.
        args.beta = 1.0 if self.recipe.needs_reference else 0.0
        super().__init__(model, reward_funcs, args, train_dataset, **options)
        if self.accelerator.num_processes > 1:
            raise RecipeError("a recipe reads all rows of a step at once: train in one process, or with verl")
        if self.aux_loss_enabled:
            raise RecipeError("the load-balancing loss of a mixture of experts is left out: set router_aux_loss_coef=0")
        check_attention(self.model, self.recipe)
        self._judge = make_judge(correct, self.reward_func_names, self.recipe)
        self._rows: Batch | None = None
        self._totals: dict[str, float] = {}
        self._update: dict[str, float] = {}

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
        parts, scores, groups, draws = [], [], [], []
        for i, draw in enumerate(self.recipe.plan()):
            chosen = self._share(inputs, draw.share)
            metrics = self._metrics["train"]
            with drawn_by(self, draw):
                if i > 0:  # what is logged speaks of the main draw
                    self._metrics["train"] = defaultdict(list)
                parts.append(super()._generate_and_score_completions([inputs[j] for j in chosen]))
                self._metrics["train"] = metrics
            scores.append(self._scores)
            groups.append(torch.tensor(chosen) // self.num_generations + i * len(inputs))
            draws.append(torch.full((len(chosen),), i))
        generated = stack(parts, self._tokenizer.pad_token_id)
        rows = rollouts(
            generated,
            (all_scores := torch.cat(scores)),
            self.reward_weights,
            self._judge(all_scores),
            torch.cat(groups).to(self.accelerator.device),
            torch.cat(draws).to(self.accelerator.device),
            self.eos_token_ids,
            self.state.global_step // self.per_generation + 1,
            max(1, self.state.max_steps // self.per_generation),
        )
        said = self._old_policy_pass(generated)
        batch = Batch.of(
            rows,
            old_logprob=said.logprob,
            entropy=said.entropy,
            ref_logprob=generated.get("ref_per_token_logps"),
            measures=said.measures,
            step_id=turns(rows.mask),
        )
        kept = (~batch.reward.isnan()).nonzero().squeeze(1)
        kept = kept[self.recipe.keep(batch.select(kept))]
        place = torch.full((len(batch),), -1, device=kept.device)
        place[kept] = torch.arange(len(kept), device=kept.device)
        self._rows = self._step_of(batch, kept, generated)
        return self._even({**generated, "place": place})

    def _step_of(self, batch: Batch, kept: torch.Tensor, generated: dict[str, Any]) -> Batch | None:
        """Return the rows that are kept, after the hooks of the step."""
        self._note({"kept_rows": len(kept) / len(batch)})
        if not len(kept):
            return None
        rows, metrics = self.recipe.control(self.recipe.advantages(batch.select(kept)))
        self._note({name: value for name, value in metrics.items() if name != "reward"})  # TRL logs that one
        if "importance_sampling_ratio" in generated:  # vLLM drew with other rounding: see TRL
            rows = replace(rows, correction=generated["importance_sampling_ratio"][kept].expand_as(rows.mask))
        return rows

    def _share(self, inputs: list[dict[str, Any]], share: float) -> list[int]:
        """Return the rows of a share of the prompts, in order."""
        size = self.num_generations
        prompts = len(inputs) // size
        if share == 1:
            return list(range(len(inputs)))
        chosen = sorted(torch.randperm(prompts)[: max(1, round(share * prompts))].tolist())
        return [prompt * size + row for prompt in chosen for row in range(size)]

    def _even(self, generated: dict[str, Any]) -> dict[str, Any]:
        """Return filled up with rows that count for nothing, until TRL can cut it into equal parts."""
        rows = len(generated["place"])
        missing = -rows % self.args.steps_per_generation
        if not missing:
            return generated
        again = torch.arange(rows + missing, device=generated["place"].device) % rows
        even = {name: x[again] if x.ndim else x for name, x in generated.items()}
        even["place"][rows:] = -1
        return even

    @torch.no_grad()
    def _old_policy_pass(self, generated: dict[str, Any]) -> ForwardPass:
        """Run the old policy over all rows, without gradient."""
        size = self.args.per_device_train_batch_size
        parts = []
        for start in range(0, len(generated["completion_ids"]), size):
            rows = slice(start, start + size)
            parts.append(self._forward(self.model, {n: x[rows] for n, x in generated.items() if x.ndim}, live=False))
        names = parts[0].measures
        return ForwardPass(
            torch.cat([part.logprob for part in parts]),
            torch.cat([part.entropy for part in parts]),
            {name: torch.cat([part.measures[name] for part in parts]) for name in names},
        )

    def _forward(self, model: Any, inputs: dict[str, Any], *, live: bool) -> ForwardPass:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        width = inputs["completion_ids"].size(1)
        if "pixel_values" in inputs:
            raise RecipeError("prompts with pictures are not supported: train on text")
        if needs_logits(self.recipe):
            with self.accelerator.autocast():
                return forward(model, ids, mask, width, self.recipe, temperature=self.temperature, live=live)
        logprob, entropy, _ = self._get_per_token_logps_and_entropies(model, ids, mask, width, compute_entropy=True)
        return from_entropy(self.recipe, logprob, entropy, live=live)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not self.model.training:
            with self._evaluating():
                return super()._compute_loss(model, inputs)
        accumulation = self.args.gradient_accumulation_steps
        at = self._step % self.args.steps_per_generation
        if at % accumulation == 0:
            window = torch.cat([part["place"] for part in self._buffered_inputs[at : at + accumulation]])
            window = window[window >= 0]
            self._totals = dict(self._rows.select(window).counted().totals) if self._rows and len(window) else {}
            self._update = defaultdict(float)
        counts = inputs["place"] >= 0
        if self._rows is None or not counts.any():
            some = {name: x[:1] for name, x in inputs.items() if x.ndim}
            return self._forward(model, some, live=True).logprob.sum() * 0
        said = self._forward(model, {name: x[counts] for name, x in inputs.items() if x.ndim}, live=True)
        batch = self._rows.select(inputs["place"][counts])
        loss, metrics = self.recipe.loss(replace(batch, logprob=said.logprob, live=said.measures, totals=self._totals))
        for name, value in metrics.items():
            self._update[name] += value
        if at % accumulation == accumulation - 1:
            self._note(self._update)
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not self._totals.get("selected"):
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
