"""Matrix entropy: how many directions the rows of a matrix point in (EntropyPrune, arXiv 2602.17196).

It is the entropy of the eigenvalues of the rows' covariance. The eigenvalues that are not 0 are those of the Gram
matrix of the rows too, which is the smaller one where there are fewer rows than columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

FLOOR = 1e-10
"""Eigenvalues are at least this."""
NORM = 1e-12


def centred_rows(x: torch.Tensor, normalise: bool = True) -> torch.Tensor:
    """Subtract the mean row of `[..., rows, columns]`, in float64, and divide each row by its length.

    Without `normalise` the entropy depends on the scale: it is what the released code computes, and the paper's text is
    said not to.
    """
    z = x.double()
    z = z - z.mean(-2, keepdim=True)
    return z / z.norm(dim=-1, keepdim=True).clamp(min=NORM) if normalise else z


def spectrum_entropy(gram: torch.Tensor, size: int) -> torch.Tensor:
    """Compute -Σ λ ln λ / ln(size) of the eigenvalues of symmetric matrices `[..., n, n]`, each at least `FLOOR`."""
    values = torch.linalg.eigvalsh(gram).clamp(min=FLOOR)
    entropy: torch.Tensor = -(values * values.log()).sum(-1) / math.log(size)
    return entropy


def matrix_entropy(x: torch.Tensor, normalise: bool = True) -> torch.Tensor:
    """Compute the matrix entropy of `[..., rows, columns]` over ln(rows): 0 where all rows point the same way, 1 where
    they fill as many directions as there are rows.

    With the rows r of the centred matrix, A = R Rᵀ / rows, and H = -Σ λ ln λ / ln(rows) over the eigenvalues of A.

    Raises:
        ValueError: there are fewer than two rows.
    """
    rows = x.shape[-2]
    if rows < 2:
        raise ValueError("a matrix entropy needs two rows")
    z = centred_rows(x, normalise)
    return spectrum_entropy(z @ z.mT / rows, rows)


def primal_matrix_entropy(x: torch.Tensor, normalise: bool = True) -> torch.Tensor:
    """Compute `matrix_entropy` from the covariance of the columns, at a cost of columns³ in place of rows³."""
    z = centred_rows(x, normalise)
    return spectrum_entropy(z.mT @ z / x.shape[-2], x.shape[-2])


def representation_entropy(tokens: torch.Tensor) -> float:
    """Compute the entropy of one layer's hidden states of all image tokens `[tokens, width]` over ln(tokens), by the
    smaller of the two matrices."""
    z = centred_rows(tokens)
    small = z @ z.T if z.shape[0] <= z.shape[1] else z.T @ z
    return float(spectrum_entropy(small / z.shape[0], z.shape[0]))


def collapse_layer(entropies: Sequence[float]) -> int:
    """Find the layer of the first third of the layers before which the entropy falls most: argmax of h_(l-1) - h_l.

    The paper's search was not to be had; this definition is ours. Raises ValueError for fewer than two layers.
    """
    if len(entropies) < 2:
        raise ValueError("a collapse needs two layers")
    last = max(len(entropies) // 3, 2)
    return max(range(1, last), key=lambda layer: entropies[layer - 1] - entropies[layer])


def tokens_to_keep(layers: int, layer: int, tokens: int, average: float) -> int:
    """Return how many of an image's tokens to keep from `layer` on, so that `average` remain on average over all
    layers; at least 1."""
    return max(math.floor((layers * average - layer * tokens) / (layers - layer)), 1)


def drop_ratio(layers: int, layer: int, share: float) -> float:
    """Return the share of the tokens to drop at `layer`, so that `share` remain on average over all layers."""
    return 1 - (layers * share - layer) / (layers - layer)


def keep_tokens(queries: torch.Tensor, keep: int, normalise: bool = True) -> torch.Tensor:
    """Choose the `keep` tokens of `[tokens, heads, width]` queries with the largest matrix entropy, in their order.

    A token with NaN comes last; all tokens where `keep` is as many, one where it is less than 1.
    """
    if keep >= len(queries):
        return torch.arange(len(queries))
    scores = torch.full((len(queries),), -torch.inf, dtype=torch.float64)
    fine = torch.isfinite(queries).flatten(1).all(1).cpu()
    scores[fine] = matrix_entropy(queries[fine.to(queries.device)], normalise).cpu()
    return scores.argsort(descending=True, stable=True)[: max(keep, 1)].sort().values
