"""From the elements of a page to its text: one blank line between blocks, one line for a row of a table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from waver.retrieval.base import TooLarge
from waver.retrieval.tables import Cell, Table

Attributes = Mapping[str, str | None]

HIDDEN = frozenset(
    "annotation annotation-xml canvas datalist desc head iframe metadata noframes noscript object script style "
    "template title".split()
)
"""Elements of which a reader sees nothing."""
BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure "
    "footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li listing main menu nav ol optgroup p plaintext pre "
    "search section summary table tbody td tfoot th thead tr ul xmp".split()
)
APART = frozenset({"button", "input", "label", "meter", "option", "output", "progress", "select", "textarea", "text"})
"""Elements in a line that nevertheless stand apart from what is beside them."""
VOID = frozenset("area base br col embed hr img input link meta param source track wbr".split())
PRE = frozenset({"pre", "listing", "xmp", "plaintext", "textarea"})
HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
UNSEEN_VALUES = frozenset({"hidden", "checkbox", "radio", "password", "file", "color", "range"})
"""Types of `input` whose value a reader does not see."""
NONE, SPACE, LINE, PARAGRAPH = range(4)
SEPARATORS = ("", " ", "\n", "\n\n")
_EXPONENT = re.compile(r"[+\-−]?(?:\d++(?:[.,/]\d++)?+[a-zA-Z]?|[a-zA-Z])")
_TERM = re.compile(r"[+\-−*/=(). \w]*+")


@dataclass
class Frame:
    """Text under way: the page's, or that of a cell. `wanted` is the separator before what comes next."""

    pieces: list[str] = field(default_factory=list)
    wanted: int = NONE

    def text(self) -> str:
        return "".join(self.pieces)


@dataclass
class Raised:
    """An open `sup`: where its caret goes, if it gets one, in which frame."""

    frame: Frame
    place: int
    glued: bool


