"""Recursive least squares of RLSEdit (arXiv 2601.15686): fit all edits so far, softly near the weights of before.

With keys K `[edits, d_k]`, values V `[edits, d_v]` and weights W `[d_k, d_v]` (input by output, the transpose of a
torch `Linear`), the minimiser after batch t of (eq. 15)

    sum_i ||K_i W - V_i||^2 + lambda^2 ||W - W_0||^2 + mu^2 ||K_0 W - V_0||^2

follows from the one before by the Woodbury identity, at a cost that does not grow with t. C is the inverse of
lambda^2 I + mu^2 K_0' K_0 + sum_i K_i' K_i. `start` and `nullspace` make the C of other editors, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

JITTER, GROWTH, TRIES = 1e-6, 10.0, 5


@dataclass(frozen=True)
class Step:
    """The effect of one batch on a layer: C loses `sign` G G', W gains `sign` G H. Kept, it can be replayed and undone.

    Args:
        outer: G, `[d_k, edits]`. inner: H, `[edits, d_v]`. sign: 1, or -1 where pairs are taken out.
    """

    outer: torch.Tensor
    inner: torch.Tensor
    sign: int = 1

    def inverse(self, before: torch.Tensor) -> torch.Tensor:
        """Return C after the step."""
        return before - self.sign * (self.outer @ self.outer.T)

    def weight(self, before: torch.Tensor) -> torch.Tensor:
        """Return W after the step."""
        return before + self.sign * (self.outer @ self.inner)


def invert(matrix: torch.Tensor) -> torch.Tensor:
    """Invert a symmetric positive matrix by Cholesky; where that fails, with a growing jitter on the diagonal, and at
    last as a pseudo-inverse."""
    matrix = (matrix + matrix.T) / 2
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    jitter = 0.0
    for _ in range(TRIES + 1):
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter * eye)
        if not int(failed):
            inverse: torch.Tensor = torch.cholesky_inverse(factor).contiguous()
            return inverse
        jitter = GROWTH * jitter if jitter else JITTER * float(matrix.diagonal().mean().abs())
    found: torch.Tensor = torch.linalg.pinv(matrix, hermitian=True)
    return found


def start(penalty: float, anchors: torch.Tensor) -> torch.Tensor:
    """Compute C_0 = (lambda^2 I + mu^2 K_0' K_0)^-1, `[d_k, d_k]`.

    Args:
        penalty: lambda^2. anchors: mu^2 K_0' K_0; in practice a number of anchors times the second moment of keys.
    """
    eye = torch.eye(len(anchors), dtype=anchors.dtype, device=anchors.device)
    return invert(penalty * eye + anchors)


def start_weight(inverse: torch.Tensor, weight: torch.Tensor, penalty: float, targets: torch.Tensor) -> torch.Tensor:
    """Compute W*_0 = C_0 (lambda^2 W_0 + mu^2 K_0' V_0); `targets` is mu^2 K_0' V_0. With V_0 = K_0 W_0 it is W_0."""
    return inverse @ (penalty * weight + targets)


def nullspace(moment: torch.Tensor, threshold: float = 2e-2) -> torch.Tensor:
    """Compute the projector on the directions that general keys hardly use: those of eigenvalues of their second moment
    under `threshold`. As C_0 it gives the hard null-space editor (AlphaEdit, arXiv 2410.02355), whose ridge is 1."""
    values, vectors = torch.linalg.eigh(moment)
    kept = vectors[:, values < threshold]
    projector: torch.Tensor = kept @ kept.T
    return projector


def step(inverse: torch.Tensor, keys: torch.Tensor, residual: torch.Tensor) -> Step:
    """Compute the step of a batch.

    Args:
        inverse: C of before. keys: K, `[edits, d_k]`. residual: E = V - K W, `[edits, d_v]`.
    """
    outer = inverse @ keys.T
    inner = torch.eye(len(keys), dtype=keys.dtype, device=keys.device) + keys @ outer
    return _solved(outer, inner, residual, 1)


def removal(inverse: torch.Tensor, keys: torch.Tensor, residual: torch.Tensor) -> Step:
    """Compute the step that takes pairs out that went in before: the minimiser is then that of the others.

    Raises:
        ValueError: they are not in it, or rounding has lost them.
    """
    outer = inverse @ keys.T
    inner = torch.eye(len(keys), dtype=keys.dtype, device=keys.device) - keys @ outer
    return _solved(outer, inner, residual, -1)


def _solved(outer: torch.Tensor, inner: torch.Tensor, residual: torch.Tensor, sign: int) -> Step:
    """Return G = F R^-1 and H = R'^-1 E with S = R' R: then F S^-1 E = G H and F S^-1 F' = G G'."""
    lower, failed = torch.linalg.cholesky_ex((inner + inner.T) / 2)
    if int(failed):
        raise ValueError("the system of this batch is not positive definite: its pairs are not among the edits")
    g = torch.linalg.solve_triangular(lower, outer.T, upper=False).T
    return Step(g, torch.linalg.solve_triangular(lower, residual, upper=False), sign)


def solve(
    weight: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    penalty: float,
    anchors: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """Compute the minimiser over all batches at once, `[d_k, d_v]`: what the recursion must come to."""
    eye = torch.eye(len(anchors), dtype=anchors.dtype, device=anchors.device)
    system = penalty * eye + anchors + keys.T @ keys
    found: torch.Tensor = torch.linalg.solve(system, penalty * weight + targets + keys.T @ values)
    return found
