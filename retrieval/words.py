"""Split texts of any language into the words of lexical search.

Texts are normalised (NFKC; soft hyphens and characters that cannot be seen are dropped). Scripts that are written
without spaces become overlapping pairs of characters, as in Lucene's CJKAnalyzer, so that a part of a compound is
found; Latin letters and digits between them are words of their own.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from itertools import pairwise

COMMON = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with".split()
)
"""Words that are not looked for, unless there are no others: Lucene's list."""
LOOKED_AT = 32_768
"""Characters of a question in which they are looked for, before and after it is normalised: a character may stand for
18 others."""
MOST = 256
"""Of a question; long questions are looked for by their first different words."""
_HAN = "々〆〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_HANGUL = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
_SOUTH_EAST = "\u0e01-\u0e4e\u0e81-\u0ece\u1000-\u109f\u1780-\u17d3\ua9e0-\ua9fe\uaa60-\uaa7f"
"""Thai, Lao, Burmese, Khmer."""
_UNSPACED = re.compile(f"[{_HAN}{_KANA}{_HANGUL}{_SOUTH_EAST}]++")
_GREEK = re.compile("[\u0370-\u03ff\u1f00-\u1fff]++")
_UNSEEN = re.compile("[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
                     "\ufe00-\ufe0f\ufeff\ufff9-\ufffb\U000e0000-\U000e01ef]++")  # fmt: skip

_POINTS = re.compile("[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u0652\u0656-\u065f"
                     "\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed]++")  # fmt: skip
"""Of Hebrew and Arabic, with the stroke that only stretches a word."""


def normalised(text: str) -> str:
    """Return a text in compatibility form, without soft hyphens and characters that cannot be seen, and without what
    the same word is written with or without: the accents of Greek, the vowel points of Arabic and Hebrew, `ß` for
    `ss`."""
    if text.isascii():
        return text
    text = _POINTS.sub("", unicodedata.normalize("NFKC", _UNSEEN.sub("", text)))
    return _GREEK.sub(_bare, text.replace("ß", "ss").replace("ẞ", "SS"))


def _bare(run: re.Match[str]) -> str:
    letters = unicodedata.normalize("NFD", run[0]).replace("ς", "σ")
    return "".join(letter for letter in letters if unicodedata.category(letter) != "Mn")


def spaced(text: str) -> str:
    """Return a text, normalised, whose words stand apart in every script: what the index of words holds. Of scripts
    without spaces it has every character and every pair of neighbours."""
    return text if text.isascii() else _UNSPACED.sub(_units_and_pairs, normalised(text))


def _units(run: str) -> list[str]:
    """Split a run into characters, each with its vowel signs and tone marks."""
    units: list[str] = []
    for character in run:
        if units and unicodedata.category(character)[0] == "M":
            units[-1] += character
        else:
            units.append(character)
    return units


def _pairs(run: re.Match[str]) -> str:
    units = _units(run[0])
    return f" {' '.join(a + b for a, b in pairwise(units))} " if len(units) > 1 else f" {run[0]} "


def _units_and_pairs(run: re.Match[str]) -> str:
    units = _units(run[0])
    return f" {' '.join([*units, *(a + b for a, b in pairwise(units))])} "


def words(text: str) -> list[str]:
    """Return all words of a text that is indexed, in lower case. Marks on letters (Indic vowels, say) are parts of
    words."""
    return _word().findall(spaced(text).lower())


@cache
def _word() -> re.Pattern[str]:
    """Return the pattern of a word: letters, digits and marks, which `\\w` lacks."""
    marks = "".join(chr(code) for code in range(0x20000) if unicodedata.category(chr(code))[0] == "M")
    return re.compile(f"(?:[^\\W_]++|[{marks}]++)++")


def search_terms(question: str) -> list[str]:
    """Return the distinct search terms of a question, at most `MOST`: pairs of characters in scripts without spaces, or
    the character where it stands alone."""
    return wanted(question)[:MOST]


def repeated_terms(question: str) -> list[str]:
    """Return the search terms of a question as often as it has them: first the different ones, then repetitions, all
    together at most `MOST`. BM25 adds up over all of them, as Lucene does: what a question repeats it is about."""
    counts = term_counts(question)
    kept = list(counts)[:MOST]
    return [*kept, *(word for word in kept for _ in range(counts[word] - 1))][:MOST]


def term_counts(text: str) -> Counter[str]:
    """Count the search terms of a text, in the order in which they first stand there."""
    return Counter(_terms(text))


def wanted(question: str) -> list[str]:
    """Return all distinct words of a question that are worth looking for."""
    return list(term_counts(question))


def _terms(question: str) -> list[str]:
    text = _UNSPACED.sub(_pairs, normalised(question[:LOOKED_AT])[:LOOKED_AT])
    found = _word().findall(text.lower())
    return [word for word in found if word not in COMMON] or found