class Flow:
    """Takes the start tags, texts and end tags of a page in order; end tags may be missing or have no start.

    Args:
        most: characters that the text may have.
    """

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._page = self._frame = Frame()
        self._around: list[Frame] = []
        self._tables: list[Table] = []
        self._pre = 0
        self._hidden: str | None = None
        self._depth = 0
        self._raised: list[Raised] = []
        self._heading: tuple[str, Frame, int] | None = None
        self._first: dict[bool, str] = {}

    def start(self, tag: str, attributes: Attributes | None = None) -> None:
        """Take a start tag, in lower case. Elements without an end tag (`VOID`) have none."""
        attributes = attributes or {}
        if self._hidden is not None:
            self._depth += tag == self._hidden
            return
        if tag in HIDDEN or "hidden" in attributes or (tag == "dialog" and "open" not in attributes):
            if tag not in VOID:
                self._hidden, self._depth = tag, 1
            return
        if tag in ("table", "tr", "td", "th"):
            self._start_table(tag, attributes)
        elif tag == "br":
            self._want(LINE)
        elif tag == "img":
            self.text(attributes.get("alt") or "")
        elif tag == "input":
            self._want(SPACE)
            self.text(shown_value(attributes))
        elif tag == "sup":
            glued = self._frame.wanted == NONE and bool(self._frame.pieces)
            self._frame.pieces.append("")
            self._raised.append(Raised(self._frame, len(self._frame.pieces) - 1, glued))
        self._apart(tag)
        if tag in HEADINGS:
            self._heading = (tag, self._frame, len(self._frame.pieces))
        if tag in PRE:
            self._pre += 1
        if self._tables and (tag in HEADINGS or tag == "pre"):
            self._tables[-1].layout = True

    def end(self, tag: str) -> None:
        """Take an end tag."""
        if self._hidden is not None:
            self._depth -= tag == self._hidden
            if not self._depth:
                self._hidden = None
            return
        if tag in PRE:
            self._pre = max(self._pre - 1, 0)
        if tag == "sup" and self._raised:
            self._lower(self._raised.pop())
        if self._heading is not None and tag == self._heading[0]:
            _, frame, place = self._heading
            self._first.setdefault(tag == "h1", " ".join("".join(frame.pieces[place:]).split()))
            self._heading = None
        if tag in ("table", "tr", "td", "th"):
            self._end_table(tag)
        self._apart(tag)

    def text(self, content: str) -> None:
        """Take text: its white space counts in `pre` alone."""
        if self._hidden is not None or not content:
            return
        if self._pre:
            self._add(content)
            return
        if content[0].isspace():
            self._want(SPACE)
        words = " ".join(content.split())
        if words:
            self._add(words)
            if content[-1].isspace():
                self._want(SPACE)

    def finish(self) -> tuple[str, str]:
        """Close what is open: the title (the first `h1`, else the first heading, else empty) and the text."""
        while self._tables:
            self._end_table("table")
        return self._first.get(True) or self._first.get(False, ""), self._page.text()

    def _apart(self, tag: str) -> None:
        if tag in BLOCKS:
            self._want(PARAGRAPH)
        elif tag in APART:
            self._want(SPACE)

    def _want(self, separator: int) -> None:
        self._frame.wanted = max(self._frame.wanted, separator)

    def _add(self, content: str) -> None:
        frame = self._frame
        if frame.pieces:
            frame.pieces.append(SEPARATORS[frame.wanted])
        frame.pieces.append(content)
        frame.wanted = NONE
        self._size += len(content)
        if self._size > self._most:
            raise TooLarge(f"its text is larger than {self._most} bytes")

    def _lower(self, raised: Raised) -> None:
        """Mark an exponent: 10^6, x^(n+1); ordinals (1st), trade marks and references in brackets stay as they are."""
        content = "".join(raised.frame.pieces[raised.place :]).strip()
        if not raised.glued or raised.frame is not self._frame or not content:
            return
        if _EXPONENT.fullmatch(content):
            raised.frame.pieces[raised.place] = "^"
        elif _TERM.fullmatch(content) and not content.isalpha():
            raised.frame.pieces[raised.place] = "^("
            raised.frame.pieces.append(")")

    def _start_table(self, tag: str, attributes: Attributes) -> None:
        if tag == "table":
            if self._tables:
                self._tables[-1].layout = True
            self._tables.append(Table(layout=attributes.get("role") in ("presentation", "none")))
        elif self._tables:
            table = self._tables[-1]
            self._close_cell(table)
            if tag == "tr":
                table.rows.append([])
                return
            table.open = Cell(tag == "th", span(attributes.get("colspan")), span(attributes.get("rowspan")))
            self._around.append(self._frame)
            self._frame = Frame()

    def _end_table(self, tag: str) -> None:
        if not self._tables:
            return
        table = self._tables[-1]
        self._close_cell(table)
        if tag != "table":
            return
        self._tables.pop()
        self._want(PARAGRAPH)
        self._size -= table.size  # counted in its cells, and now again in its lines
        for line in table.lines():
            self._add(line)
            self._want(PARAGRAPH if table.is_layout else LINE)
        self._want(PARAGRAPH)

    def _close_cell(self, table: Table) -> None:
        if table.open is None:
            return
        table.open.text = self._frame.text()
        table.add(table.open)
        table.open = None
        self._frame = self._around.pop()


def shown_value(attributes: Attributes) -> str:
    """Return what an `input` shows: the words on a button, what a field is filled with."""
    kind = (attributes.get("type") or "text").lower()
    return "" if kind in UNSEEN_VALUES else attributes.get("alt" if kind == "image" else "value") or ""


def span(value: str | None) -> int:
    """Return how many columns or rows a cell covers, at most 1,000 as browsers have it."""
    return min(max(int(value), 1), 1000) if value and value.isascii() and value.isdigit() and len(value) < 6 else 1
