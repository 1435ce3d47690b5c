"""Word and PowerPoint files and EPUB books, from the XML in their archives; Excel's are read in `spreadsheet`.

Elements of Word and PowerPoint that matter are given to the same flow as those of a page, by their names here. Nothing
is decompressed beyond a bound, and no entities are expanded.
"""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from urllib.parse import unquote
from xml.parsers import expat

from waver.retrieval.base import BadDocument, Parsed, TooLarge
from waver.retrieval.flow import Flow
from waver.retrieval.html_text import html

DAMAGED = "it is damaged"
LARGEST = 256 * 2**20
"""Bytes of one part of an archive that are read, decompressed."""
ELEMENTS = {"p": "p", "tbl": "table", "tr": "tr", "tc": "td"}
"""Elements of a page by those of Word (`w:`) and PowerPoint (`a:`), which have the same names."""
LEFT_OUT = frozenset({"instrText", "delText", "del", "moveFrom", "Fallback"})
"""Field codes, deleted text, and what repeats something else for older programs."""
TITLES = frozenset({"title", "ctrTitle"})
Attributes = Mapping[str, str]


class Archive:
    """The parts of an office file."""

    def __init__(self, data: bytes) -> None:
        """Raises:
        BadDocument: it is no archive."""
        try:
            self._zip = zipfile.ZipFile(BytesIO(data))
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise BadDocument(DAMAGED) from error
        self.names = set(self._zip.namelist())

    def read(self, name: str) -> bytes:
        """Return a part.

        Raises:
            BadDocument: it is missing or damaged.
            TooLarge: it is larger than `LARGEST`.
        """
        try:
            with self._zip.open(name) as part:
                found = part.read(LARGEST + 1)
        except (KeyError, zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError, ValueError) as error:
            raise BadDocument(DAMAGED) from error
        if len(found) > LARGEST:
            raise TooLarge(f"a part of it is larger than {LARGEST} bytes")
        return found

    def related(self, name: str) -> dict[str, str]:
        """Return the parts that a part refers to, by their ids."""
        folder, base = posixpath.split(name)
        relations = f"{folder}/_rels/{base}.rels".lstrip("/")
        found: dict[str, str] = {}

        def start(tag: str, attributes: Attributes) -> None:
            if tag == "Relationship" and attributes.get("TargetMode") != "External":
                target = posixpath.normpath(posixpath.join("/", folder, attributes.get("Target", "")))
                found[attributes.get("Id", "")] = target.lstrip("/")

        if relations in self.names:
            walk(self.read(relations), start)
        return found


def walk(
    xml: bytes,
    start: Callable[[str, Attributes], None],
    end: Callable[[str], None] = lambda tag: None,
    text: Callable[[str], None] = lambda data: None,
) -> None:
    """Give the elements and texts of a part to functions, without prefixes, save `r:` of the attributes that refer to
    another part.

    Raises:
        BadDocument: it is not well-formed, or declares entities.
    """

    def local(name: str) -> str:
        space, _, plain = name.rpartition(" ")
        return f"r:{plain}" if "/officeDocument/" in space and space.endswith("/relationships") else plain

    def refuse(*declared: object) -> None:
        raise BadDocument(DAMAGED)

    parser = expat.ParserCreate(None, " ")
    parser.buffer_text = True
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = lambda name, given: start(local(name), {local(key): given[key] for key in given})
    parser.EndElementHandler = lambda name: end(local(name))
    parser.CharacterDataHandler = text
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise BadDocument(DAMAGED) from error


class Body:
    """Gives a part of Word or PowerPoint to a flow."""

    def __init__(self, flow: Flow, headings: Mapping[str, str] | None = None) -> None:
        self._flow, self._headings = flow, headings or {}
        self._open: list[str] = []
        self._left_out = self._rows = 0
        self._in_text = False
        self._title = False

    def start(self, tag: str, attributes: Attributes) -> None:
        """Take the start of an element."""
        if self._left_out or tag in LEFT_OUT:
            self._left_out += 1
            return
        if tag == "tbl":
            self._rows = 0
        if tag in ELEMENTS:
            self._rows += tag == "tr"
            named = "th" if tag == "tc" and self._rows == 1 else ELEMENTS[tag]
            named = "h2" if tag == "p" and self._title else named
            self._open.append(named)
            self._flow.start(named)
        elif tag == "pStyle" and self._open and attributes.get("val", "") in self._headings and self._open[-1] == "p":
            self._open[-1] = self._headings[attributes["val"]]
            self._flow.start(self._open[-1])
        elif tag == "tab" and self._open:
            self._flow.text(" ")
        elif tag in ("br", "cr") and self._open:
            self._flow.start("br")
        elif tag == "ph":
            self._title = attributes.get("type") in TITLES
        elif tag in ("docPr", "cNvPr") and attributes.get("descr"):
            self._flow.text(f" {attributes['descr']} ")
        elif tag == "t":
            self._in_text = True

    def end(self, tag: str) -> None:
        """Take the end of an element."""
        if self._left_out:
            self._left_out -= 1
        elif tag in ELEMENTS and self._open:
            self._flow.end(self._open.pop())
        elif tag == "sp":
            self._title = False
        elif tag == "t":
            self._in_text = False

    def text(self, data: str) -> None:
        """Take text: only that of runs (`t`) is shown."""
        if self._in_text and not self._left_out:
            self._flow.text(data)

    def read(self, xml: bytes) -> None:
        """Read a part."""
        walk(xml, self.start, self.end, self.text)


