"""AEPO (arXiv 2510.08141, later SCOPE-RL): a thermostat that holds the policy's entropy at a number of one's choice.

A few more rows are drawn from the same policy at another temperature T, and the right ones among them are pushed up.
Their log-probabilities are those at temperature 1, and nothing corrects for the mismatch: where everything is right,
the gradient in the logits is pi_T - pi, flatter for T > 1 and sharper for T < 1. Only right answers are ever rewarded,
so entropy is not bought with reward. With H the mean entropy of the main rows and H0 the target:

    T = hot if H <= H0 else cold                                    `switch`
    T = clip(1 + H0 - H, cold, hot)                                 `proportional` (SCOPE); leaves an offset
    loss = mean(main tokens) + alpha mean_i 1[R_i = 1] mean_t -min(r, clip(r))      i over all auxiliary rows drawn

By weights of rows, with N tokens in all: N / N_main on main rows, alpha N / (drawn |o_i|) on a right auxiliary one and
advantage 1. This is the loss above for the token mean over `all`, and close to it for the other ways to average.

Use it where entropy drifts, up or down, and the right level is known or worth trying; the best one moves with model and
task (0.25 to 0.75 in the papers). alpha must beat the drift of the base. Cost: `share` more rows to draw, and a forward
and backward pass for those that are right.

H is the exact entropy under the old policy, of main rows only; the released code takes the negative log-probability of
sampled tokens, auxiliary ones included, which misleads the thermostat. The rows of a step are drawn before their pass,
so T follows the H of the step before, as it does there; the first step draws no auxiliary rows. Under
`dynamic_sampling` H is that of the groups that were kept (logged as `kept/entropy`), not that of all rows (`entropy`).
`replace_rows` is the release's batch: right rows of mixed groups, up to `most` and half as many when cooling, take the
place of as many main rows, all with weight 1. Its variant without rollouts (DCPO) is left out. Cooling works through
answers that are likely already: where only unlikely ones are right, no temperature lowers the entropy. Two others are
called AEPO: the optimizer of ARES, and arXiv 2510.14545.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

from waver.training.rl import Batch, Draw, Method, Rollouts, Strict


class Parameters(Strict):
    target: float | None = Field(None, gt=0)
    """H0 in nats a token; `fraction` of the first step's entropy if left out. The release has 0.5."""
    fraction: float = Field(0.8, gt=0)
    mode: Literal["switch", "proportional"] = "switch"
    cold: float = Field(0.8, gt=0, lt=1)
    hot: float = Field(1.2, gt=1)
    """Relative to the trainer's temperature."""
    alpha: float = Field(1 / 64, gt=0)
    """Of the auxiliary term; 0.5 holds the toys."""
    share: float = Field(0.25, gt=0, le=1)
    """Of the prompts, drawn once more."""
    replace_rows: bool = False
    most: int = Field(60, ge=1)
    """Auxiliary rows that replace main ones."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.replace_rows and self.mode != "switch":
            raise ValueError("replace_rows is the release's batch, which has the switch only")
        return self


def temperature(entropy: float, target: float, p: Parameters) -> float:
    """Return T of the next auxiliary draw."""
    if p.mode == "switch":
        return p.hot if entropy <= target else p.cold
    return min(max(1 + target - entropy, p.cold), p.hot)


def weights(mask: torch.Tensor, auxiliary: torch.Tensor, drawn: int, alpha: float) -> torch.Tensor:
    """Return `[B, T]` token weights that make the token mean over all rows mean(main) + alpha * mean(auxiliary).

    Args:
        auxiliary: `[B]` bool, the right ones. drawn: how many there were, wrong ones included.
    """
    lengths = mask.sum(1)
    tokens, main = lengths.sum(), lengths[~auxiliary].sum()
    of_aux = alpha * tokens / (max(drawn, 1) * lengths.clamp(min=1))
    of_main = tokens / main.clamp(min=1)
    return torch.where(auxiliary, of_aux, of_main).unsqueeze(1).expand_as(mask)


def taken(kept: int, cooling: bool, most: int) -> int:
    """Return how many auxiliary rows replace main ones."""
    rows = min(most, kept)
    return rows // 2 if cooling else rows


def method(p: Parameters) -> Method:
    state: dict[str, Any] = {} if p.target is None else {"target": p.target}

    def sample(plan: tuple[Draw, ...]) -> tuple[Draw, ...]:
        if "entropy" not in state:
            state["draw"] = 0
            return plan
        state["temperature"] = temperature(state["entropy"], state["target"], p)
        state["draw"] = len(plan)
        return (*plan, Draw(share=p.share, temperature=state["temperature"]))

    def mine(rows: Rollouts) -> torch.Tensor:
        """Return `[B]` bool; other methods may draw rows of their own."""
        return (rows.draw == state.get("draw", 0)) & (rows.draw > 0)

    def right_ones(rows: Rollouts) -> torch.Tensor:
        state["drawn"] = int(mine(rows).sum())
        return ~mine(rows) | rows.correct | p.replace_rows

    def follow(batch: Batch) -> Batch:
        main = batch.mask * (batch.draw == 0).unsqueeze(1)
        if main.sum() > 0:
            state["entropy"] = float((batch.entropy * main).sum() / main.sum())
            state.setdefault("target", p.fraction * state["entropy"])
        return swap(batch) if p.replace_rows and mine(batch).any() else batch

    def swap(batch: Batch) -> Batch:
        ours = mine(batch)
        of_row = (batch.advantage * batch.mask).sum(1) / batch.lengths.clamp(min=1)
        good = (ours & (of_row > 0.05)).nonzero().squeeze(1)
        rows = taken(len(good), state["temperature"] < 1, p.most)
        out = ours.index_fill(0, good[:rows], False)
        out[(batch.draw == 0).nonzero().squeeze(1)[:rows]] = True
        return replace(batch, mask=batch.mask * ~out.unsqueeze(1))

    def push_up(batch: Batch) -> torch.Tensor:
        return torch.where(mine(batch).unsqueeze(1), 1.0, batch.advantage)

    def weigh(batch: Batch) -> torch.Tensor:
        if p.replace_rows:
            return torch.ones_like(batch.mask)
        return weights(batch.mask, mine(batch), state.get("drawn", 0), p.alpha)

    def report(batch: Batch) -> dict[str, float]:
        rows = float((mine(batch) & (batch.lengths > 0)).sum())
        known = {name: state[name] for name in ("entropy", "target", "temperature") if name in state}
        return known | {"auxiliary_rows": rows}

    return Method(
        name="aepo",
        paper="arXiv 2510.08141",
        summary="holds entropy at a target by reinforcing right answers drawn hotter or colder",
        reads=frozenset({"correct", "entropy"}),
        rollout_sampler=sample,
        rollout_filter=right_ones,
        step_controller=follow,
        advantage_transform=push_up,
        token_weight=weigh,
        report=report,
        state=state,
    )
