"""List the families of constraints, and read constraints from data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from waver.training.tasks.instructions import layout, wording
from waver.training.tasks.instructions.base import Constraint

FAMILIES: dict[str, type[Constraint]] = {
    each.model_fields["kind"].default: each
    for each in (
        *(wording.Words, wording.Sentences, wording.Keywords, wording.Frequency, wording.Forbidden),
        *(wording.LetterFrequency, wording.Language, wording.Upper, wording.Lower, wording.CapitalWords),
        *(wording.NoCommas, layout.Paragraphs, layout.ParagraphStart, layout.Bullets, layout.Sections),
        *(layout.Placeholders, layout.Highlights, layout.Title, layout.Json, layout.Choice, layout.Postscript),
        *(layout.Ending, layout.Quotation, layout.Repeat, layout.TwoAnswers),
    )
}
"""IFEval's 25 kinds of instructions by the name that data gives them."""


def parse(rows: Any) -> list[Constraint]:
    """Read constraints, each a mapping with a `kind` and what that kind needs. Values of None count as left out, as
    tables fill them in.

    Raises:
        ValueError: one cannot be read; the message is for the user.
    """
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise ValueError("`constraints` is a list of at least one object with a `kind`")
    return [_one(row) for row in rows]


def _one(row: Any) -> Constraint:
    if isinstance(row, Constraint):
        return row
    if not isinstance(row, Mapping) or row.get("kind") not in FAMILIES:
        named = row.get("kind") if isinstance(row, Mapping) else row
        raise ValueError(f"there is no constraint of the kind {named!r}; there are {', '.join(FAMILIES)}")
    try:
        return FAMILIES[row["kind"]](**{name: value for name, value in row.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{row['kind']}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
