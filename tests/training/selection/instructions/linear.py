"""Eight linear tasks in one pool: which examples help one of them, known by construction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from waver.training.selection.instructions.gradients import Projection, epoch_weights, unit
from waver.training.selection.instructions.similarity import Floats, Similarity

INPUTS, OUTPUTS, TASKS, TOPICS = 32, 8, 8, 6
RATES = (0.02, 0.015, 0.01, 0.005)
Data = tuple[Floats, Floats]


@dataclass(frozen=True)
class World:
    """A pool of all tasks; queries and test points of the first."""

    pool: Data
    queries: Data
    test: Data


def world(seed: int) -> World:
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(TASKS, INPUTS, OUTPUTS)) / np.sqrt(INPUTS)
    offsets = rng.normal(size=(TOPICS, INPUTS))

    def draw(tasks: Floats) -> Data:
        x = rng.normal(size=(len(tasks), INPUTS)) + offsets[rng.integers(0, TOPICS, len(tasks))]
        y = np.einsum("ni,nio->no", x, maps[tasks.astype(int)]) + 0.3 * rng.normal(size=(len(tasks), OUTPUTS))
        return x, y

    return World(draw(rng.integers(0, TASKS, 4000)), draw(np.zeros(16)), draw(np.zeros(1000)))


def sgd(data: Data, start: Floats, rate: float, epochs: int, rng: np.random.Generator) -> Floats:
    x, y = data
    found = start.copy()
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(x)), max(1, len(x) // 16)):
            found -= rate * x[batch].T @ (x[batch] @ found - y[batch]) / len(batch)
    return found


def loss(found: Floats, data: Data) -> float:
    return float(((data[0] @ found - data[1]) ** 2).mean())


def trained_loss(of: World, places: Floats, seed: int) -> float:
    """Train on these examples and return the loss on the test points."""
    own = of.pool[0][places], of.pool[1][places]
    start = np.zeros((INPUTS, OUTPUTS))
    return loss(sgd(own, start, 0.02, 30, np.random.default_rng(seed)), of.test)


def by_gradients(of: World, seed: int) -> Similarity:
    rng = np.random.default_rng(seed)
    few = rng.permutation(len(of.pool[0]))[:200]
    found = np.zeros((INPUTS, OUTPUTS))
    project = Projection(INPUTS * OUTPUTS, 64)
    kept: list[list[Floats]] = [[], []]
    for rate in RATES:
        found = sgd((of.pool[0][few], of.pool[1][few]), found, rate, 1, rng)
        for place, (x, y) in enumerate((of.queries, of.pool)):
            gradients = np.einsum("ni,no->nio", x, x @ found - y).reshape(len(x), -1)
            kept[place].append(unit(project(torch.tensor(gradients))).numpy())
    queries, pool = (np.stack(each, 1) for each in kept)
    return Similarity(queries, pool, epoch_weights(RATES))


def by_inputs(of: World) -> Similarity:
    queries, pool = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (of.queries[0], of.pool[0]))
    return Similarity(queries[:, None], pool[:, None])
