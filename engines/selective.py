"""A selective state space projector over a frozen feature map, and the fixed simplex that it projects to (Mamba-FSCIL,
arXiv 2407.06136).

Tokens of a feature map `[batch, tokens, channels]` pass a two-layer perceptron and a selective scan (Mamba) in several
orders, whose outputs are added and averaged over the tokens. A second branch, begun with its gate at zero, learns what
comes later while the first one stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import silu, softplus

KERNEL = 4
LEAKY = 0.1
STEP_LOW, STEP_HIGH, STEP_FLOOR = 0.001, 0.1, 1e-4
"""Initial step sizes of the scan are log-uniform between the first two."""


def simplex(dimension: int, classes: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Make the fixed classifier `[dimension, classes]`: unit columns with pairwise cosines of -1 / (classes - 1).

    W = sqrt(K / (K - 1)) U (I - 11ᵀ/K), where U has orthonormal columns.

    Raises:
        ValueError: there are more classes than dimensions, or fewer than two.
    """
    if not 2 <= classes <= dimension:
        raise ValueError(f"a simplex has 2 to {dimension} classes in {dimension} dimensions, not {classes}")
    u, _ = torch.linalg.qr(torch.randn(dimension, classes, generator=generator, dtype=torch.float64))
    return centred_simplex(u)


def centred_simplex(u: torch.Tensor) -> torch.Tensor:
    """Make the simplex of orthonormal columns `u`."""
    k = u.shape[1]
    return math.sqrt(k / (k - 1)) * (u - u.mean(1, keepdim=True))


def scan_orders(rows: int, columns: int) -> torch.Tensor:
    """Return the orders in which a grid's tokens are read, `[orders, tokens]`: by rows, reversed, by columns, reversed;
    for one row only the first two."""
    by_rows = torch.arange(rows * columns)
    by_columns = by_rows.reshape(rows, columns).T.flatten()
    found = [by_rows, by_rows.flip(0)]
    return torch.stack(found if rows == 1 else [*found, by_columns, by_columns.flip(0)])


def selective_scan(
    x: torch.Tensor, delta: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, skip: torch.Tensor
) -> torch.Tensor:
    """Run h_t = exp(Δ_t A) h_{t-1} + (Δ_t x_t) B_t, y_t = C_t · h_t + D x_t over the tokens.

    Args:
        x: `[batch, tokens, width]`. delta: its steps, positive. a: `[width, states]`, negative. b, c:
            `[batch, tokens, states]`. skip: D, `[width]`.
    """
    h = x.new_zeros(x.shape[0], x.shape[2], a.shape[1])
    out = []
    for t in range(x.shape[1]):  # a map has at most some 50 tokens: no fused kernel is needed
        step = delta[:, t, :, None]
        h = torch.exp(step * a) * h + step * x[:, t, :, None] * b[:, t, None, :]
        out.append((h * c[:, t, None, :]).sum(-1) + skip * x[:, t])
    return torch.stack(out, 1)


@dataclass(frozen=True)
class Trace:
    """Internals of a branch for one batch: the sum over the orders of the gates before SiLU `[batch, tokens, width]`,
    and the parameters of the scan in the first order: the step before its projection `[batch, tokens, rank]`, and B and
    C `[batch, tokens, states]`."""

    gates: torch.Tensor
    step: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor


