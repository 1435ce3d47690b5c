"""Weigh the grains of episodes by how sure each is of a question, and rank episodes (MemGAS, arXiv 2505.19549).

With p^g the softmax of the question's similarities at grain g over the temperature lambda, and H_g its entropy in nats:

    paper:   w_g = (1 / H_g) / sum (1 / H_g')
    bounded: w_g = u_g / sum u_g',  u_g = max(1e-6, 1 - H_g / ln max(N, 2))

A grain at which few episodes stand out has a small entropy, and more weight. `bounded` is that of the packaged code,
and the default: with many episodes all H_g are near ln N, and the paper's weights near 1/4. The research code's
(1 - H_g) / sum (1 - H_g') gives more weight to flat grains, and negative ones, where entropies exceed 1 nat.

The nodes w_g * sim(q, i, g) of the most similar grains are where a walk over the links begins (`graph.walk`); an
episode's score is the sum over its four nodes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch

from waver.entropy.shannon import shannon_entropy
from waver.retrieval.memory.graph import Floats, Links, walk

Weighting = Literal["bounded", "paper"]
LEAST = 1e-6


class Ranking(NamedTuple):
    """The entropies (nats) and weights of the grains `[4]`, and the scores of episodes `[episodes]`."""

    entropies: Floats
    weights: Floats
    scores: Floats


def entropies(similarities: Floats, temperature: float) -> Floats:
    """Return the entropy of each grain, `[4]` in nats, of similarities `[episodes, 4]`."""
    found: Floats = shannon_entropy(torch.from_numpy(similarities.T / temperature)).numpy()
    return found


def grain_weights(entropy: Floats, episodes: int, rule: Weighting = "bounded") -> Floats:
    """Return the weights of grains, `[4]`, their sum 1."""
    if rule == "paper":
        raw = 1 / np.maximum(entropy, LEAST)
    else:
        raw = np.maximum(1 - entropy / np.log(max(episodes, 2)), LEAST)
    weights: Floats = raw / raw.sum()
    return weights


def restart(similarities: Floats, weights: Floats, seeds: int) -> Floats:
    """Return where walks begin, `[4 * episodes]`, their sum 1: at the `seeds` highest weighted similarities; anywhere
    where none of these is positive."""
    scores = (similarities * weights).ravel()
    kept = np.zeros_like(scores)
    order = np.argsort(-scores, kind="stable")[:seeds]
    kept[order] = np.clip(np.nan_to_num(scores[order], nan=0.0), 0.0, None)
    total = kept.sum()
    return kept / total if total > 0 else np.full(len(kept), 1 / len(kept))


def rank(
    similarities: Floats,
    links: Links,
    temperature: float,
    seeds: int,
    damping: float,
    rule: Weighting = "bounded",
) -> Ranking:
    """Score episodes of which there is at least one.

    Args:
        similarities: of the question with each episode at each grain `[episodes, 4]`. links: of nodes `[links, 2]`.
        temperature: lambda. seeds: nodes at which walks begin (alpha). damping: d.
    """
    entropy = entropies(similarities, temperature)
    weights = grain_weights(entropy, len(similarities), rule)
    nodes = walk(links, restart(similarities, weights, seeds), damping)
    return Ranking(entropy, weights, nodes.reshape(similarities.shape).sum(axis=1))
