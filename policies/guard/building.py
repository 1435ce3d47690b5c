"""Grow a guard offline, from files that somebody has read: rules with an example each, and labelled requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from waver.engines.projector import Projector
from waver.policies.guard import gate
from waver.policies.guard.memory import Guard, Record, Rule, grown
from waver.policies.guard.tree import RuleTree
from waver.retrieval.embedder import Embedder

LEAK, KEPT = 0.01, 0.1
"""Shares of held-out requests that set the thresholds: at most so many harmful ones have a smaller S_harm than `low`,
which is 0.2 at most, and so many harmless ones a smaller S_benign than `high`."""
Floats = npt.NDArray[np.float32]
Model = TypeVar("Model", bound=BaseModel)


class Example(BaseModel):
    """A labelled request. Other keys of a line are for people."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    text: str = Field(min_length=1, max_length=4000)
    label: Literal["harmful", "benign"]


def read_rules(file: Path) -> list[Rule]:
    """Read rules, one JSON object a line.

    Raises:
        ValueError: a line holds none; the message names it.
    """
    return _read(file, Rule)


def read_examples(file: Path) -> list[Example]:
    """Read labelled requests, one JSON object a line.

    Raises:
        ValueError: a line holds none; the message names it.
    """
    return _read(file, Example)


def _read(file: Path, model: type[Model]) -> list[Model]:
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(model.model_validate(json.loads(line)))
        except (ValidationError, ValueError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise ValueError(f"{file}, line {number}: {reason}") from None
    if not found:
        raise ValueError(f"{file} is empty")
    return found


def built(
    embedder: Embedder,
    rules: Sequence[Rule],
    examples: Sequence[Example],
    fit: Callable[[Floats, Floats], Projector],
    threshold: float,
    held_out: float,
    seed: int,
) -> Guard:
    """Grow a guard; the thresholds are set by the examples that are held out, if there are any of both labels.

    Args:
        fit: makes a projector of unit vectors `[n, dimension]` and labels `[n]`, 1 for harmful.

    Raises:
        ValueError: there are not examples of both labels.
    """
    vectors = embedder.embed([each.text for each in examples])
    harmful = np.array([each.label == "harmful" for each in examples])
    held = np.random.default_rng(seed).random(len(examples)) < held_out
    projector = fit(vectors[~held], harmful[~held].astype(np.float32))
    benign = vectors[~held & ~harmful]
    about: dict[str, Any] = {
        "examples": len(examples),
        "harmful": int(harmful.sum()),
        "held_out": int(held.sum()),
    }
    record = Record(embedder=embedder.name, fingerprint=embedder.fingerprint, about=about)
    made = grown(record, projector, rules, embedder.embed([r.example for r in rules]), benign, RuleTree(threshold))
    good, bad = vectors[held & ~harmful], vectors[held & harmful]
    if not len(good) or not len(bad):
        return made
    low = min(float(np.quantile(harms(made, bad), LEAK)), gate.LOW)  # what nobody has seen may look less harmful
    high = float(np.quantile(gate.similarity(good, benign), KEPT))
    limits = {"low": min(max(low, 0.0), 1.0), "high": min(max(high, -1.0), 1.0)}
    passed = np.mean([gate.verdict(*made.scores(each[None]), **limits) for each in good])
    about |= {"held_out_benign_passed": round(float(passed), 3)}
    return Guard(
        record.model_copy(update=limits | {"about": about}), projector, made.rules, made.clusters, made.vectors
    )


def harms(guard: Guard, vectors: Floats) -> npt.NDArray[np.float64]:
    """Return S_harm of each of some vectors."""
    return np.array([guard.scores(each[None])[0] for each in vectors])
