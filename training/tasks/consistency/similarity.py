"""Compare two short texts: BLEU of low order, ROUGE-L, exact match, and the F1 of their words.

A similarity is in [0, 1] and takes a candidate and a reference, in that order: BLEU is not symmetric.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

Similarity = Callable[[str, str], float]
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
MARKS = re.compile(r"[^\w\s]")


def bleu(candidate: str, reference: str, order: int) -> float:
    """Return the geometric mean of the clipped n-gram precisions up to an order, times the brevity penalty exp(1 -
    |r| / |c|) of a candidate that is not longer. Words are lower-cased and divided at spaces.

    Of a text with fewer words than the order the largest order that it has counts, or a one-word answer would have no
    similarity to itself. 0 where a precision is 0.
    """
    c, r = candidate.lower().split(), reference.lower().split()
    order = min(order, len(c), len(r))
    if not order:
        return 0.0
    logs = []
    for n in range(1, order + 1):
        found, known = _runs(c, n), _runs(r, n)
        hits = sum(min(count, known[run]) for run, count in found.items())
        if not hits:
            return 0.0
        logs.append(math.log(hits / sum(found.values())))
    penalty = math.exp(1 - len(r) / len(c)) if len(c) <= len(r) else 1.0
    return penalty * math.exp(sum(logs) / order)


def _runs(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu1(candidate: str, reference: str) -> float:
    """Return BLEU of single words."""
    return bleu(candidate, reference, 1)


def bleu2(candidate: str, reference: str) -> float:
    """Return BLEU of words and pairs."""
    return bleu(candidate, reference, 2)


def bleu3(candidate: str, reference: str) -> float:
    """Return BLEU up to runs of three words."""
    return bleu(candidate, reference, 3)


def rouge_l(candidate: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words."""
    c, r = candidate.lower().split(), reference.lower().split()
    if not c or not r:
        return 0.0
    row = [0] * (len(r) + 1)
    for word in c:
        before = 0
        for place, other in enumerate(r, 1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return 2 * row[-1] / (len(c) + len(r))


def plain(text: str) -> str:
    """Return a text without case, marks, articles and spare spaces, as answers of question answering are compared."""
    return " ".join(ARTICLES.sub(" ", MARKS.sub(" ", text.lower())).split())


def exact(candidate: str, reference: str) -> float:
    """Return 1 where the plain texts are equal."""
    return float(plain(candidate) == plain(reference))


def token_f1(candidate: str, reference: str) -> float:
    """Return the F1 of the words of the plain texts."""
    c, r = plain(candidate).split(), plain(reference).split()
    common = sum((Counter(c) & Counter(r)).values())
    return 2 * common / (len(c) + len(r)) if common else 0.0


SIMILARITIES: dict[str, Similarity] = {
    "bleu1": bleu1,
    "bleu2": bleu2,
    "bleu3": bleu3,
    "rouge_l": rouge_l,
    "exact": exact,
}
"""By the name that options give them."""
