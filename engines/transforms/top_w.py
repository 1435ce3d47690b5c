"""Top-W, arXiv 2602.10346: truncation that weighs the geometry, the entropy and the mass of the tokens it keeps.

At every step, with p the distribution to draw from, d a distance between tokens' whitened input embeddings, and S the
first tokens of the pool that hold `warm_mass` of it, repeat until S stays the same, at most `iterations` times:

    f_i   = -min_{j in S} d(i, j)                        how far a token is from the set (0 inside)
    φ_i   = geometry_scale f_i + entropy_weight log p_i
    S     = the prefix of the tokens by descending φ that has the largest
            E_q[φ] + (mass_weight - entropy_weight) log Γ,   Γ its mass, q = p/Γ on it

and draw from q. `waver.entropy.top_w` has the method with its two shortcuts, both exact.

What to expect:
- The default weights keep one to three tokens where the model has a preference: it is near to greedy decoding, and the
  report's `truncation` shows how near. A larger `mass_weight` keeps more, `mass_weight <= entropy_weight` one token.
- With the default warm start the geometry decides nothing in all but the flattest distributions. A `warm_mass` of 0.05
  or less, or the k-NN potential, lets it act.
- The objective as published rewards sets of similar tokens. It does not lower the Wasserstein distance to p.
- The k-NN potential, `f_i = -(mean distance to the `neighbours` nearest members)`, is a reconstruction: the paper names
  it without a formula.
- The most likely token is always kept. Input embeddings are needed: an engine that has no access to them is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field

from waver.engines.transforms.base import Context, Truncation
from waver.entropy.surrogate import Weights
from waver.entropy.top_w import top_w
from waver.entropy.truncation import Crop


class TopW(Truncation):
    """Keep the set of tokens that best trades geometry, entropy and mass; sharp at any temperature."""

    paper: ClassVar[str] = "arXiv 2602.10346"

    name: Literal["top_w"] = "top_w"
    entropy_weight: float = Field(default=2.2, ge=0.0, le=1e3, description="lambda: larger is sharper")
    mass_weight: float = Field(
        default=2.8, gt=0.0, le=1e3, description="beta: larger keeps more; at most entropy_weight keeps one token"
    )
    pool: int = Field(default=1200, ge=1, le=4096, description="most likely tokens that are looked at")
    warm_mass: float = Field(
        default=0.999, gt=0.0, le=1.0, description="share of the pool's mass in the first set; small lets geometry act"
    )
    iterations: int = Field(default=9, ge=1, le=64, description="most alternations of potential and set")
    potential: Literal["nearest", "knn"] = Field(default="nearest", description="distance to a set of tokens")
    neighbours: int = Field(default=5, ge=1, le=64, description="members that the k-NN potential averages over")
    metric: Literal["cosine", "chord"] = Field(default="cosine", description="distance between two tokens")
    geometry_scale: float = Field(
        default=0.6, ge=0.0, le=1e3, description="g: weight of the potential; the paper has 1"
    )
    selection_temperature: float | None = Field(
        default=None, gt=0.0, le=100.0, description="temperature to choose the set at; default: the one to draw at"
    )

    @property
    def needs_geometry(self) -> bool:
        return self.geometry_scale > 0

    @classmethod
    def crop(cls, logits: torch.Tensor, asked: Sequence[Self], context: Context) -> Crop:
        heat = [1.0] * len(asked)
        if context.temperatures is not None and any(each.selection_temperature is not None for each in asked):
            heat = context.temperatures.tolist()  # waits for the device
        weights = [each._weights(temperature) for each, temperature in zip(asked, heat, strict=True)]
        return top_w(logits, weights, context.geometry)

    def _weights(self, temperature: float) -> Weights:
        selection = self.selection_temperature
        return Weights(
            entropy=self.entropy_weight,
            mass=self.mass_weight,
            pool=self.pool,
            warm_mass=self.warm_mass,
            iterations=self.iterations,
            geometry=self.geometry_scale,
            neighbours=self.neighbours if self.potential == "knn" else 0,
            chord=self.metric == "chord",
            sharpness=1.0 if selection is None else temperature / selection,
        )
