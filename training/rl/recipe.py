"""Compose a recipe of a base and methods, as the few steps that a trainer calls in order.

    plan -> (draw, score, pass without gradient) -> drawn -> keep -> advantages -> control
    for each update: begin_update, over all its rows -> for each micro-batch: loss

Hook 8, `aggregate`, is chosen by the settings `aggregation` and `denominator`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import ValidationError

from waver.entropy import shannon_entropy
from waver.training.rl.advantages import advantages
from waver.training.rl.batch import Batch, Rollouts, at_least_float32, without_padding
from waver.training.rl.composition import RecipeError, check_pairs, merge_defaults, merge_measures
from waver.training.rl.loss import aggregate, clipped, clipped_loss, importance_ratio, k3
from waver.training.rl.method import Draw, Measure, Method
from waver.training.rl.settings import BASES, Settings
from waver.training.rl.shaping import mixed_groups, overlong_penalty
from waver.training.rl.unknown import READABLE, Readable, is_known


class Recipe:
    """Base settings and methods, composed. Where several methods fill a hook, they run in the order of the list.

    Token weights multiply, extra losses add up, everything else is passed on from one to the next.

    Args:
        base: a name in `BASES`.
        methods: what to put on it; their `defaults` go over the base.
        settings: fields of `Settings`, over both.

    Raises:
        RecipeError: unknown base or setting, or methods that cannot stand together.
    """

    def __init__(self, base: str = "grpo", methods: Sequence[Method] = (), **settings: Any) -> None:
        if base not in BASES:
            raise RecipeError(f"there is no base {base!r}; there are {', '.join(BASES)}")
        self.methods = tuple(methods)
        check_pairs(self.methods)
        self.measures = merge_measures(self.methods)
        values = {**BASES[base], **merge_defaults(self.methods, set(settings)), **settings}
        try:
            self.settings = Settings(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ")
            raise RecipeError(f"{place}: {message}" if place else message) from None
        if self.settings.denominator == "selected":
            for method in self.methods:
                if method.live_weight is not None:
                    raise RecipeError(
                        f"the weights of {method.name} change with every update and cannot be counted ahead for the "
                        "denominator `selected`; use `all`"
                    )
        if self.settings.entropy and not self.wants("entropy", live=True):
            self.measures = (*self.measures, Measure("entropy", shannon_entropy, old=False, live=True))

    @cached_property
    def needs_reference(self) -> bool:
        """Return whether the trainer must give `ref_logprob`."""
        return self.settings.kl > 0 or any(method.needs_reference for method in self.methods)

    @cached_property
    def reads(self) -> frozenset[Readable]:
        """Return the fields of the rows that settings and methods read and not every trainer provides."""
        return frozenset(name for name in READABLE if self.readers(name))

    def readers(self, name: Readable) -> tuple[str, ...]:
        """Return who reads a field of the rows: settings and methods by name."""
        settings = {"correct": "dynamic_sampling", "truncated": "mask_truncated"}
        setting = settings.get(name)
        own = (setting,) if setting is not None and getattr(self.settings, setting) else ()
        return (*own, *(method.name for method in self.methods if name in method.reads))

    def wants(self, name: str, *, live: bool) -> bool:
        """Tell whether a measure of that name is to be computed in the updates (`live`) or in the pass before them."""
        return any(m.name == name and (m.live if live else m.old) for m in self.measures)

    def wanted(self, source: Literal["logits", "attention"], *, live: bool) -> tuple[Measure, ...]:
        """Return the measures of a source that are to be computed in the updates (`live`) or in the pass before
        them."""
        return tuple(m for m in self.measures if m.source == source and (m.live if live else m.old))

    @cached_property
    def is_plain(self) -> bool:
        """Return whether nothing before the updates reads what the policy says of the rows, and all rows are updated
        on."""
        s = self.settings
        in_reward = s.kl > 0 and s.kl_in == "reward"
        return not (self.methods or s.dynamic_sampling or s.mask_truncated or in_reward)

    @cached_property
    def update_metrics(self) -> tuple[str, ...]:
        """Return the names of the metrics that `loss` gives."""
        kl = ("kl",) if self.needs_reference else ()
        return ("ratio", "clip_fraction", "kept", "updated", "weight", "approx_kl", *kl)

    @cached_property
    def looks_ahead(self) -> tuple[str, ...]:
        """Return the methods that read all rows of an update before its first micro-batch, by name."""
        return tuple(method.name for method, _ in self._hooks("update_controller"))

    def measured(self, logits: torch.Tensor, *, live: bool) -> dict[str, torch.Tensor]:
        """Return the measures of `[..., vocab]` logits that this recipe wants, each `[...]`; attention is not among
        them.

        Args:
            logits: of the positions that predict response tokens, divided by the temperature.
            live: in an update, with gradient; else in the pass before the updates, without.
        """
        with torch.set_grad_enabled(live and torch.is_grad_enabled()):
            return {m.name: m.of(at_least_float32(logits)) for m in self.wanted("logits", live=live)}

    def drawn(self, batch: Batch) -> dict[str, float]:
        """Return what to log of the rows as they were drawn: of the main draw, before any are filtered or masked.

        `reward` and `accuracy` are those of the rows that were scored; `length` counts all tokens that the policy
        wrote, of rows that were cut too; `entropy` is a mean over tokens, in nats.
        """
        main = batch.select(batch.draw == 0)
        return _figures(main, main.select(~main.reward.isnan()))

    def plan(self) -> tuple[Draw, ...]:
        """Run hook 1: how the rows of the next step are drawn; the main draw first."""
        plan: tuple[Draw, ...] = (Draw(),)
        for _, hook in self._hooks("rollout_sampler"):
            plan = hook(plan)
        return plan

    def keep(self, rollouts: Rollouts) -> torch.Tensor:
        """Run hook 2: the rows worth a forward pass, `[B]` bool; each hook sees what the ones before it left."""
        keep = torch.ones(len(rollouts), dtype=torch.bool, device=rollouts.mask.device)
        if self.settings.dynamic_sampling:
            keep = mixed_groups(rollouts.correct, rollouts.group) | (rollouts.draw > 0)
        for _, hook in self._hooks("rollout_filter"):
            rows = keep.nonzero().squeeze(1)
            if not len(rows):
                break
            keep = torch.zeros_like(keep).index_fill(0, rows[hook(rollouts.select(rows))], True)
        return keep

    @torch.no_grad()
    def advantages(self, batch: Batch) -> Batch:
        """Run hook 3: rewards shaped, then turned into the base advantage. Call it once a step: methods may keep
        count."""
        s = self.settings
        reward = at_least_float32(batch.reward)
        if s.overlong_buffer is not None and s.max_length is not None:
            reward = reward + overlong_penalty(batch.lengths, s.max_length, s.overlong_buffer)
        if s.kl and s.kl_in == "reward":
            reward = reward - s.kl * (batch.old_logprob - batch.reference).masked_fill(batch.mask == 0, 0.0).sum(1)
        if s.mask_truncated:
            batch = replace(batch, mask=batch.mask * ~batch.truncated.unsqueeze(1))
        batch = replace(batch, reward=reward)
        for _, hook in self._hooks("reward"):
            batch = replace(batch, reward=hook(batch))
        replaced = [hook(batch) for _, hook in self._hooks("advantage")]
        found = (
            replaced[0]
            if replaced
            else advantages(reward=batch.reward, group=batch.group, estimator=s.advantage, eps=s.advantage_eps)
        )
        return replace(batch, advantage=_by_token(found, batch))

    @torch.no_grad()
    def shaped(self, batch: Batch) -> Batch:
        """Run hooks 4 to 6 alone: the batch with its final advantages and weights. `control` calls it."""
        for _, hook in self._hooks("step_controller"):
            batch = hook(batch)
        for _, hook in self._hooks("advantage_transform"):
            batch = replace(batch, advantage=_by_token(hook(batch), batch))
        for _, hook in self._hooks("token_weight"):
            weight = hook(batch).to(batch.weight.dtype).masked_fill(batch.mask == 0, 0.0)
            batch = replace(batch, weight=batch.weight * weight)
        return batch

    @torch.no_grad()
    def control(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """Run hooks 4 to 6, and return what to log of the step. Call it once a step: controllers move their state.

        Figures under `kept/` are those of the rows of the main draw that are left after filters and masks, with the
        reward as the settings and methods shaped it; `drawn` has those of all rows.

        An optimizer batch of the result whose `totals["selected"]` is 0 has nothing to learn from: skip its update.
        """
        main = batch.select((batch.draw == 0) & (batch.lengths > 0))
        tokens = batch.mask.sum().clamp(min=1)
        metrics = {f"kept/{name}": value for name, value in _figures(main, main).items()}
        batch = self.shaped(batch)
        metrics["selected"] = float((batch.mask * batch.weight).sum() / tokens)
        for method, hook in self._hooks("report"):
            metrics |= {f"{method.name}/{name}": value for name, value in hook(batch).items()}
        return batch, metrics

    def live_at_first(self, batch: Batch) -> dict[str, torch.Tensor] | None:
        """Return the `live` measures of the first update on these rows, of the policy that has not moved, if its pass
        before the updates has made them all."""
        known = {**batch.measures}
        known |= {m.name: batch.entropy for m in self.measures if m.name not in known and m.of is shannon_entropy}
        live = [m.name for m in self.measures if m.live]
        return {name: known[name] for name in live} if known.keys() >= set(live) else None

    @torch.no_grad()
    def begin_update(self, batch: Batch) -> Batch:
        """Run hook `update_controller` over all rows of an optimizer batch, and count them.

        With a recipe that `looks_ahead`, `logprob` and `live` must be those of the policy as it is now, over all rows;
        then micro-batches of the result choose by the whole, whatever their number.
        """
        seen = without_padding(batch)
        for _, hook in self._hooks("update_controller"):
            batch = replace(batch, measures={**batch.measures, **hook(seen, self.settings)})
        return replace(batch, begun=True).counted()

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """Run hooks 6 to 9 over one micro-batch with its `logprob` and `live`: the scalar to differentiate, and
        metrics.

        Micro-batches of an optimizer batch (`begin_update(batch).split(n)`) add up: so do their gradients and metrics.
        Rows without `totals` are taken for a whole optimizer batch.

        Raises:
            ValueError: a part of an optimizer batch, which a method has to see as a whole and has not.
        """
        s = self.settings
        if not batch.totals:
            batch = self.begin_update(batch)
        elif self.looks_ahead and not batch.begun:
            raise ValueError(f"{' and '.join(self.looks_ahead)} must see the whole optimizer batch: call begin_update")
        batch = without_padding(batch)
        weight = batch.weight
        for _, hook in self._hooks("live_weight"):
            weight = weight * hook(batch).detach().masked_fill(batch.mask == 0, 0.0)
        ratio = importance_ratio(batch.logprob, batch.old_logprob, batch.mask, s.ratio)
        replaced = [hook(batch, s) for _, hook in self._hooks("policy_loss")]
        matrix = replaced[0] if replaced else clipped_loss(ratio, batch.advantage, s.clip_low, s.clip_high, s.dual_clip)

        def mean(x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
            """Return divided as the policy term is, but by everything valid."""
            return aggregate(x, batch.mask, weight, s.aggregation, totals=batch.totals, constant=s.max_length)

        total = aggregate(
            matrix,
            batch.mask,
            weight if batch.correction is None else weight * batch.correction,
            s.aggregation,
            s.denominator,
            counted=batch.weight,
            totals=batch.totals,
            constant=s.max_length,
        )
        if s.kl and s.kl_in == "loss":
            # Auxiliary rows are drawn from another distribution on purpose: no leash on them.
            main = (batch.draw == 0).to(matrix.dtype).unsqueeze(1).expand_as(matrix)
            total = total + s.kl * mean(k3(batch.logprob, batch.reference, batch.mask), main)
        if s.entropy:
            total = total - s.entropy * mean(batch.live["entropy"])
        for _, hook in self._hooks("extra_loss"):
            total = total + hook(batch, s)
        return total, self._metrics(batch, ratio.detach(), weight)

    def _metrics(self, batch: Batch, ratio: torch.Tensor, weight: torch.Tensor) -> dict[str, float]:
        """Return means over the valid tokens of the optimizer batch. `weight` is what the denominator `selected` takes
        out."""
        s, m = self.settings, batch.mask
        tokens = batch.totals["tokens"] or 1.0
        outside = clipped(ratio, batch.advantage, s.clip_low, s.clip_high)
        metrics = {
            "ratio": float((ratio * m).sum()) / tokens,
            "clip_fraction": float((outside * m).sum()) / tokens,
            "kept": float((m * (weight > 0)).sum()) / tokens,
            "updated": float((m * (weight > 0) * (batch.advantage != 0)).sum()) / tokens,
            "weight": float((weight * m).sum()) / tokens,
            "approx_kl": float(k3(batch.old_logprob, batch.logprob.detach(), m).sum()) / tokens,
        }
        if batch.ref_logprob is not None:
            metrics["kl"] = float((k3(batch.logprob.detach(), batch.ref_logprob, m)).sum()) / tokens
        return metrics

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the state of the methods by name: plain data and tensors for a checkpoint."""
        return {method.name: deepcopy(method.state) for method in self.methods}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up where `state_dict` was called.

        Raises:
            RecipeError: the state is that of other methods.
        """
        names = [method.name for method in self.methods]
        if sorted(state) != sorted(names):
            raise RecipeError(
                f"the checkpoint was made with {', '.join(sorted(state)) or 'no method'}, "
                f"this recipe has {', '.join(sorted(names)) or 'none'}"
            )
        for method in self.methods:
            method.state.clear()
            method.state.update(deepcopy(dict(state[method.name])))

    def _hooks(self, name: str) -> Iterator[tuple[Method, Any]]:
        for method in self.methods:
            if (hook := getattr(method, name)) is not None:
                yield method, hook


def _figures(rows: Batch, scored: Batch) -> dict[str, float]:
    """Return mean reward and accuracy of the rows that are scored, length and entropy of all, as far as they are
    known."""
    if not len(rows):
        return {}
    found = {"length": float(rows.lengths.mean())}
    if len(scored):
        found["reward"] = float(scored.reward.mean())
        if is_known(scored.correct):
            found["accuracy"] = float(scored.correct.to(scored.reward.dtype).mean())
    if is_known(rows.entropy):
        found["entropy"] = float((rows.entropy * rows.mask).sum() / rows.mask.sum().clamp(min=1))
    return found


def _by_token(advantage: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return `[B]` or `[B, T]` to `[B, T]` with 0 on padding, where a method's arithmetic may have left anything."""
    rows = advantage.unsqueeze(1) if advantage.ndim == 1 else advantage
    return rows.to(batch.mask.dtype).expand_as(batch.mask).masked_fill(batch.mask == 0, 0.0)