class SelectiveScan(nn.Module):
    """A Mamba block without expansion and without output projection; the scans of all orders share its weights."""

    orders: torch.Tensor

    def __init__(self, width: int, states: int, rank: int, orders: torch.Tensor) -> None:
        super().__init__()
        self.states, self.rank = states, rank
        self.register_buffer("orders", orders, persistent=False)
        self.inward = nn.Linear(width, 2 * width, bias=False)
        self.conv = nn.Conv1d(width, width, KERNEL, groups=width, padding=KERNEL - 1)
        self.parameters_of = nn.Linear(width, rank + 2 * states, bias=False)
        self.step = nn.Linear(rank, width)
        self.a_log = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(width, 1))
        self.skip = nn.Parameter(torch.ones(width))
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        size = torch.exp(torch.empty(width).uniform_(math.log(STEP_LOW), math.log(STEP_HIGH))).clamp(min=STEP_FLOOR)
        with torch.no_grad():
            self.step.bias.copy_(size + torch.log(-torch.expm1(-size)))  # the inverse of softplus

    def close_gate(self) -> None:
        """Set the gate's half of the inward projection to 0: the output is 0, its gradient is not."""
        with torch.no_grad():
            self.inward.weight[self.inward.weight.shape[1] :] = 0

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, Trace]:
        """Scan `[batch, tokens, width]` in every order; returns the sum in the tokens' own order."""
        batch, length, width = tokens.shape
        x, z = self.inward(tokens).chunk(2, -1)
        count = len(self.orders)
        ordered = x[:, self.orders].transpose(0, 1).reshape(count * batch, length, width)
        ordered = silu(self.conv(ordered.transpose(1, 2))[..., :length].transpose(1, 2))
        step, b, c = self.parameters_of(ordered).split([self.rank, self.states, self.states], -1)
        y = selective_scan(ordered, softplus(self.step(step)), -torch.exp(self.a_log), b, c, self.skip)
        y = y.reshape(count, batch, length, width)
        back = torch.argsort(self.orders, 1)
        summed = torch.stack([y[i][:, order] for i, order in enumerate(back)]).sum(0)
        # A gate belongs to its token in every order, so the gates' sum is a multiple of one order's.
        return summed * silu(z), Trace(count * z, step[:batch], b[:batch], c[:batch])


class Branch(nn.Module):
    """A perceptron over each token with a position added, and the scan; `[batch, tokens, channels]` to `[batch,
    width]`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden = 2 * shape.channels
        length = shape.rows * shape.columns
        self.perceptron = nn.Sequential(
            nn.Linear(shape.channels, hidden),
            nn.LayerNorm([length, hidden]),
            nn.LeakyReLU(LEAKY),
            nn.Linear(hidden, shape.width, bias=False),
        )
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(length, shape.width), std=0.02))
        self.scan = SelectiveScan(shape.width, shape.states, shape.rank, scan_orders(shape.rows, shape.columns))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, Trace]:
        out, trace = self.scan(self.perceptron(features) + self.position)
        return out.mean(1), trace


@dataclass(frozen=True)
class Shape:
    """Sizes of a projector: channels of a token, its grid, width D, states N and rank R of the scan."""

    channels: int
    rows: int
    columns: int
    width: int
    states: int = 16
    rank: int = 16


class Projector(nn.Module):
    """The base branch beside a linear projection of the mean token, and from the first increment on a second branch."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.base = Branch(shape)
        self.identity = nn.Linear(shape.channels, shape.width, bias=False)
        self.new: Branch | None = None

    def begin_increments(self) -> None:
        """Freeze what is there and add the second branch, whose output is 0 as yet; nothing happens the second time."""
        if self.new is not None:
            return
        self.base.requires_grad_(False)
        self.identity.requires_grad_(False)
        self.new = Branch(self.shape)
        self.new.scan.close_gate()

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, Trace]:
        """Project `[batch, tokens, channels]` to `[batch, width]`; with the trace of the branch that learns."""
        out, trace = self.base(features)
        out = out + self.identity(features.mean(1))
        if self.new is None:
            return out, trace
        added, trace = self.new(features)
        return out.detach() + added, trace


def cosines(out: torch.Tensor, classifier: torch.Tensor, seen: int | Sequence[int]) -> torch.Tensor:
    """Compute the cosines of projections `[batch, width]` with the columns of the classes seen so far."""
    columns = classifier[:, :seen] if isinstance(seen, int) else classifier[:, list(seen)]
    return nn.functional.normalize(out, dim=-1) @ columns
