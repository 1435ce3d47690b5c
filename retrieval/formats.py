"""Extract the title and plain text of a document: text, Markdown, HTML, PDF.

Nothing here follows a link or runs a script. Hostile files can take long or much memory, so all formats but plain text
are read in a separate process (`waver.retrieval.worker`).
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable

from waver.retrieval.base import BadDocument, TooLarge
from waver.retrieval.scanning import windows

HIDDEN = "script, style, template, noscript, iframe, object, embed, svg, canvas, dialog, [hidden]"
BLOCKS = frozenset(
    "address article aside blockquote body caption dd details div dl dt fieldset figcaption figure footer form h1 h2 "
    "h3 h4 h5 h6 header hr html legend li main nav ol p pre section summary table tbody td tfoot th thead tr ul".split()
)
CELLS = frozenset({"td", "th"})
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


def clean(text: str) -> str:
    """Remove control characters, and reduce blank lines between paragraphs to one."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")
    return "".join(_BLANK_LINES.sub("\n\n", _CONTROL.sub("", text[a:b])) for a, b in windows(text)).strip()


def decode(data: bytes) -> str:
    """Decode bytes: by their byte order mark, else as UTF-8, else as Windows-1252.

    Raises:
        BadDocument: they are no text.
    """
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    head = data[:65536]
    if b"\0" in data or sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head) > 2 + len(head) // 20:
        raise BadDocument("this is binary data, not text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def text(data: bytes, most: int) -> tuple[str, str]:
    """Return plain text unchanged."""
    return "", decode(data)


def markdown(data: bytes, most: int) -> tuple[str, str]:
    """Return Markdown's text without its markup; the title is the first heading."""
    from markdown_it import MarkdownIt

    return html(MarkdownIt("commonmark").enable("table").render(decode(data)).encode(), most)


def html(data: bytes, most: int) -> tuple[str, str]:
    """Return the visible text of a page, one paragraph per block, without scripts, styles and hidden parts."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(decode(data))
    for node in tree.css(HIDDEN):
        node.decompose()
    heading = tree.css_first("title") or tree.css_first("h1")
    title = " ".join(heading.text().split()) if heading is not None else ""
    if tree.body is None:
        return title, ""
    pieces: list[str] = []
    size, last = 0, None
    for node in tree.body.traverse(include_text=True):
        if node.tag == "br":
            pieces.append("\n")
        if node.tag != "-text":
            continue
        block = node.parent
        while block is not None and block.tag not in BLOCKS:
            block = block.parent
        where = None if block is None else block.mem_id
        if where != last:
            pieces.append("\t" if block is not None and block.tag in CELLS and pieces else "\n\n")
            last = where
        content = node.text() or ""
        if block is None or block.tag != "pre":
            content = re.sub(r"\s+", " ", content)
        pieces.append(content)
        size += len(content)
        if size > most:
            raise TooLarge(f"its text is larger than {most} bytes")
    return title, re.sub(r"(?<![ \t])[ \t]*+\n[ \t]*+\n\s*+", "\n\n", "".join(pieces))


def pdf(data: bytes, most: int) -> tuple[str, str]:
    """Return the text layer of a PDF, page by page.

    Raises:
        BadDocument: it is no PDF, damaged, or locked by a password.
    """
    from pypdf import PasswordType, PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
            raise BadDocument("this PDF is locked by a password")
        pages: list[str] = []
        for page in reader.pages:
            pages.append(page.extract_text())
            if sum(map(len, pages)) > most:
                raise TooLarge(f"its text is larger than {most} bytes")
        title = str(reader.metadata.title or "") if reader.metadata else ""
    except (BadDocument, TooLarge, MemoryError, RecursionError):
        raise
    except (PyPdfError, Exception) as error:  # a broken file can lead a parser into anything
        raise BadDocument("this PDF is damaged and cannot be read") from error
    if pages and not "".join(pages).strip():
        raise BadDocument("this PDF has no text layer: it holds pictures of pages")
    return title, "\n\n".join(pages)


READERS: dict[str, Callable[[bytes, int], tuple[str, str]]] = {
    "text": text,
    "markdown": markdown,
    "html": html,
    "pdf": pdf,
}
SUFFIXES = {
    ".txt": "text", ".text": "text", ".rst": "text", ".log": "text", ".csv": "text", ".tsv": "text", ".json": "text",
    ".md": "markdown", ".markdown": "markdown", ".html": "html", ".htm": "html", ".xhtml": "html", ".pdf": "pdf",
}  # fmt: skip
"""Format by the suffix of a file's name."""
TYPES = {"text/plain": "text", "text/markdown": "markdown", "text/html": "html", "application/xhtml+xml": "html",
         "application/pdf": "pdf"}  # fmt: skip
"""Format by content type."""
FOREIGN = {
    b"PK\x03\x04": "a ZIP archive or office file",
    b"PK\x05\x06": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"\x7fELF": "a program",
    b"MZ\x90": "a program",
    b"\xd0\xcf\x11\xe0": "an old office file",
    b"SQLite f": "a database",
}
"""First bytes of files that are no documents, and their description."""


def kind_of(data: bytes, name: str, content_type: str = "") -> str:
    """Determine the format of a file: by its bytes, then its name, then its content type.

    Raises:
        BadDocument: none does.
    """
    if b"%PDF-" in data[:1024]:
        return "pdf"
    for mark, what in FOREIGN.items():
        if data.startswith(mark):
            raise BadDocument(f"this is {what}; text, Markdown, HTML and PDF can be read")
    suffix = "." + name.rsplit(".", 1)[-1].lower() if "." in name else ""
    kind = SUFFIXES.get(suffix) or TYPES.get(content_type.partition(";")[0].strip().lower(), "text")
    if kind == "pdf":
        raise BadDocument("this is called a PDF but is none")
    if kind == "text" and data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "html"
    return kind
