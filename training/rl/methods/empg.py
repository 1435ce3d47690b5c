"""EMPG (arXiv 2509.09265): over several turns, learn more from sure steps and less from unsure ones.

One outcome is the advantage A of every turn of a row, while the gradient of an unsure turn is large by itself. A step
is a turn, the tokens with one `step_id`; over all N steps of the batch, with H the mean entropy of a step's tokens:

    n = (H - min H) / (max H - min H + 1e-8)          min-max over the batch                              (eq. 12)
    g = exp(-k n) / (mean exp(-k n) + 1e-8)           scale: sure steps up, unsure down, 1 on average     (eq. 6, 10)
    f = exp(-k' n)                                    clarity                                             (eq. 7, 11)
    M = A g + zeta f(the row's next step)             the last step of a row gets no bonus                (eq. 8)
    A' = M - mean M                                   over steps: each counts once, not once per token

Why (prop. 1): the expected squared score of a softmax, E |d log pi / dz|^2 = 1 - sum pi^2, grows with the entropy.

Use it for agents of many turns with one reward at the end. On rows of a single turn it is a weight per response. It
damps what is unsure, where HAPO or masks on high entropy amplify it. Cost: none beyond the entropies.

Entropies are those of the policy that drew the rows, exact, without gradient. Minimum, maximum and means are taken over
the rows of a step that are left after filtering: whoever trains on several machines gathers them first. The paper's
listing is known from copies and digests only; one outlier in H squeezes all other n to 0, against which `outliers`
cuts, and a long sure tail hides a short unsure decision, against which `window` looks (both are Waver's, and off). A
layout with one turn for each row has no next step here: put the turns of a trajectory into one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field

from waver.training.rl import Batch, Method, Strict
from waver.training.rl.quantiles import quantile

EPS = 1e-8


class Parameters(Strict):
    sharpness: float = Field(1.0, ge=0)
    """k; from 2 on, unsure steps learn less than sure ones in sum."""
    clarity: float = Field(1.0, ge=0)
    """k'."""
    bonus: float = Field(0.05, ge=0, le=1)
    """zeta, 0.05 to 0.1 in the listings; more invites empty certainty."""
    outliers: float = Field(0.0, ge=0, lt=0.5)
    """Step entropies are cut at this quantile and at 1 minus it; 0 is off, 0.01 a good first value."""
    window: int | None = Field(None, ge=1)
    """A step is as unsure as its most unsure stretch of so many tokens, not as its mean; 8 is a good first value."""


@dataclass(frozen=True)
class Steps:
    """All steps of a batch, by row and within a row in their order; those without valid tokens are not among them.

    Args:
        valid: `[B, T]` tokens that belong to a step. index: `[tokens]` the step of each.
        row: `[N]`. size: `[N]` tokens.
    """

    valid: torch.Tensor
    index: torch.Tensor
    row: torch.Tensor
    size: torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor, step_id: torch.Tensor) -> Steps:
        valid = (mask > 0) & (step_id >= 0)
        key = torch.stack([valid.nonzero()[:, 0], step_id[valid]], 1)
        steps, index, size = torch.unique(key, dim=0, return_inverse=True, return_counts=True)
        return cls(valid, index, steps[:, 0], size)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return `[B, T]` -> `[N]`, over the tokens of each step."""
        return values.new_zeros(len(self.size)).index_add_(0, self.index, values[self.valid]) / self.size

    def most(self, values: torch.Tensor, window: int) -> torch.Tensor:
        """Return `[B, T]` -> `[N]`, the largest mean over `window` tokens of a step; over all of them if it has
        fewer."""
        tokens = values[self.valid].double()
        total = torch.cat([tokens.new_zeros(1), tokens.cumsum(0)])
        end = torch.arange(1, len(tokens) + 1, device=tokens.device)
        first = (self.size.cumsum(0) - self.size)[self.index]
        whole = torch.minimum(self.size, self.size.new_tensor(window))[self.index]
        means = ((total[end] - total[(end - whole).clamp(min=0)]) / whole).masked_fill(end - whole < first, -torch.inf)
        most = tokens.new_full((len(self.size),), -torch.inf).scatter_reduce_(0, self.index, means, "amax")
        return most.to(values.dtype)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Return `[N]` -> `[B, T]`, 0 outside steps."""
        out = values.new_zeros(self.valid.shape)
        out[self.valid] = values[self.index]
        return out


def normalise(entropy: torch.Tensor) -> torch.Tensor:
    """Return n: `[N]` step entropies to [0, 1] by the batch's smallest and largest."""
    low, high = entropy.min(), entropy.max()
    return (entropy - low) / (high - low + EPS)


def scale(n: torch.Tensor, sharpness: float) -> torch.Tensor:
    """Return g: `[N]`, 1 on average."""
    weight = (-sharpness * n).exp()
    return weight / (weight.mean() + EPS)


def modulated(advantage: torch.Tensor, entropy: torch.Tensor, steps: Steps, p: Parameters) -> torch.Tensor:
    """Return A': `[B, T]` from `[B, T]` advantages and entropies."""
    if not len(steps.size):
        return torch.zeros_like(advantage)
    of_step = steps.mean(entropy) if p.window is None else steps.most(entropy, p.window)
    if p.outliers:
        of_step = of_step.clamp(quantile(of_step, p.outliers), quantile(of_step, 1 - p.outliers))
    n = normalise(of_step)
    f = (-p.clarity * n).exp()
    goes_on = torch.cat([steps.row[1:] == steps.row[:-1], steps.row.new_zeros(1, dtype=torch.bool)])
    bonus = p.bonus * f.roll(-1).masked_fill(~goes_on, 0.0)
    m = advantage * steps.spread(scale(n, p.sharpness)) + steps.spread(bonus)
    return (m - steps.mean(m).mean()) * steps.valid


def report(batch: Batch) -> dict[str, float]:
    """Return what to log; `squeezed` near 1 says that an outlier has switched the method off."""
    entropy = (steps := Steps.of(batch.mask, batch.step_id)).mean(batch.entropy)
    if not len(entropy):
        return {}
    return {
        "steps": float(len(steps.size)),
        "step_entropy": float(entropy.mean()),
        "squeezed": float((normalise(entropy) < 0.05).double().mean()),
    }


def method(p: Parameters) -> Method:
    return Method(
        name="empg",
        paper="arXiv 2509.09265",
        summary="scales the advantage of each turn by how sure it is, with a bonus for turns that lead to sure ones",
        reads=frozenset({"entropy", "step_id"}),
        advantage_transform=lambda batch: modulated(
            batch.advantage, batch.entropy, Steps.of(batch.mask, batch.step_id), p
        ),
        report=report,
        excludes={"hapo": "one damps what the other amplifies"},
    )
