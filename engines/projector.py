"""A projector: a small network that places a text's vector between a benign and a harmful prototype.

SafeHarbor, arXiv 2605.05704, section II-b. With z = W2 relu(W1 x + b1) + b2, and d_B, d_H the distances of z from the
prototypes, S_harm = exp(-d_H) / (exp(-d_H) + exp(-d_B)) = sigmoid(d_B - d_H). It is a file of safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

SHAPES = ("W1", "b1", "W2", "b2", "benign", "harmful")


@dataclass(frozen=True)
class Projector:
    """Weights `W1 [width, dimension]`, `b1`, `W2 [out, width]`, `b2`; prototypes `benign`, `harmful` `[out]`."""

    weights: Mapping[str, torch.Tensor]

    @property
    def dimension(self) -> int:
        """Return the width of the vectors that it reads."""
        return self.weights["W1"].shape[1]

    def project(self, vectors: torch.Tensor) -> torch.Tensor:
        """Compute z of vectors: `[..., dimension]` to `[..., out]`."""
        w = self.weights
        return torch.relu(vectors.float() @ w["W1"].T + w["b1"]) @ w["W2"].T + w["b2"]

    def harm(self, vectors: torch.Tensor) -> torch.Tensor:
        """Compute S_harm of vectors, `[...]`."""
        return harm(*distances(self.project(vectors), self.weights["benign"], self.weights["harmful"]))

    def save(self, file: Path) -> None:
        """Write it."""
        save_file({name: self.weights[name].contiguous() for name in SHAPES}, file)

    @classmethod
    def load(cls, file: Path) -> Projector:
        """Read one.

        Raises:
            ValueError: the file is not there, or is none.
        """
        try:
            weights = load_file(file)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} is no projector: {error}") from error
        if set(weights) != set(SHAPES):
            raise ValueError(f"{file} is no projector: it holds {', '.join(sorted(weights))}")
        return cls(weights)


def distances(z: torch.Tensor, benign: torch.Tensor, harmful: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return d_B and d_H of projections `[..., out]`: `[...]` each."""
    return torch.linalg.vector_norm(z - benign, dim=-1), torch.linalg.vector_norm(z - harmful, dim=-1)


def harm(to_benign: torch.Tensor, to_harmful: torch.Tensor) -> torch.Tensor:
    """Return S_harm of distances from both prototypes."""
    return torch.sigmoid(to_benign - to_harmful)
