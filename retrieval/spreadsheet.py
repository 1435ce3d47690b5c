"""Excel files: each sheet as a table, a line for each row, in which every value has its column's name before it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from waver.retrieval.base import Parsed
from waver.retrieval.delimited import names_columns
from waver.retrieval.flow import Flow
from waver.retrieval.office_text import Archive, Attributes, core_title, walk

DATES = frozenset({*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)})
"""Numbers of the formats that show dates and times."""
BEGIN = datetime.datetime(1899, 12, 30)
MOST_COLUMNS = 16_384


def xlsx(archive: Archive, most: int) -> Parsed:
    """Read an Excel file sheet by sheet."""
    main = "xl/workbook.xml"
    related = archive.related(main)
    sheets: list[tuple[str, str]] = []

    def start(tag: str, attributes: Attributes) -> None:
        if tag == "sheet" and attributes.get("r:id", "") in related:
            sheets.append((attributes.get("name", ""), related[attributes["r:id"]]))

    walk(archive.read(main), start)
    strings, dates = shared_strings(archive), date_styles(archive)
    flow = Flow(most)
    for name, part in sheets:
        rows = [row for row in Sheet(strings, dates).rows(archive.read(part)) if any(row)]
        if not rows:
            continue
        tell(flow, name, rows)
    title, text = flow.finish()
    return Parsed(core_title(archive) or title, text)


def tell(flow: Flow, name: str, rows: list[list[str]]) -> None:
    """Give a sheet to a flow: its name, and its rows as a table."""
    flow.start("h2")
    flow.text(name)
    flow.end("h2")
    flow.start("table")
    header = names_columns([value for value in rows[0] if value], rows[1:])
    for number, row in enumerate(rows):
        flow.start("tr")
        for value in row:
            flow.start("th" if header and number == 0 else "td")
            flow.text(value)
        flow.end("tr")
    flow.end("table")


class Sheet:
    """Reads the cells of a sheet."""

    def __init__(self, strings: list[str], dates: set[int]) -> None:
        self._strings, self._dates = strings, dates
        self._rows: list[list[str]] = []
        self._kind, self._style, self._column = "", 0, 0
        self._value = ""
        self._reading = False

    def rows(self, xml: bytes) -> Iterator[list[str]]:
        """Yield the values of each row, empty where there is none."""
        walk(xml, self._start, self._end, self._text)
        yield from self._rows

    def _start(self, tag: str, attributes: Attributes) -> None:
        if tag == "row":
            self._rows.append([])
        elif tag == "c":
            self._kind, self._value = attributes.get("t", "n"), ""
            self._style = int(attributes["s"]) if attributes.get("s", "").isdigit() else 0
            self._column = column(attributes.get("r", "")) or len(self._rows[-1] if self._rows else []) + 1
        self._reading = tag in ("v", "t")

    def _text(self, data: str) -> None:
        if self._reading:
            self._value += data

    def _end(self, tag: str) -> None:
        self._reading = False
        if tag != "c" or not self._rows or not self._value or self._column > MOST_COLUMNS:
            return
        row = self._rows[-1]
        row += [""] * (self._column - len(row) - 1)
        row.append(self._shown())

    def _shown(self) -> str:
        value = self._value
        if self._kind == "s":
            known = value.isdigit() and int(value) < len(self._strings)
            return self._strings[int(value)] if known else ""
        if self._kind == "b":
            return "true" if value == "1" else "false"
        if self._kind == "n" and self._style in self._dates:
            return date(value)
        return value


def column(reference: str) -> int:
    """Return the column of a cell's reference, 1 for `A7`; 0 if it has none."""
    number = 0
    for letter in reference:
        if not "A" <= letter <= "Z":
            break
        number = 26 * number + ord(letter) - 64
    return number


def date(value: str) -> str:
    """Return days since `BEGIN` as a date, with the time if there is one, or as a time alone."""
    try:
        found = BEGIN + datetime.timedelta(seconds=round(float(value) * 86_400))
    except (ValueError, OverflowError):
        return value
    if float(value) < 1:
        return found.strftime("%H:%M:%S")
    return found.isoformat(" ") if found.time() != datetime.time() else found.date().isoformat()


def shared_strings(archive: Archive) -> list[str]:
    """Return the texts that cells refer to by number."""
    found: list[str] = []
    reading = [False, False]  # within a text, within a reading aid

    def start(tag: str, attributes: Attributes) -> None:
        if tag == "si":
            found.append("")
        reading[1] = reading[1] or tag == "rPh"
        reading[0] = tag == "t"

    def end(tag: str) -> None:
        reading[0] = False
        reading[1] = reading[1] and tag != "rPh"

    def text(data: str) -> None:
        if reading[0] and not reading[1] and found:
            found[-1] += data

    if "xl/sharedStrings.xml" in archive.names:
        walk(archive.read("xl/sharedStrings.xml"), start, end, text)
    return found


def date_styles(archive: Archive) -> set[int]:
    """Return the styles of cells that show numbers as dates or times."""
    formats = dict.fromkeys(DATES, True)
    styles: list[bool] = []
    inside = [False]

    def start(tag: str, attributes: Attributes) -> None:
        if tag == "numFmt" and attributes.get("numFmtId", "").isdigit():
            code = "".join(attributes.get("formatCode", "").split('"')[::2]).lower()
            formats[int(attributes["numFmtId"])] = any(letter in code for letter in "ymdhs") and "general" not in code
        inside[0] = tag == "cellXfs" or (inside[0] and tag != "cellStyleXfs")
        if tag == "xf" and inside[0]:
            known = attributes.get("numFmtId", "")
            styles.append(known.isdigit() and formats.get(int(known), False))

    def end(tag: str) -> None:
        if tag == "cellXfs":
            inside[0] = False

    if "xl/styles.xml" in archive.names:
        walk(archive.read("xl/styles.xml"), start, end)
    return {i for i, shows in enumerate(styles) if shows}
