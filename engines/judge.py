"""A judge: how probable it is that a run is right, by its entropy trace alone (Entropy Judger, arXiv 2602.04234).

It is a folder with `judge.safetensors` (trees and medians) and `judge.json` (the `Record`). The scale of entropies
depends on the model and on how they were taken, so a judge carries both and is refused elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from waver.engines.base import reason
from waver.engines.boosting import ARRAYS, Trees
from waver.engines.fingerprint import Fingerprint


class Convention(BaseModel):
    """Convention in which traces were taken.

    `entropy`: of the distribution that is drawn from, after temperature and truncation (`drawn`), or of the model's own
    (`raw`). `beside`: names of other policies that were in force.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    entropy: Literal["drawn", "raw"] = "drawn"
    temperature: float = 0.6
    top_p: float = 0.95
    topology: str = "single"
    rounds: int = 1
    compared: bool = False
    """True if a single solver's run was there to compare with."""
    beside: tuple[str, ...] = ()

    def differences(self, other: Convention) -> str:
        """Name what differs, with this side's value first."""
        mine, its = self.model_dump(), other.model_dump()
        return ", ".join(f"{name} {mine[name]} and not {its[name]}" for name in mine if mine[name] != its[name])


class Record(BaseModel):
    """The purpose of a judge and its training. `models` are fingerprints by role; `about` is for people."""

    model_config = ConfigDict(extra="forbid")

    model: str
    convention: Convention
    features: tuple[str, ...]
    models: dict[str, Fingerprint]
    about: dict[str, Any] = {}


@dataclass(frozen=True)
class Judge:
    """Trees over a run's features. `medians` `[features]` are those of the training runs; they stand in for NaN."""

    trees: Trees
    medians: NDArray[np.float64]
    record: Record

    def __call__(self, features: Mapping[str, float]) -> float:
        """Compute the probability that a run with these features is right."""
        row = np.array([features.get(name, math.nan) for name in self.record.features], np.float64)
        return float(self.trees.probability(np.where(np.isnan(row), self.medians, row)[None])[0])

    def misfit(self, convention: Convention, models: Mapping[str, Fingerprint]) -> str | None:
        """Explain why this judge cannot judge runs of these models taken in this way; None where it can."""
        if differences := self.record.convention.differences(convention):
            return f"this judge was trained with {differences}"
        if set(models) != set(self.record.models):
            return f"this judge was trained on the roles {', '.join(self.record.models)}"
        for role, own in self.record.models.items():
            if unlike := own.unlike(models[role]):
                return f"this judge was trained on {self.record.model}, and the {role}'s engine is {unlike}"
        return None

    def save(self, folder: Path) -> None:
        """Write the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {**self.trees.arrays(), "medians": self.medians}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "judge.safetensors")
        (folder / "judge.json").write_text(self.record.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """Read the folder.

        Raises:
            ValueError: there is no judge, or it is damaged.
        """
        try:
            record = Record.model_validate_json((folder / "judge.json").read_text(encoding="utf-8"))
            arrays = load_file(folder / "judge.safetensors")
            medians = np.asarray(arrays.pop("medians"), np.float64)
            if medians.shape != (len(record.features),) or set(arrays) != set(ARRAYS):
                raise ValueError("its arrays do not fit together")
            return cls(Trees.of(arrays, len(medians)), medians, record)
        except FileNotFoundError as error:
            raise ValueError(f"{folder} holds no judge: {Path(error.filename).name} is missing") from error
        except (ValidationError, SafetensorError, KeyError, ValueError, OSError) as error:
            raise ValueError(f"the judge in {folder} cannot be read: {reason(error)}") from error
