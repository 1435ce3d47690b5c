"""Distil an expert into a student on the student's own answers, in TRL: DistIL (arXiv 2606.05152).

TRL draws, scores, shuffles, accumulates and steps. The loss is that of `credit.surrogate`: the divergence to the expert
at each token of an answer, and the future disagreement that the token is charged with. It is found when the rows are
drawn, as an advantage is, and stays for all updates on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from waver.entropy import shannon_entropy
from waver.training.distil.average import Averaged
from waver.training.distil.credit import centred, future, surrogate
from waver.training.distil.divergence import Expert, cost, student_of
from waver.training.distil.experts import Source, Told
from waver.training.distil.feedback import hints, with_hint
from waver.training.distil.options import Distil
from waver.training.rl.adapters.head import CHUNK, in_chunks, logit_scaling
from waver.training.rl.adapters.trl_rows import response_mask
from waver.training.rl.batch import at_least_float32
from waver.training.rl.loss import aggregate

TEACHER = "teacher.pt"
Feedback = Callable[..., Sequence[str | None]]
Rows = Mapping[str, torch.Tensor]


class DistilTrainer(GRPOTrainer):
    """TRL's trainer with an expert in place of advantages. All arguments are TRL's but the last three.

    Args:
        distil: the loss. source: the expert; None is the model itself, told more. told: what the environment says of
            answers, called as a reward function; the column `feedback` if left out.
    """

    _tag_names = ("trl", "distil", "waver")

    def __init__(
        self, *args: Any, distil: Distil, source: Source | None = None, told: Feedback | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        if self.accelerator.num_processes > 1:
            raise ValueError("distillation runs in one process: start it without torchrun")
        self.distil, self.source, self.told = distil, source, told
        self.teacher = None if source is not None else Averaged(self.model, distil.ema)
        self.add_callback(_Follow(self))

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        scores: torch.Tensor = super()._calculate_rewards(*args, **kwargs)
        self._scores = scores
        return scores

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        part: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return part
        mask = response_mask(part).float()
        told = self._ask(inputs, part, mask)
        names = {"learn": mask * told.weight.gt(0), "weight": told.weight}
        rows = {**part, **names, "expert_ids": told.expert.ids, "expert_logq": told.expert.logq}
        with torch.no_grad():
            now = self._in_parts(rows, lambda some: self._costs(self.model, some, told.expert.complete))
        rows["old_logprob"], rows["credit"] = now["logprob"], self._credit(now, rows, told.expert)
        self._log(now, rows, told.expert)
        wanted = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "num_items_in_batch")
        own = ("learn", "weight", "expert_ids", "expert_logq", "old_logprob", "credit")
        complete = torch.full((len(mask),), told.expert.complete, device=mask.device)
        return {name: rows[name] for name in (*wanted, *own)} | {"complete": complete}

    def _credit(self, now: Rows, rows: Rows, expert: Expert) -> torch.Tensor:
        """Return what each token is charged with for later ones, `[B, T]`."""
        costs = now["cost"] * rows["weight"]
        if self.distil.future_cost == "kl" and self.distil.divergence == "forward":
            costs = costs - expert.entropy() * rows["weight"]
        credit = future(costs, rows["learn"])
        if not self.distil.baseline:
            return credit
        group = torch.arange(len(credit), device=credit.device) // self.num_generations
        return centred(credit, rows["learn"], group)

    def _log(self, now: Rows, rows: Rows, expert: Expert) -> None:
        mask = rows["learn"]
        tokens = mask.sum().clamp(min=1)
        figures = {
            "cost": now["cost"],
            "expert_entropy": expert.entropy(),
            "tail": expert.tail(),
            "entropy": now["entropy"],
        }
        noted = {name: float((x * mask).sum() / tokens) for name, x in figures.items()}
        noted["expert_entropy_most"] = float((expert.most_entropy(self._vocabulary) * mask).sum() / tokens)
        noted["usable"] = float((mask.sum(1) > 0).float().mean())
        noted["entropy_of_all"] = noted.pop("entropy")
        for name, value in noted.items():
            self._metrics["train"][f"distil/{name}"].append(value)
        written = rows["completion_mask"].float()
        self._metrics["train"]["entropy"].append(float((now["entropy"] * written).sum() / written.sum().clamp(min=1)))
        self._metrics["train"]["length"].append(float(written.sum(1).mean()))

    @property
    def _vocabulary(self) -> int:
        size: int = self.model.config.get_text_config().vocab_size
        return size

    def _ask(self, inputs: list[dict[str, Any]], part: dict[str, Any], mask: torch.Tensor) -> Told:
        """Return what the expert says of the rows."""
        if self.source is None:
            return self._teach(inputs, part, mask)
        prompts = _unpadded(part["prompt_ids"], part["prompt_mask"])
        answers = _unpadded(part["completion_ids"], part["completion_mask"])
        told = self.source.tell(prompts, answers, mask.size(1), self.state.global_step)
        expert = Expert(told.expert.ids.to(mask.device), told.expert.logq.to(mask.device), told.expert.complete)
        return Told(expert, told.weight.to(mask.device) * mask)

    def _teach(self, inputs: list[dict[str, Any]], part: dict[str, Any], mask: torch.Tensor) -> Told:
        """Return what the model says of the rows when it is told how the attempts went."""
        assert self.teacher is not None
        answers = self.processing_class.batch_decode(part["completion_ids"], skip_special_tokens=True)
        rewards = (self._scores * self.reward_weights.to(self._scores)).nansum(1).tolist()
        group = [place // self.num_generations for place in range(len(inputs))]
        d = self.distil
        found = hints(answers, rewards, group, self._feedback(inputs, answers), d.success, d.both)
        usable = torch.tensor([hint is not None for hint in found], device=mask.device)
        asked = [with_hint(row["prompt"], self._cut(hint or "")) for row, hint in zip(inputs, found, strict=True)]
        ids, seen = self._padded(self._tokenize_prompts(asked)[0], mask.device)
        with torch.no_grad():
            own = self._in_parts(part, lambda some: self._top(some, None)) if d.top_k else {}
            rows = {**part, "prompt_ids": ids, "prompt_mask": seen, **own}
            with self.teacher.installed():
                top = self._in_parts(rows, lambda some: self._top(some, some.get("ids")))
        return Told(Expert(top["ids"], top["logq"], complete=not d.top_k), mask * usable.unsqueeze(1))

    def _feedback(self, inputs: list[dict[str, Any]], answers: Sequence[str]) -> list[str | None]:
        if self.told is None:
            return [row.get("feedback") for row in inputs]
        columns = {name: [row[name] for row in inputs] for name in inputs[0] if name != "prompt"}
        return list(self.told(prompts=[row["prompt"] for row in inputs], completions=list(answers), **columns))

    def _cut(self, hint: str) -> str:
        ids = self.processing_class(text=hint, add_special_tokens=False)["input_ids"]
        if len(ids) <= self.distil.hint_tokens:
            return hint
        cut: str = self.processing_class.decode(ids[: self.distil.hint_tokens])
        return cut

    def _padded(self, prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self._tokenizer.pad_token_id, dtype=torch.long)
        seen = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            seen[row, width - len(prompt) :] = 1
        return ids.to(device), seen.to(device)

    def _in_parts(self, rows: Mapping[str, Any], look: Callable[[Rows], dict[str, torch.Tensor]]) -> dict[str, Any]:
        """Look at rows a micro-batch at a time."""
        size = self.args.per_device_train_batch_size
        tensors = {name: x for name, x in rows.items() if isinstance(x, torch.Tensor) and x.ndim}
        starts = range(0, len(tensors["completion_ids"]), size)
        found = [look({name: x[start : start + size] for name, x in tensors.items()}) for start in starts]
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}

    def _look(
        self, model: Any, rows: Rows, score: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """Return what `score` makes of the logits of every written token and its place, a few tokens at a time; 0 on
        padding."""
        inner = self.accelerator.unwrap_model(model)
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        width = rows["completion_ids"].size(1)
        scaled, head = logit_scaling(inner.config.get_text_config()), inner.get_output_embeddings()
        with self.accelerator.autocast():
            hidden = inner.base_model(
                input_ids=torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1),
                attention_mask=torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1),
                use_cache=False,
            ).last_hidden_state[:, -width - 1 : -1]

            def at(hidden: torch.Tensor, places: torch.Tensor) -> dict[str, torch.Tensor]:
                return score(at_least_float32(scaled(head(hidden))) / self.temperature, places)

            valid = rows["completion_mask"] > 0
            places = torch.arange(int(valid.sum()), device=valid.device)
            found = in_chunks(at, hidden[valid], places, max(1, CHUNK // self._vocabulary))
        whole = {}
        for name, x in found.items():
            whole[name] = x.new_zeros(*valid.shape, *x.shape[1:])
            whole[name][valid] = x
        return whole

    def _costs(self, model: Any, rows: Rows, complete: bool) -> dict[str, torch.Tensor]:
        """Return `cost`, `logprob` and `entropy` of the student, `[B, T]`."""
        valid = rows["completion_mask"] > 0
        drawn, ids, logq = (rows[name][valid] for name in ("completion_ids", "expert_ids", "expert_logq"))

        def score(logits: torch.Tensor, places: torch.Tensor) -> dict[str, torch.Tensor]:
            expert = Expert(ids[places], logq[places], complete)
            logprob = logits.gather(-1, drawn[places].unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
            found = cost(student_of(logits, expert), expert, self.distil.divergence, self.distil.js_weight)  # type: ignore[arg-type]
            return {"cost": found, "logprob": logprob, "entropy": shannon_entropy(logits.detach())}

        return self._look(model, rows, score)

    def _top(self, rows: Rows, also: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Return the most likely tokens at each position, and those of `also`; all of them where `top_k` is 0.

        Tokens that come twice have the log-probability -inf at their second place.
        """
        valid = rows["completion_mask"] > 0
        others = None if also is None else also[valid]

        def score(logits: torch.Tensor, places: torch.Tensor) -> dict[str, torch.Tensor]:
            logp = logits.log_softmax(-1)
            if not self.distil.top_k:
                return {"ids": torch.arange(logits.size(-1), device=logits.device).expand(logits.shape), "logq": logp}
            best = logp.topk(min(self.distil.top_k, logp.size(-1)))
            if others is None:
                return {"ids": best.indices, "logq": best.values}
            more = others[places]
            again = (more.unsqueeze(-1) == best.indices.unsqueeze(-2)).any(-1)
            logq = torch.cat([best.values, logp.gather(-1, more).masked_fill(again, -torch.inf)], -1)
            return {"ids": torch.cat([best.indices, more], -1), "logq": logq}

        found = self._look(self.model, rows, score)
        found["logq"][~valid] = -torch.inf  # padding: a distribution like any other, of weight 0
        found["logq"][~valid, ..., :1] = 0.0
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not self.model.training:
            held_out: torch.Tensor = super()._compute_loss(model, inputs)
            return held_out
        complete = bool(inputs["complete"].all())
        now = self._costs(model, inputs, complete)
        d = self.distil
        matrix = surrogate(
            now["cost"] * inputs["weight"],
            now["logprob"],
            inputs["old_logprob"],
            inputs["credit"],
            d.future,
            d.truncation,
        )
        self._totals = self._count()
        return aggregate(matrix, inputs["learn"], mode=d.aggregation, totals=self._totals)  # type: ignore[arg-type]

    def _count(self) -> dict[str, float]:
        """Return the tokens and rows of the optimizer batch at hand."""
        parts, at = self.args.gradient_accumulation_steps, self._step % self.args.steps_per_generation
        learn = torch.cat([part["learn"] for part in self._buffered_inputs[at - at % parts :][:parts]])
        return {"tokens": float(learn.sum()), "rows": float((learn.sum(1) > 0).sum())}

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not self._totals["tokens"]:  # nothing to learn from: leave weights and moments alone
            self.model.zero_grad(set_to_none=True)
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save and self.teacher is not None:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            torch.save(self.teacher.weights, folder / TEACHER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.teacher is not None:
            self.teacher.load(torch.load(Path(checkpoint) / TEACHER, weights_only=True))


class _Follow(TrainerCallback):
    """Moves the teacher after each update."""

    def __init__(self, trainer: DistilTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.teacher is not None:
            self.trainer.teacher.follow()


def _unpadded(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[kept > 0].tolist() for row, kept in zip(ids, mask, strict=True)]
