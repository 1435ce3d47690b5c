"""Other wordings of a question: paraphrases by an engine, or by a genetic algorithm (GAAP; arXiv 2506.09684).

GAAP starts from copies of the question with one keyword replaced and crosses and mutates them, so that wordings go from
mild to strong. The paper takes substitutes from WordNet, which needs data of its own; here an engine is asked for words
of the same, a broader and a narrower meaning.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WORD = re.compile(r"\w+|[^\w\s]")
LISTED = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s*")
PARAPHRASE = (
    "Write {count} other ways to ask the question below. Keep its meaning and everything that it says. One to a line, "
    "and nothing else.\n\n{question}"
)
SUBSTITUTES = (
    'List up to {count} single words that could stand in place of the word "{word}": words of the same meaning, of a '
    "broader meaning and of a narrower meaning. Separate them by commas, and write nothing else."
)
MOST_SUBSTITUTES = 8

Alike = Callable[[Sequence[str]], Awaitable[list[float]]]
"""From texts to how alike each is to the question."""


def listed(text: str) -> list[str]:
    """Read one text from each line, without numbers and bullets; each of them once."""
    lines = (LISTED.sub("", line).strip().strip('"').strip() for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line))


def exactly(found: Sequence[str], count: int, question: str) -> list[str]:
    """Thin or repeat texts to exactly `count`, so that scores of different questions can be compared; copies of the
    question where there are none."""
    own = [each for each in found if each != question] or [question]
    if len(own) >= count:
        return [own[round(i)] for i in np.linspace(0, len(own) - 1, count)]
    return [own[i % len(own)] for i in range(count)]


@dataclass(frozen=True)
class Gaap:
    """Settings of the genetic algorithm. The paper gives `delta` alone; the others are ours."""

    delta: float = 0.7
    ratio: float = 0.3
    generations: int = 10
    every: int = 2
    population: int = 50


def keywords(tokens: Sequence[str], relevance: Sequence[float], ratio: float) -> list[int]:
    """Choose the places of the `int(ratio * tokens)` most relevant words, at least one."""
    count = max(1, int(ratio * len(tokens)))
    places = [i for i, token in enumerate(tokens) if token.isalnum()]
    return sorted(sorted(places, key=lambda i: -relevance[i])[:count])


def roulette(similarities: Sequence[float]) -> list[float]:
    """Return the probability by which each is chosen as a parent: its share of all similarities."""
    whole = sum(similarities)
    return [each / whole for each in similarities]


def joined(tokens: Sequence[str]) -> str:
    """Write tokens as a text, without spaces before punctuation."""
    return "".join(token if not token[:1].isalnum() else f" {token}" for token in tokens).strip()


async def gaap(
    question: str, alike: Alike, substitutes: Mapping[str, Sequence[str]], count: int, rng: random.Random,
    how: Gaap = Gaap(),
) -> list[str]:  # fmt: skip
    """Make `count` wordings of a question.

    Args:
        substitutes: for each keyword of the question what may stand in its place; besides, it may be left out.
    """
    tokens = WORD.findall(question)
    at = [i for i, token in enumerate(tokens) if token in substitutes]
    begun = [[*tokens[:i], *new, *tokens[i + 1 :]] for i in at for new in _choices(tokens[i], substitutes)]
    if not begun:
        return exactly([], count, question)
    population = begun
    pools = [begun]
    for generation in range(1, how.generations + 1):
        similarities = await alike([joined(each) for each in population])
        if max(similarities) < how.delta:
            break
        parents = rng.choices(population, roulette(similarities), k=min(how.population // 3, 2 * len(population)))
        offspring = [child for a, b in zip(parents[::2], parents[1::2], strict=False) for child in crossed(a, b, rng)]
        mutants = [mutated(each, substitutes, rng) for each in offspring]
        population = [*parents, *offspring, *mutants][: how.population]
        if generation % how.every == 0:
            pools.append(population)
    share = -(-count // len(pools))
    made = [joined(each) for pool in pools for each in rng.sample(pool, min(share, len(pool)))]
    return exactly(list(dict.fromkeys(each for each in made if each)), count, question)


def crossed(a: Sequence[str], b: Sequence[str], rng: random.Random) -> list[list[str]]:
    """Swap the tails of two wordings behind one point."""
    shorter = min(len(a), len(b))
    if shorter < 2:
        return [list(a), list(b)]
    h = rng.randint(1, shorter - 1)
    return [[*a[:h], *b[h:]], [*b[:h], *a[h:]]]


def mutated(tokens: Sequence[str], substitutes: Mapping[str, Sequence[str]], rng: random.Random) -> list[str]:
    """Replace one token by one of its substitutes, if the token that is drawn has any."""
    if not tokens:
        return []
    i = rng.randrange(len(tokens))
    new = rng.choice(_choices(tokens[i], substitutes)) if tokens[i] in substitutes else [tokens[i]]
    return [*tokens[:i], *new, *tokens[i + 1 :]]


def _choices(token: str, substitutes: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """List what may stand in place of a token: each substitute, or nothing."""
    return [*([each] for each in substitutes[token]), []]
