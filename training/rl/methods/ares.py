"""ARES (arXiv 2510.08457): less deliberation on easy prompts and more on hard ones, by a reward on windows of entropy.

One unsure token is a noisy sign; the mean entropy over w = 4 tokens marks where a model really decides. The count N of
such windows in a response is its effort, and each prompt is easy, medium or hard by the share of its own rows that are
right (at least 2/3, at least 1/3, less):

    window_t = mean(H_{t+1} .. H_{t+w});  N = number of t with window_t >= theta
    theta    = EMA, over steps, of the batch's median of each row's 95 % quantile of window_t
    excess   = N - tgt of the bucket;  margin = max(1, f max(tgt, 1));  cap = alpha of the bucket (1.2 alpha if hard)
    R        = reward + term(excess): see `shaping`; right answers lose what is in excess (easy), off on either side
               (medium) or missing (hard), hard ones gain by effort, and wrong ones gain a little by effort everywhere
    alpha   += 0.05 (mean N - tgt) for easy and medium, 0.05 (tgt - mean N) for hard, within [0, 2]
    loss    += mean of beta kappa rho^m kl,  m = 1 inside windows;  kappa *= 1 + a min(KL outside / delta - 1, 1)

Use it on DAPO for reasoning whose length should follow difficulty. Cost: a pass of the reference model, unless `beta`
is 0. N grows with length; where lengths are capped, `per_thousand` counts per 1000 tokens.

The reward is the released code's, which the paper's examples follow; `form="paper"` is the main text's, right rows
untouched, wrong ones losing lambda g(excess). Written with tgt = mean its lambda is always 0, so tgt lags, and the
unbounded penalty is cut at 0.5 (ours). So is tgt = EMA of the bucket's mean (ours): with the code's rounded mean
(`target="mean"`) alpha only drifts by rounding. As released, rewards come before buckets are known, and every response
is scored as easy; here buckets come first. Exact entropies replace those of ten log-probabilities. theta follows the
code: the paper's quantile of tokens is hardly ever reached by a mean of four. How the last w windows of a row are
filled up for its quantile is read as the mean entropy up to there. With `triggers` a window counts only after a sampled
token that is one of these words (the code looks at the likeliest token, and has a list of 174). The branching of
rollouts, the token bonus of its algorithm 1 (undefined symbols) and the choice of data before RL are left out; rho, a,
delta, the split of beta, the bounds of kappa and of its step were not found and are ours. Its optimizer is called AEPO
too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

from waver.training.rl import Batch, Method, Settings, Strict
from waver.training.rl.advantages import group_mean
from waver.training.rl.loss import aggregate, k3

EASY, MEDIUM, HARD = range(3)
FORMS = ((0.15, 2.0, 2.0), (0.25, 3.0, 2.5), (0.35, 4.0, 3.0))
"""For each bucket: margin as a share of the target, where the penalty turns linear, width of the sigmoid."""
KL_WEIGHT = "ares_kl_weight"


class Parameters(Strict):
    window: int = Field(4, ge=1)
    """w; 4 to 8 are best, 1 is noise."""
    quantile: float = Field(0.95, gt=0, lt=1)
    threshold_decay: float = Field(0.99, ge=0, lt=1)
    form: Literal["code", "paper"] = "code"
    target: Literal["ema", "mean"] = "ema"
    """The bucket's mean over the steps before, or the rounded one of this step."""
    target_decay: float = Field(0.9, ge=0, lt=1)
    alpha: float = Field(0.5, ge=0, le=2)
    """Initial weight of each bucket."""
    alpha_rate: float = Field(0.05, ge=0)
    per_thousand: bool = False
    triggers: tuple[str, ...] = ()
    """Words that a window has to come after in order to count, such as but, however, therefore, wait; any if empty."""
    tokenizer: str | None = None
    """Name or folder of the tokenizer that makes them into tokens."""
    beta: float = Field(0.01, ge=0)
    """Of the KL term; 0 takes it away, and the reference with it."""
    rho: float = Field(0.5, gt=0, le=1)
    """Factor on it inside windows."""
    kl_target: float = Field(0.01, gt=0)
    """delta."""
    kl_rate: float = Field(0.1, ge=0)
    """a."""

    @model_validator(mode="after")
    def _words_are_tokens(self) -> Self:
        if bool(self.triggers) != bool(self.tokenizer):
            raise ValueError("triggers are words of a tokenizer: give both, or neither")
        return self


def trigger_tokens(words: Sequence[str], tokenizer: str) -> torch.Tensor:
    """Return the tokens that are one of these words, whatever its case and the space before it."""
    from transformers import AutoTokenizer

    wanted, known = {word.lower() for word in words}, AutoTokenizer.from_pretrained(tokenizer)
    return torch.tensor([i for i in range(len(known)) if str(known.decode([i])).strip().lower() in wanted])


