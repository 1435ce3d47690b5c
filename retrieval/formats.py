"""Extract the title and plain text of a document: text, Markdown, HTML, PDF, CSV, notebooks, office formats.

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


def delimited(data: bytes, most: int, charset: str) -> Parsed:
    """CSV and its like (`waver.retrieval.delimited`)."""
    from waver.retrieval import delimited as values

    found, warnings = decode(data, charset)
    read = values.delimited(found, most)
    return replace(read, warnings=warnings + read.warnings)


def notebook(data: bytes, most: int, charset: str) -> Parsed:
    """Jupyter notebooks (`waver.retrieval.notebook`)."""
    from waver.retrieval import notebook as cells

    found, warnings = decode(data, charset)
    read = cells.notebook(found, most)
    return replace(read, warnings=warnings + read.warnings)


def office(data: bytes, most: int, charset: str) -> Parsed:
    """Word, PowerPoint, Excel and EPUB (`waver.retrieval.office_text`, `waver.retrieval.spreadsheet`)."""
    from waver.retrieval import office_text, spreadsheet

    archive = office_text.Archive(data)
    for part, read in (
        ("word/document.xml", office_text.docx),
        ("ppt/presentation.xml", office_text.pptx),
        ("xl/workbook.xml", spreadsheet.xlsx),
        ("META-INF/container.xml", office_text.epub),
    ):
        if part in archive.names:
            return read(archive, most)
    raise BadDocument(office_text.DAMAGED)


def pdf(data: bytes, most: int, charset: str) -> Parsed:
    """PDF (`waver.retrieval.pdf_text`)."""
    from waver.retrieval import pdf_text

    return pdf_text.pdf(data, most)


READERS: dict[str, Callable[[bytes, int, str], Parsed]] = {
    "text": text,
    "markdown": markdown,
    "html": html,
    "pdf": pdf,
    "csv": delimited,
    "notebook": notebook,
    "office": office,
}
SUFFIXES = {
    ".txt": "text", ".text": "text", ".rst": "text", ".log": "text", ".csv": "csv", ".tsv": "csv", ".json": "text",
    ".md": "markdown", ".markdown": "markdown", ".html": "html", ".htm": "html", ".xhtml": "html", ".pdf": "pdf",
    ".ipynb": "notebook", ".docx": "office", ".pptx": "office", ".xlsx": "office", ".epub": "office",
}  # fmt: skip
"""Format by the suffix of a file's name."""
TYPES = {"text/plain": "text", "text/markdown": "markdown", "text/html": "html", "application/xhtml+xml": "html",
         "application/pdf": "pdf", "text/csv": "csv", "text/tab-separated-values": "csv",
         "application/x-ipynb+json": "notebook"}  # fmt: skip
"""Format by content type."""
LANGUAGES = {
    ".py": "python", ".pyi": "python", ".js": "javascript", ".mjs": "javascript", ".jsx": "javascript",
    ".ts": "typescript", ".tsx": "typescript", ".java": "java", ".kt": "kotlin", ".scala": "scala", ".c": "c",
    ".h": "c", ".cc": "c++", ".cpp": "c++", ".cxx": "c++", ".hpp": "c++", ".cs": "c#", ".go": "go", ".rs": "rust",
    ".rb": "ruby", ".php": "php", ".swift": "swift", ".m": "objective-c", ".r": "r", ".jl": "julia", ".lua": "lua",
    ".pl": "perl", ".pm": "perl", ".sh": "shell", ".bash": "shell", ".zsh": "shell", ".ps1": "powershell",
    ".sql": "sql", ".hs": "haskell", ".ml": "ocaml", ".ex": "elixir", ".exs": "elixir", ".erl": "erlang",
    ".clj": "clojure", ".dart": "dart", ".f90": "fortran", ".v": "verilog", ".sv": "verilog", ".vhd": "vhdl",
    ".proto": "protobuf", ".css": "css", ".scss": "css", ".vue": "vue", ".tex": "latex", ".cmake": "cmake",
}  # fmt: skip
"""Language of source code by the suffix of a file's name: it is read as text, and known by the metadata `code`."""
ARCHIVES = (b"word/document", b"ppt/presentation", b"xl/workbook", b"application/epub+zip")
"""Parts of archives that are documents: docx, pptx, xlsx, epub."""
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

WRITTEN = {b"{\\rtf": "RTF", b"%!PS": "PostScript"}
"""First bytes of files that look like text, and are commands of which little is to be read."""


def kind_of(data: bytes, name: str, content_type: str = "") -> str:
    """Determine the format of a file: by its bytes, then its name, then its content type.

    Raises:
        BadDocument: none does.
    """
    said = SUFFIXES.get(suffix_of(name)) or TYPES.get(content_type.partition(";")[0].strip().lower())
    plain = is_plain(data)
    if b"%PDF-" in data[:1024] and (
        said == "pdf" or not plain or (data.lstrip().startswith(b"%PDF-") and b"endobj" in data and b"xref" in data)
    ):
        return "pdf"
    if data.startswith(b"PK\x03\x04") and any(mark in data for mark in ARCHIVES):
        return "office"
    for mark, what in FOREIGN.items():
        if data.startswith(mark) and not plain:
            raise BadDocument(f"this is {what}; text, Markdown, HTML, PDF, CSV, notebooks and office files can be read")
    for mark, what in WRITTEN.items():
        if data.startswith(mark):
            raise BadDocument(f"this is {what}, which is not read: save it as PDF, DOCX or text")
    kind = said or "text"
    if kind in ("pdf", "office"):
        raise BadDocument(f"this is called {'a PDF' if kind == 'pdf' else 'an office file'} but is none")
    if kind == "text" and data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "html"
    return kind


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in lower case, with its dot; empty if it has none."""
    return "." + name.rsplit(".", 1)[-1].lower() if "." in name else ""


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
