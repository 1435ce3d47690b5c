"""Truncations written from their formulas alone: one distribution at a time, loops, float64, none of our code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Vector = np.ndarray
FLOOR = 1e-12


def softmax(z: Vector) -> Vector:
    w = np.exp(np.asarray(z, dtype=np.float64) - np.max(z))
    return w / w.sum()


def entropy(p: Sequence[float]) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def descending(p: Vector) -> list[int]:
    return [int(i) for i in np.argsort(-p, kind="stable") if p[i] > 0]


def top_p(p: Vector, z: Vector, a: float) -> set[int]:
    kept, before = set(), 0.0
    for i in descending(p):
        if before < a or not kept:
            kept.add(i)
        before += p[i]
    return kept


def min_p(p: Vector, z: Vector, a: float) -> set[int]:
    return {i for i in descending(p) if p[i] >= a * max(p)}


def epsilon(p: Vector, z: Vector, e: float) -> set[int]:
    return {i for i in descending(p) if p[i] >= min(e, max(p))}


def eta(p: Vector, z: Vector, e: float) -> set[int]:
    cut = min(e, math.sqrt(e) * math.exp(-entropy(p)))
    return {i for i in descending(p) if p[i] >= min(cut, max(p))}


def typical(p: Vector, z: Vector, a: float) -> set[int]:
    h = entropy(p)
    s = {i: abs(-math.log(p[i]) - h) for i in descending(p)}
    mass = 0.0
    for last in sorted(s, key=lambda i: s[i]):
        mass += p[last]
        if mass >= a:
            break
    return {i for i in s if s[i] <= s[last]}


def top_n_sigma(p: Vector, z: Vector, n: float) -> set[int]:
    finite = [x for x in z if x > -math.inf]
    sigma = float(np.std(finite, ddof=1)) if len(finite) > 1 else 0.0
    return {i for i in range(len(z)) if z[i] >= max(finite) - n * sigma}


def top_h_renormalised(p: Vector, z: Vector, a: float) -> set[int]:
    kept: list[int] = []
    limit = a * entropy(p)
    for i in descending(p):
        mass = sum(p[j] for j in [*kept, i])
        if kept and a < 1 and entropy([p[j] / mass for j in [*kept, i]]) > limit:
            break
        kept.append(i)
    return set(kept)


def top_h_running(p: Vector, z: Vector, a: float) -> set[int]:
    first = descending(p)[:100]
    total, running, kept = entropy([p[i] for i in first]), 0.0, set()
    for i in first:
        running += -p[i] * math.log(p[i])
        if kept and running > a * total:
            break
        kept.add(i)
    return kept


def whiten(e: Vector) -> Vector:
    e = np.asarray(e, dtype=np.float64)
    mean = e.sum(0) / len(e)
    variance = ((e - mean) ** 2).sum(0) / len(e)
    z = (e - mean) / np.sqrt(np.maximum(variance, 1e-6))
    return np.array([row / max(math.sqrt(float(row @ row)), 1e-12) for row in z])


def distance(unit: Vector, i: int, j: int, metric: str) -> float:
    if i == j:
        return 0.0
    cosine = min(1.0, max(-1.0, float(unit[i] @ unit[j])))
    return 1 - cosine if metric == "cosine" else math.sqrt(2 - 2 * cosine)


def potential(unit: Vector, i: int, kept: set[int], kind: str, k: int, metric: str) -> float:
    near = sorted(distance(unit, i, j, metric) for j in kept)
    return -near[0] if kind == "nearest" else -float(np.mean(near[:k]))


def objective(p: Vector, f: dict[int, float], kept: Sequence[int], lam: float, beta: float, g: float) -> float:
    """G_f of a set, by its definition."""
    mass = sum(p[i] for i in kept)
    phi = sum(p[i] * (g * f[i] + lam * math.log(max(p[i], FLOOR))) for i in kept)
    return float(phi / mass + (beta - lam) * math.log(mass))


def top_w(
    z: Vector,
    unit: Vector,
    entropy_weight: float = 2.2,
    mass_weight: float = 2.8,
    pool: int = 1200,
    warm_mass: float = 0.999,
    iterations: int = 9,
    geometry_scale: float = 0.6,
    potential_kind: str = "nearest",
    neighbours: int = 5,
    metric: str = "cosine",
) -> set[int]:
    p = softmax(z)
    everything = descending(p)
    pooled = everything[:pool]
    mass, warm = sum(p[i] for i in pooled), 0.0
    kept: set[int] = set()
    for i in pooled:
        kept.add(i)
        warm += p[i]
        if warm >= warm_mass * mass:
            break
    for _ in range(iterations):
        if mass_weight <= entropy_weight:
            f = {i: potential(unit, i, kept, potential_kind, neighbours, metric) for i in everything}
            best = max(everything, key=lambda i: geometry_scale * f[i] + mass_weight * math.log(max(p[i], FLOOR)))
            chosen = {best}
        else:
            f = {i: potential(unit, i, kept, potential_kind, neighbours, metric) for i in pooled}
            phi = {i: geometry_scale * f[i] + entropy_weight * math.log(max(p[i], FLOOR)) for i in pooled}
            order = sorted(pooled, key=lambda i: -phi[i])
            values, gamma, total = [], 0.0, 0.0
            for i in order:
                gamma += p[i]
                total += p[i] * phi[i]
                values.append(total / gamma + (mass_weight - entropy_weight) * math.log(gamma))
            chosen = set(order[: int(np.argmax(values)) + 1])
        if chosen == kept:
            break
        kept = chosen
    return kept | {everything[0]}
