"""Transforms as data, and where truncations meet the logits: rows that ask for different ones, or none, in one batch.

They are plain JSON (`as_data`, `from_data`), so that they can travel to the process that holds the logits. The order of
what shapes a draw is the same in all engines:

1. a grammar's mask, `logit_bias`, `min_tokens` and penalties, on the raw logits;
2. temperature: the request's own, times what an adaptive one among its transforms makes of it
(`waver.engines.temperature`); 3. the request's truncations, in the order of `Sampling.transforms`;
4. `min_p`, `top_k` and `top_p` of the request itself, in this order;
5. one draw from what is left.

So a truncation sees the distribution that would be drawn from, and its entropy is that of the penalised, masked and
tempered one. An adaptive temperature follows the entropy of the raw one. At temperature 0 the top token is taken and no
transform is run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from waver.devices import to_device
from waver.entropy import truncation
from waver.entropy.geometry import Geometry
from waver.entropy.surrogate import Weights
from waver.entropy.top_w import top_w
from waver.entropy.truncation import Crop


class _Transform(BaseModel):
    """Something that shapes a draw. Its fields are its parameters; it checks their ranges itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: str

    def as_data(self) -> dict[str, Any]:
        """Plain JSON data, for `from_data`."""
        return self.model_dump(mode="json")


class TopW(_Transform):
    """Top-W (arXiv 2602.10346); `waver.entropy.top_w` has the method. Needs the engine's input embeddings."""

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


class TopP(_Transform):
    """The smallest set of most likely tokens with this mass."""

    name: Literal["top_p"] = "top_p"
    p: float = Field(default=0.9, gt=0.0, le=1.0, description="mass to keep")


class MinP(_Transform):
    """Tokens that are not much less likely than the most likely one."""

    name: Literal["min_p"] = "min_p"
    p: float = Field(default=0.1, ge=0.0, le=1.0, description="least probability, as a part of the largest")


class Typical(_Transform):
    """Tokens whose surprisal is near the entropy."""

    name: Literal["typical"] = "typical"
    p: float = Field(default=0.95, gt=0.0, le=1.0, description="mass to keep")


class Eta(_Transform):
    """Tokens above a probability that falls with the entropy."""

    name: Literal["eta"] = "eta"
    epsilon: float = Field(default=2e-4, gt=0.0, lt=1.0, description="threshold where the entropy is low")


class Epsilon(_Transform):
    """Tokens above a fixed probability."""

    name: Literal["epsilon"] = "epsilon"
    epsilon: float = Field(default=3e-4, gt=0.0, lt=1.0, description="least probability")


class TopNSigma(_Transform):
    """Logits within some standard deviations of the largest."""

    name: Literal["top_n_sigma"] = "top_n_sigma"
    n: float = Field(default=1.0, ge=0.0, le=1e3, description="standard deviations of the logits below the largest")


class TopH(_Transform):
    """The most likely tokens with a part of the entropy."""

    name: Literal["top_h"] = "top_h"
    alpha: float = Field(default=0.4, gt=0.0, le=1.0, description="part of the entropy to keep")
    form: Literal["running", "renormalised"] = Field(
        default="running", description="entropy terms summed over the top 100 (as released), or of the crop (the paper)"
    )


class AdaptiveTemperature(_Transform):
    """A temperature that follows the entropy (arXiv 2509.16591, part A); formula: `waver.engines.temperature`."""

    name: Literal["adaptive_temperature"] = "adaptive_temperature"
    span: float = Field(default=0.1, ge=0.0, le=0.3, description="how far the temperature goes up and down, as a share")
    low: float = Field(default=1e-6, ge=1e-8, le=100.0, description="entropy (nats) at which it is lowest")
    pivot: float = Field(default=0.5, ge=1e-8, le=100.0, description="entropy (nats) at which it is the request's own")
    high: float = Field(default=3.0, ge=1e-8, le=100.0, description="entropy (nats) at which it is highest")

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not self.low < self.pivot < self.high:
            raise ValueError(f"low {self.low:g}, pivot {self.pivot:g} and high {self.high:g} should rise in this order")
        return self


Truncation = TopW | TopP | MinP | Typical | Eta | Epsilon | TopNSigma | TopH
Transform = Truncation | AdaptiveTemperature
_ADAPTER: TypeAdapter[Transform] = TypeAdapter(Annotated[Transform, Field(discriminator="name")])


def from_data(data: Any) -> Transform:
    """A transform from plain data, such as `{"name": "top_h", "alpha": 0.5}`.

    Raises:
        ValueError: no such transform or parameter, a wrong type, or a value out of range.
    """
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"transform{f' {where}' if where else ''}: {first['msg']}") from None


