"""Tables as text: a line for each row, in which every value has its column's name before it.

A row that says what its values are can be found and read without the rows above it. Lines begin with `MARK`, so that
chunks are not cut inside of them (`waver.retrieval.chunking`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

MARK = "| "
LABEL = 60
"""Characters of a column's name that is repeated in every row; longer ones stand in the header alone."""


@dataclass
class Cell:
    """One cell: `columns` and `rows` are what it spans."""

    header: bool
    columns: int = 1
    rows: int = 1
    text: str = ""


@dataclass
class Table:
    """A table under way. `layout`: it arranges parts of a page, and its cells are no values."""

    layout: bool = False
    rows: list[list[Cell]] = field(default_factory=list)
    open: Cell | None = None

    def add(self, cell: Cell) -> None:
        if not self.rows:
            self.rows.append([])
        self.rows[-1].append(cell)

    @property
    def size(self) -> int:
        """Characters in all cells."""
        return sum(len(cell.text) for row in self.rows for cell in row)

    @property
    def is_layout(self) -> bool:
        """Tell whether the cells are blocks of text: also where there is one column only."""
        return self.layout or max((sum(cell.columns for cell in row) for row in self.rows), default=0) < 2

    def lines(self) -> Iterator[str]:
        """One line for each row, or one block for each cell of a layout; nothing for what is empty."""
        if self.is_layout:
            yield from (cell.text for row in self.rows for cell in row if cell.text.strip())
            return
        names: dict[int, str] = {}
        in_header = True
        for row, cells in self._placed():
            in_header = in_header and bool(row) and all(cell.header for cell in row)
            values = {column: " ".join(text.split()) for column, text in cells.items()}
            if in_header:
                for column, value in values.items():
                    known = names.get(column, "")
                    names[column] = f"{known} {value}".strip() if value != known else known
            else:
                values = {column: labelled(names.get(column, ""), value) for column, value in values.items()}
            if any(values.values()):
                yield f"{MARK}{' | '.join(values[column] for column in sorted(values))} |"

    def _placed(self) -> Iterator[tuple[list[Cell], dict[int, str]]]:
        """Each row with its texts by column; a cell that spans rows counts in each of them."""
        above: dict[int, tuple[int, str]] = {}
        for row in self.rows:
            cells = {column: text for column, (_, text) in above.items()}
            above = {column: (left - 1, text) for column, (left, text) in above.items() if left > 1}
            column = 0
            for cell in row:
                while column in cells:
                    column += 1
                cells[column] = cell.text
                for spanned in range(column, column + cell.columns):
                    if cell.rows > 1:
                        above[spanned] = (cell.rows - 1, cell.text if spanned == column else "")
                    if spanned != column and cell.header and cell.text:
                        cells.setdefault(spanned, "")
                column += cell.columns
            yield row, cells


def labelled(name: str, value: str) -> str:
    """A value after its column's name, where both are there and differ."""
    if not name or not value or name == value or len(name) > LABEL:
        return value
    return f"{name.rstrip(':')}: {value}"