def docx(archive: Archive, most: int) -> Parsed:
    """Read a Word file: its body, then foot- and endnotes."""
    flow = Flow(most)
    names = [f"word/{name}.xml" for name in ("document", "footnotes", "endnotes")]
    headings = _headings(archive)
    for name in names:
        if name in archive.names or name == names[0]:
            Body(flow, headings).read(archive.read(name))
    title, text = flow.finish()
    return Parsed(core_title(archive) or title, text)


def _headings(archive: Archive) -> dict[str, str]:
    """Return the order of a heading, `h1` to `h6`, by the id of its style, which differs between languages."""
    found = {f"Heading{i}": f"h{i}" for i in range(1, 7)} | {"Title": "h1"}
    if "word/styles.xml" not in archive.names:
        return found
    current = [""]

    def start(tag: str, attributes: Attributes) -> None:
        if tag == "style":
            current[0] = attributes.get("styleId", "")
        elif tag == "name" and current[0]:
            name = attributes.get("val", "").lower()
            if name.startswith("heading ") and name[8:] in "123456":
                found[current[0]] = f"h{name[8:]}"
            elif name == "title":
                found[current[0]] = "h1"

    walk(archive.read("word/styles.xml"), start)
    return found


def pptx(archive: Archive, most: int) -> Parsed:
    """Read a PowerPoint file slide by slide, each with its notes."""
    main = "ppt/presentation.xml"
    related = archive.related(main)
    order: list[str] = []

    def start(tag: str, attributes: Attributes) -> None:
        if tag == "sldId" and attributes.get("r:id", "") in related:
            order.append(related[attributes["r:id"]])

    walk(archive.read(main), start)
    flow = Flow(most)
    for slide in order:
        Body(flow).read(archive.read(slide))
        for note in archive.related(slide).values():
            if "/notesSlides/" in note and note in archive.names:
                Body(flow).read(archive.read(note))
    title, text = flow.finish()
    return Parsed(core_title(archive) or title, text)


def core_title(archive: Archive) -> str:
    """Return the title among the properties of an office file; empty if there is none."""
    return _first(archive, "docProps/core.xml", "title") if "docProps/core.xml" in archive.names else ""


def _first(archive: Archive, part: str, wanted: str) -> str:
    """Return the text of the first element of a name."""
    found: list[str] = []
    inside = [False]

    def start(tag: str, attributes: Attributes) -> None:
        inside[0] = tag == wanted and not found
        if inside[0]:
            found.append("")

    def text(data: str) -> None:
        if inside[0]:
            found[0] += data

    def end(tag: str) -> None:
        inside[0] = False

    walk(archive.read(part), start, end, text)
    return " ".join(found[0].split()) if found else ""


def epub(archive: Archive, most: int) -> Parsed:
    """Read an EPUB book, page by page in its order."""
    packages: list[str] = []

    def start(tag: str, attributes: Attributes) -> None:
        if tag == "rootfile":
            packages.append(attributes.get("full-path", ""))

    walk(archive.read("META-INF/container.xml"), start)
    if not packages:
        raise BadDocument(DAMAGED)
    parts: list[str] = []
    for page in _spine(archive, packages[0]):
        if page in archive.names:
            parts.append(html(archive.read(page).decode("utf-8", "replace"), most).text)
        if sum(map(len, parts)) > most:
            raise TooLarge(f"its text is larger than {most} bytes")
    return Parsed(_first(archive, packages[0], "title"), "\n\n".join(part for part in parts if part.strip()))


def _spine(archive: Archive, package: str) -> Iterator[str]:
    """Yield the pages of a book in order."""
    pages: dict[str, str] = {}
    order: list[str] = []

    def start(tag: str, attributes: Attributes) -> None:
        if tag == "item":
            place = posixpath.join(posixpath.dirname(package), unquote(attributes.get("href", "")))
            pages[attributes.get("id", "")] = posixpath.normpath(place)
        elif tag == "itemref":
            order.append(attributes.get("idref", ""))

    walk(archive.read(package), start)
    yield from (pages[each] for each in order if each in pages)
