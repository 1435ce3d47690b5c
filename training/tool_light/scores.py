"""Score answers of models with tools: F1 of words, efficiency, and necessity of their calls (arXiv 2509.23285)."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = {"a", "an", "the"}


def words(text: str) -> list[str]:
    """Return the words of an answer, without articles, case and punctuation."""
    plain = "".join(each for each in text.lower() if each not in string.punctuation)
    return [word for word in plain.split() if word not in ARTICLES]


def f1(said: str, known: str) -> float:
    """Compute the F1 of the words of an answer."""
    one, two = Counter(words(said)), Counter(words(known))
    shared = sum((one & two).values())
    if not one or not two:
        return float(one == two)
    return 2 * shared / (one.total() + two.total())


def efficiency(correct: Sequence[float], calls: Sequence[int], skip_uncalled: bool = False) -> float:
    """Compute the mean of correctness over calls of tools.

    Args:
        skip_uncalled: leave out items without a call, as is done for mathematics; else they count as one call.
    """
    kept = [(m, t) for m, t in zip(correct, calls, strict=True) if t or not skip_uncalled]
    return sum(m / max(1, t) for m, t in kept) / len(kept) if kept else 0.0


def necessity(correct: Sequence[Sequence[float]], calls: Sequence[Sequence[int]]) -> tuple[list[float], list[float]]:
    """Compare the calls of methods on the same items, `[methods][items]`: for each item that one answers right, every
    other with fewer calls adds 1 where it is wrong and takes 1 where it is right.

    Returns:
        The means over items, and the same scaled to 0 and 1 over the methods: figures of other sets of methods cannot
        be compared.
    """
    raw = []
    for own, (marks, counts) in enumerate(zip(correct, calls, strict=True)):
        total = 0.0
        for item, mark in enumerate(marks):
            fewer = [b for b in range(len(correct)) if b != own and calls[b][item] < counts[item]]
            total += sum(1 if correct[b][item] < 1 else -1 for b in fewer) if mark >= 1 else 0
        raw.append(total / len(marks))
    low, high = min(raw), max(raw)
    return raw, [(each - low) / (high - low) if high > low else 0.0 for each in raw]
