"""Similarities of texts in [0, 1]: by sentence embeddings, by entailment (NLI), or by shared words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from waver.engines.base import Unsupported
from waver.policies.services import Services
from waver.policies.uncertainty.evidence import Matrix

Kind = Literal["embedding", "abs", "nli", "words"]
SENTENCE = re.compile(r"[^.!?\n]+")


def of_cosines(cosines: Matrix, kind: Kind) -> Matrix:
    """Turn cosines into similarities: `(1 + cos) / 2` as in the paper, or `|cos|` as in its released code (`abs`)."""
    a = np.abs(cosines) if kind == "abs" else (1 + cosines) / 2
    return np.clip(a, 0.0, 1.0)


def shared_words(left: Sequence[str], right: Sequence[str]) -> Matrix:
    """Compute Jaccard similarities of the texts' words, `[left, right]`; two texts without words are alike."""
    a, b = ([frozenset(re.findall(r"\w+", text.lower())) for text in texts] for texts in (left, right))
    return np.array([[len(x & y) / len(x | y) if x | y else 1.0 for y in b] for x in a], np.float64)


async def between(left: Sequence[str], right: Sequence[str], kind: Kind, services: Services) -> Matrix:
    """Compare texts with texts: `[left, right]`. By entailment two texts are as alike as the mean of both directions,
    and equal ones are alike.

    Raises:
        Unsupported: there is no embedder, or no model that tells entailment. RetrievalError: it cannot be loaded.
    """
    if kind == "words":
        return shared_words(left, right)
    if kind == "nli":
        forth, back = await _entailed(left, right, services), await _entailed(right, left, services)
        same = np.array([[x == y for y in right] for x in left])
        return np.asarray(np.where(same, 1.0, (forth + back.T) / 2), np.float64)
    library, embedder = services.library, services.embedder
    if library is None or embedder is None:
        raise Unsupported('there is no embedder here: compare by "similarity": "words"', "similarity")
    texts = list(dict.fromkeys([*left, *right]))
    vectors = np.asarray(await library.compute(embedder.embed, texts), np.float64)
    place = {text: i for i, text in enumerate(texts)}
    a, b = (vectors[[place[text] for text in own]] for own in (left, right))
    return of_cosines(a @ b.T, kind)


async def among(texts: Sequence[str], kind: Kind, services: Services) -> Matrix:
    """Compare texts with each other: symmetric, with 1 on the diagonal and for texts that are equal.

    Raises:
        Unsupported, RetrievalError: as `between`.
    """
    out = await between(texts, texts, kind, services)
    same = np.array([[x == y for y in texts] for x in texts])
    return np.where(same, 1.0, (out + out.T) / 2)


async def support(answers: Sequence[str], kind: Kind, services: Services) -> Matrix:
    """Tell how far each answer's sentences are supported by each other answer, on average: `[answers, answers]`."""
    sentences = [[s.strip() for s in SENTENCE.findall(text) if s.strip()] or [text] for text in answers]
    flat = [s for own in sentences for s in own]
    if kind == "nli":  # what an answer says has to follow from another one, and not the other way round
        table = (await _entailed(answers, flat, services)).T
    else:
        table = await between(flat, answers, kind, services)
    ends = np.cumsum([len(own) for own in sentences])
    return np.stack([part.mean(0) for part in np.split(table, ends[:-1])])


async def _entailed(premises: Sequence[str], conclusions: Sequence[str], services: Services) -> Matrix:
    """Return how probably each conclusion follows from each premise, `[premises, conclusions]`.

    Raises:
        Unsupported: there is no model for it.
    """
    if services.entailment is None:
        raise Unsupported('there is no model of entailment here: compare by "similarity": "words"', "similarity")
    pairs = list(dict.fromkeys((a, b) for a in premises for b in conclusions))
    known = dict(zip(pairs, await services.entailment.probabilities(pairs), strict=True))
    return np.array([[known[a, b] for b in conclusions] for a in premises], np.float64)
