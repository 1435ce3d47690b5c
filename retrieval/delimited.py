"""CSV and its like as a table: a line for each row, in which every value has its column's name before it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from waver.retrieval.base import BadDocument, Parsed, TooLarge
from waver.retrieval.tables import Cell, Table

DELIMITERS = ",;\t|"
SAMPLE = 65_536
"""Characters by which the delimiter is told."""


def delimited(content: str, most: int) -> Parsed:
    """Read a text of delimited values; the first row names the columns, if it can.

    Args:
        most: characters that the text may have.

    Raises:
        BadDocument: it is no such text.
        TooLarge: it has more characters.
    """
    content = content.lstrip("\ufeff")
    csv.field_size_limit(max(most, 1))
    # Of a sample that ends within a row the last line says nothing.
    sample = content if len(content) <= SAMPLE else content[:SAMPLE].rpartition("\n")[0]
    try:
        rows = [row for row in csv.reader(io.StringIO(content, newline=""), delimiter=delimiter(sample)) if any(row)]
    except csv.Error as error:
        raise BadDocument(f"it is no table of delimited values: {error}") from error
    table, size = Table(), 0
    header = bool(rows) and names_columns(rows[0], rows[1:])
    for number, row in enumerate(rows):
        table.rows.append([])
        for value in row:
            table.add(Cell(header and number == 0, text=value))
    lines = []
    for line in table.lines():
        size += len(line)
        if size > most:
            raise TooLarge(f"its text is larger than {most} bytes")
        lines.append(line)
    uneven = sum(len(row) != len(rows[0]) for row in rows)
    warnings = (f"{uneven} of its {len(rows)} rows have more or fewer values than the first",) if uneven else ()
    return Parsed("", "\n".join(lines), warnings=warnings)


def delimiter(sample: str) -> str:
    """Return the delimiter that cuts the most lines into equally many values, more than one; a comma if none does."""
    best, score = ",", (0.0, 0)
    for each in DELIMITERS:
        try:
            counts = [len(row) for row in csv.reader(io.StringIO(sample, newline=""), delimiter=each) if row]
        except csv.Error:
            continue
        if not counts:
            continue
        usual = max(set(counts), key=counts.count)
        found = (counts.count(usual) / len(counts), usual)
        if usual > 1 and found > score:
            best, score = each, found
    return best


def names_columns(first: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """Tell whether a row names columns: there are others, and its values are words, all different."""
    names = [value.strip() for value in first]
    return bool(others) and all(names) and len(set(names)) == len(names) and not any(map(is_number, names))


def is_number(value: str) -> bool:
    """Tell whether a value is a number, a date or a time, rather than a name."""
    return any(c.isdigit() for c in value) and not any(c.isalpha() for c in value)