def truncations(transforms: Sequence[Transform]) -> list[Truncation]:
    """Those that take tokens away."""
    return [each for each in transforms if not isinstance(each, AdaptiveTemperature)]


def needs_geometry(transforms: Sequence[Transform]) -> bool:
    """Return whether the whitened input embeddings may be asked for."""
    return any(isinstance(each, TopW) and each.geometry_scale > 0 for each in transforms)


Rule = Callable[[torch.Tensor, Sequence[Any], torch.Tensor | None, Geometry | None], Crop]
"""`rule(logits, transforms, temperatures, geometry)`: one kind of truncation, on the rows that ask for it."""


def _by(function: Callable[[torch.Tensor, torch.Tensor], Crop], parameter: str) -> Rule:
    """The rule of a truncation with one number a row."""

    def rule(logits: torch.Tensor, asked: Sequence[Any], *_: object) -> Crop:
        return function(logits, to_device([getattr(each, parameter) for each in asked], logits.device, torch.float64))

    return rule


def _top_w(
    logits: torch.Tensor, asked: Sequence[TopW], temperatures: torch.Tensor | None, geometry: Geometry | None
) -> Crop:
    heat = [1.0] * len(asked)
    if temperatures is not None and any(each.selection_temperature is not None for each in asked):
        heat = temperatures.tolist()  # waits for the device
    how = [
        Weights(
            entropy=each.entropy_weight,
            mass=each.mass_weight,
            pool=each.pool,
            warm_mass=each.warm_mass,
            iterations=each.iterations,
            geometry=each.geometry_scale,
            neighbours=each.neighbours if each.potential == "knn" else 0,
            chord=each.metric == "chord",
            sharpness=1.0 if each.selection_temperature is None else temperature / each.selection_temperature,
        )
        for each, temperature in zip(asked, heat, strict=True)
    ]
    return top_w(logits, how, geometry)


RULES: dict[str, Rule] = {
    "top_w": _top_w,
    "top_p": _by(truncation.top_p, "p"),
    "min_p": _by(truncation.min_p, "p"),
    "typical": _by(truncation.typical, "p"),
    "eta": _by(truncation.eta, "epsilon"),
    "epsilon": _by(truncation.epsilon, "epsilon"),
    "top_n_sigma": _by(truncation.top_n_sigma, "n"),
    "top_h": _by(truncation.top_h_running, "alpha"),
    "top_h renormalised": _by(truncation.top_h_renormalised, "alpha"),
}


def _rule(transform: Truncation) -> Rule:
    renormalised = isinstance(transform, TopH) and transform.form == "renormalised"
    return RULES["top_h renormalised" if renormalised else transform.name]


def truncate(
    logits: torch.Tensor,
    transforms: Sequence[Sequence[Transform]],
    geometry: Geometry | None = None,
    temperatures: torch.Tensor | None = None,
) -> Crop:
    """Apply each row's truncations, one after the other; each kind runs once, on all rows that ask for it.

    Args:
        logits: `[rows, vocab]` after temperature; they are left as they are. Smaller types are taken as float32, which
            is what comes back: sums of many probabilities need it.
        transforms: for each row its own, or none; an adaptive temperature among them has been at work before.
        geometry: from `waver.entropy.geometry.whiten`, where `needs_geometry`.
        temperatures: `[rows]`, what the logits were divided by, where a transform selects at one of its own.

    Returns:
        A `Crop`; rows without a truncation have their logits as they were, and `kept` 0.

    Raises:
        ValueError: the geometry is needed, and there is none.
    """
    rows = len(transforms)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    out: Crop | None = None
    wanted = [truncations(own) for own in transforms]
    for place in range(max(map(len, wanted), default=0)):
        groups: dict[Rule, list[int]] = defaultdict(list)
        for row, own in enumerate(wanted):
            if place < len(own):
                groups[_rule(own[place])].append(row)
        for rule, chosen in groups.items():
            asked = [wanted[row][place] for row in chosen]
            if len(chosen) == rows:
                out = rule(logits if out is None else out.logits, asked, temperatures, geometry)
                continue
            if out is None:
                out = _untouched(logits.clone())
            index = to_device(chosen, logits.device)
            heat = None if temperatures is None else temperatures[index]
            part = rule(out.logits[index], asked, heat, geometry)
            for whole, own_part in zip(out, part, strict=True):
                whole[index] = own_part
    return _untouched(logits) if out is None else out


def _untouched(logits: torch.Tensor) -> Crop:
    rows = len(logits)
    return Crop(logits, torch.zeros(rows, dtype=torch.long, device=logits.device), logits.new_zeros(rows))
