"""Extract the title and plain text of a document: text, Markdown, HTML, PDF.

Nothing here follows a link or runs a script. Hostile files can take long or much memory, so all formats but plain text
are read in a separate process (`waver.retrieval.worker`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from waver.retrieval.base import BadDocument, Parsed
from waver.retrieval.encoding import decode, is_utf8
from waver.retrieval.scanning import windows

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*+\n)++")


def clean(text: str) -> str:
    """Text without control characters, with single blank lines between paragraphs; lines keep their indentation."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")
    text = "".join(_BLANK_LINES.sub("\n\n", _CONTROL.sub("", text[a:b])) for a, b in windows(text)).rstrip()
    blank = len(text) - len(text.lstrip())
    return text[text.rfind("\n", 0, blank) + 1 :]


def text(data: bytes, most: int, charset: str) -> Parsed:
    """Plain text as it is."""
    found, warnings = decode(data, charset)
    return Parsed("", found, warnings=warnings)


def markdown(data: bytes, most: int, charset: str) -> Parsed:
    """Markdown (`waver.retrieval.markdown_text`)."""
    from waver.retrieval import markdown_text

    found, warnings = decode(data, charset)
    read = markdown_text.markdown(found, most)
    return replace(read, warnings=warnings + read.warnings)


def html(data: bytes, most: int, charset: str) -> Parsed:
    """HTML (`waver.retrieval.html_text`)."""
    from waver.retrieval import html_text

    found, warnings = decode(data, charset, markup=True)
    return replace(html_text.html(found, most), warnings=warnings)


def pdf(data: bytes, most: int, charset: str) -> Parsed:
    """PDF (`waver.retrieval.pdf_text`)."""
    from waver.retrieval import pdf_text

    return pdf_text.pdf(data, most)


READERS: dict[str, Callable[[bytes, int, str], Parsed]] = {
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
    suffix = "." + name.rsplit(".", 1)[-1].lower() if "." in name else ""
    said = SUFFIXES.get(suffix) or TYPES.get(content_type.partition(";")[0].strip().lower())
    plain = is_plain(data)
    if b"%PDF-" in data[:1024] and (
        said == "pdf" or not plain or (data.lstrip().startswith(b"%PDF-") and b"endobj" in data and b"xref" in data)
    ):
        return "pdf"
    for mark, what in FOREIGN.items():
        if data.startswith(mark) and not plain:
            raise BadDocument(f"this is {what}; text, Markdown, HTML and PDF can be read")
    kind = said or "text"
    if kind == "pdf":
        raise BadDocument("this is called a PDF but is none")
    if kind == "text" and data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "html"
    return kind


def is_plain(data: bytes) -> bool:
    """Tell whether the beginning of a file is text in UTF-8, whatever it begins with."""
    head = data[:4096]
    if any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head):
        return False
    return any(is_utf8(head[: len(head) - end]) for end in range(4))


def charset_of(content_type: str) -> str:
    """The parameter `charset` of a content type; empty if it has none."""
    for each in content_type.split(";")[1:]:
        key, _, value = each.partition("=")
        if key.strip().lower() == "charset":
            return value.strip().strip("\"'")
    return ""