def windows(entropy: torch.Tensor, mask: torch.Tensor, w: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean entropy of the w valid tokens after each, and where there are so many: `[B, T]` float64 and bool.

    The tokens of a row may have gaps between them, such as the text of a tool.
    """
    valid = mask > 0
    order = (~valid).long().argsort(stable=True, dim=1)
    packed = entropy.double().masked_fill(~valid, 0.0).gather(1, order)
    total = torch.nn.functional.pad(packed.cumsum(1), (1, w))
    place = torch.arange(entropy.shape[1], device=entropy.device)
    means = (total[:, place + w + 1] - total[:, place + 1]) / w
    full = place + w < valid.sum(1, keepdim=True)
    unpacked = order.argsort(1)
    return means.masked_fill(~full, 0.0).gather(1, unpacked), full.gather(1, unpacked) & valid


def thresholds(entropy: torch.Tensor, mask: torch.Tensor, w: int, quantile: float) -> torch.Tensor:
    """Return theta_i: `[rows with tokens]`, the quantile of a row's window means, filled up with the mean entropy so
    far."""
    means, full = windows(entropy, mask, w)
    valid = mask > 0
    so_far = entropy.double().masked_fill(~valid, 0.0).cumsum(1) / valid.cumsum(1).clamp(min=1)
    filled = torch.where(full, means, so_far)
    return torch.stack([row[v].quantile(quantile) for row, v in zip(filled, valid, strict=True) if v.any()])


def difficulty(correct: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Return `[B]`: 0 easy, 1 medium, 2 hard; with eight rows from 6 right ones on, from 3 on, and below."""
    rate = group_mean(correct.double(), group) + 1e-9
    return HARD - (rate >= 1 / 3).long() - (rate >= 2 / 3).long()


def huber(x: torch.Tensor, kappa: float) -> torch.Tensor:
    return torch.where(x <= kappa, x.square() / (2 * kappa), x - kappa / 2)


def shaping(count: torch.Tensor, correct: torch.Tensor, bucket: int, target: float, alpha: float) -> torch.Tensor:
    """Return the term that the released code adds to the reward, `[rows of one bucket]`."""
    share, kappa, tau = FORMS[bucket]
    margin = max(1.0, share * max(target, 1.0))
    cap = alpha * (1.2 if bucket == HARD else 1.0)
    excess = count - target
    over = (excess - margin).clamp(min=0)

    def penalty(x: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
        return -(strength * cap * huber(x, kappa) / (margin + kappa)).clamp(max=cap)

    match bucket:
        case 0:
            right, wrong = penalty(over), 0.6 * cap * (over / tau).sigmoid()
        case 1:
            right, wrong = penalty((excess.abs() - margin).clamp(min=0)), 0.8 * cap * (over / tau).sigmoid()
        case _:
            enough = cap * ((excess + margin) / tau).sigmoid()
            right = torch.where(excess >= -margin, enough, penalty((-excess - margin).clamp(min=0), 0.5))
            wrong = cap * (over / tau).sigmoid()
    return torch.where(correct, right, wrong)


def gap(count: torch.Tensor, correct: torch.Tensor, bucket: int, target: float) -> torch.Tensor:
    """Return the term that the paper's main text adds: 0 for right rows, -lambda g(excess) for wrong ones."""
    excess = count - target
    strength = ((count.mean() - target) / (count.var(correction=0) + 1e-6)).clamp(min=0)
    g = (excess.clamp(min=0), excess.abs(), (-excess).clamp(min=0))[bucket]
    return torch.where(correct, 0.0, -strength * g)


def followed(kappa: float, kl: float, p: Parameters) -> float:
    """Return the next kappa, within 1e-3 and 100.

    The error counts as 1 at most, so that kappa grows by no more than 1 + a in a step: k3 of a single strayed token
    can be a thousand times delta, and would take kappa to its bound at once.
    """
    return min(max(kappa * (1 + p.kl_rate * min(kl / p.kl_target - 1, 1.0)), 1e-3), 1e2)


State = dict[str, Any]
"""By bucket `alpha`, `target` and `kappa`; `theta`, the threshold, from the first step on."""


def count_windows(batch: Batch, state: State, p: Parameters) -> tuple[torch.Tensor, torch.Tensor]:
    """Return N, `[B]` float64, and where windows are, `[B, T]` bool."""
    means, full = windows(batch.entropy, batch.mask, p.window)
    marked = full & (means >= state["theta"])
    if p.triggers:
        marked &= torch.isin(batch.tokens, state["triggers"].to(batch.tokens.device))
    count = marked.sum(1).double()
    return count * 1000 / batch.lengths.clamp(min=1) if p.per_thousand else count, marked


def shape_reward(batch: Batch, state: State, p: Parameters) -> torch.Tensor:
    """Return the rewards with each bucket's term, `[B]`; move theta, and alpha and target of the buckets."""
    main = (batch.draw == 0) & (batch.lengths > 0)
    if not main.any():
        return batch.reward
    now = float(thresholds(batch.entropy[main], batch.mask[main], p.window, p.quantile).quantile(0.5))
    state["theta"] = p.threshold_decay * state.get("theta", now) + (1 - p.threshold_decay) * now
    count, _ = count_windows(batch, state, p)
    bucket, added = difficulty(batch.correct, batch.group), torch.zeros_like(count)
    for d in (EASY, MEDIUM, HARD):
        rows = main & (bucket == d)
        if rows.any():
            added[rows] = _bucket_term(count[rows], batch.correct[rows], d, state, p)
    return batch.reward + added.to(batch.reward.dtype)


def _bucket_term(count: torch.Tensor, correct: torch.Tensor, d: int, state: State, p: Parameters) -> torch.Tensor:
    """Return what the rows of bucket `d` are given, and move its alpha and target."""
    mean, before = float(count.mean()), state["target"][d]
    target = float(round(mean)) if p.target == "mean" else mean if before is None else before
    if p.form == "code":
        term = shaping(count, correct, d, target, state["alpha"][d])
    else:
        term = gap(count, correct, d, target).clamp(min=-0.5)
    error = target - mean if d == HARD else mean - target
    state["alpha"][d] = min(max(state["alpha"][d] + p.alpha_rate * error, 0.0), 2.0)
    state["target"][d] = mean if before is None else p.target_decay * before + (1 - p.target_decay) * mean
    return term


def weigh_kl(batch: Batch, state: State, p: Parameters) -> Batch:
    """Leave the KL weight of each token among the measures; move kappa by the divergence outside windows."""
    if "theta" not in state:
        return replace(batch, measures={**batch.measures, KL_WEIGHT: torch.zeros_like(batch.mask)})
    _, marked = count_windows(batch, state, p)
    bucket, main = difficulty(batch.correct, batch.group), (batch.draw == 0).unsqueeze(1)
    kappa = torch.tensor(state["kappa"], dtype=batch.mask.dtype, device=batch.mask.device)[bucket].unsqueeze(1)
    weight = p.beta * kappa * torch.where(marked, p.rho, 1.0) * batch.mask * main
    kl = k3(batch.old_logprob, batch.reference, batch.mask)
    for d in (EASY, MEDIUM, HARD):
        outside = (batch.mask > 0) & ~marked & main & (bucket == d).unsqueeze(1)
        if outside.any():
            state["kappa"][d] = followed(state["kappa"][d], float(kl[outside].mean()), p)
    return replace(batch, measures={**batch.measures, KL_WEIGHT: weight})


def kl_loss(batch: Batch, settings: Settings) -> torch.Tensor:
    """Return the mean of the weighted KL from the reference, a scalar in nats."""
    kl = k3(batch.logprob, batch.reference, batch.mask)
    weight = batch.measures[KL_WEIGHT].to(kl.dtype)
    mode, constant = settings.aggregation, settings.max_length
    return aggregate(kl, batch.mask, weight, mode, totals=batch.totals, constant=constant)


def report(batch: Batch, state: State, p: Parameters) -> Mapping[str, float]:
    """Return theta, and for each bucket its mean number of windows and its alpha."""
    if "theta" not in state:
        return {}
    bucket = difficulty(batch.correct, batch.group)
    count, _ = count_windows(batch, state, p)
    known = {"threshold": state["theta"]}
    for d, name in enumerate(("easy", "medium", "hard")):
        if (rows := (batch.draw == 0) & (bucket == d)).any():
            known |= {f"windows_{name}": float(count[rows].mean()), f"alpha_{name}": state["alpha"][d]}
    return known


def method(p: Parameters) -> Method:
    """Return ARES with these parameters."""
    state: State = {"alpha": [p.alpha] * 3, "target": [None] * 3, "kappa": [1.0] * 3}
    if p.triggers and p.tokenizer:
        state["triggers"] = trigger_tokens(p.triggers, p.tokenizer)
    return Method(
        name="ares",
        paper="arXiv 2510.08457",
        summary="rewards less deliberation on easy prompts and more on hard ones, with a KL term that gives in windows",
        reads=frozenset({"correct", "entropy", *(("tokens",) if p.triggers else ())}),
        reward=partial(shape_reward, state=state, p=p),
        step_controller=partial(weigh_kl, state=state, p=p) if p.beta else None,
        extra_loss=kl_loss if p.beta else None,
        report=partial(report, state=state, p=p),
        state=state,
        needs_reference=p.beta > 0,
        defaults={"clip_high": 0.3, "dynamic_sampling": True},
    )
