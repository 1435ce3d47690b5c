"""The text layer of a PDF, page by page; what a page lost is said, and does not take the others with it."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from waver.retrieval.base import BadDocument, Parsed, TooLarge

if TYPE_CHECKING:
    from pypdf import PageObject, PdfReader

LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
CMAPS = {
    "/KSC-EUC-H": "euc_kr", "/KSC-EUC-V": "euc_kr", "/KSCms-UHC-H": "cp949", "/KSCms-UHC-V": "cp949",
    "/UniKS-UTF16-H": "utf-16-be", "/UniKS-UTF16-V": "utf-16-be", "/UniKS-UCS2-H": "utf-16-be",
    "/UniKS-UCS2-V": "utf-16-be", "/UniGB-UCS2-H": "utf-16-be", "/UniGB-UCS2-V": "utf-16-be",
    "/UniCNS-UCS2-H": "utf-16-be", "/UniCNS-UCS2-V": "utf-16-be", "/UniJIS-UCS2-H": "utf-16-be",
    "/UniJIS-UCS2-V": "utf-16-be", "/EUC-H": "euc_jp", "/EUC-V": "euc_jp", "/90pv-RKSJ-H": "cp932",
    "/B5pc-H": "big5", "/B5pc-V": "big5", "/HKscs-B5-H": "big5hkscs", "/HKscs-B5-V": "big5hkscs",
}  # fmt: skip
"""Encodings of fonts in Asian scripts that pypdf does not read itself."""
SIGNS = ("decompress", "stream", "cannot decode", "unable to decode", "parse", "object not found", "not defined")
"""Remarks of pypdf where a part of a page was lost, among remarks that do not matter."""
_PAINTS = re.compile(rb"\b(?:Do|BI|Tj|TJ|sh|f|S)\b")
_WORDS = re.compile(r"\w++(?:-\w++)*+")


def pdf(data: bytes, most: int) -> Parsed:
    """The text of all pages, with a sentence for pages that are damaged and for those that hold pictures alone.

    Args:
        most: characters that the text may have.

    Raises:
        BadDocument: it is no PDF, damaged throughout, locked by a password, or has no text layer.
        TooLarge: it has more text.
    """
    from pypdf import PdfReader
    from pypdf._cmap import _predefined_cmap  # there is no public way to add to it

    try:
        _predefined_cmap.update({name: each for name, each in CMAPS.items() if name not in _predefined_cmap})
        with noted():
            reader = PdfReader(io.BytesIO(data))
            unlock(reader)
            count = len(reader.pages)
            title = str(reader.metadata.title or "") if reader.metadata else ""
    except (BadDocument, MemoryError, RecursionError):
        raise
    except Exception as error:  # a broken file can lead a parser into anything
        raise BadDocument("this PDF is damaged and cannot be read") from error
    pages: list[str] = []
    damaged: list[int] = []
    pictures: list[int] = []
    for number in range(1, count + 1):
        try:
            with noted() as problems:
                page = reader.pages[number - 1]
                pages.append(page.extract_text())
                paints = bool(pages[-1].strip()) or painted(page)
        except MemoryError:
            raise
        except Exception:  # also a recursion without an end: the next page may have none
            pages.append("")
            damaged.append(number)
            continue
        if any(sign in problem.lower() for problem in problems for sign in SIGNS):
            damaged.append(number)
        elif paints and not pages[-1].strip():
            pictures.append(number)
        if sum(map(len, pages)) > most:
            raise TooLarge(f"its text is larger than {most} bytes")
    if not "".join(pages).strip():
        raise BadDocument(
            "this PDF is damaged and cannot be read"
            if damaged or not pages
            else "this PDF has no text layer: it holds pictures of pages, which need text recognition (OCR)"
        )
    warnings = []
    if damaged:
        warnings.append(f"{listed(damaged)} of {count}: damaged, and not all text could be read")
    if pictures:
        warnings.append(f"{listed(pictures)} of {count}: no text layer, needs text recognition (OCR)")
    return Parsed(title, "\n\n".join(mended(pages)), warnings=tuple(warnings))


def unlock(reader: PdfReader) -> None:
    """Open a PDF that anybody may read, although it is encrypted.

    Raises:
        BadDocument: it wants a password, or a package that is not there.
    """
    from pypdf import PasswordType
    from pypdf.errors import DependencyError

    if not reader.is_encrypted:
        return
    try:
        opened = reader.decrypt("") != PasswordType.NOT_DECRYPTED
    except DependencyError as error:
        raise BadDocument("this PDF is encrypted with AES: to read it, install cryptography") from error
    if not opened:
        raise BadDocument("this PDF is locked by a password")


def painted(page: PageObject) -> bool:
    """Tell whether a page shows anything: an empty one has lost nothing."""
    contents = page.get_contents()
    return contents is not None and _PAINTS.search(contents.get_data()) is not None


@contextmanager
def noted() -> Iterator[list[str]]:
    """Keep what pypdf says meanwhile, instead of on standard error."""
    log = logging.getLogger("pypdf")
    said: list[str] = []
    keeper = logging.Handler()
    keeper.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    before = log.propagate, log.level
    log.addHandler(keeper)
    log.propagate = False
    log.setLevel(logging.WARNING)
    try:
        yield said
    finally:
        log.removeHandler(keeper)
        log.propagate, log.level = before


def listed(numbers: Sequence[int]) -> str:
    """Page numbers for people: `page 3`, `pages 1-4, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    shown = ", ".join("-".join(map(str, run)) for run in runs[:20])
    return f"page{'s' * (len(numbers) > 1)} {shown}{', …' * (len(runs) > 20)}"


def mended(pages: Sequence[str]) -> list[str]:
    """Pages with ligatures as letters and with words whole that were broken over two lines.

    A hyphen stays where the word is written with it elsewhere.
    """
    pages = [page.translate(LIGATURES) for page in pages]
    words = {match[0].lower() for page in pages for match in _WORDS.finditer(page)}
    return [joined(page, words) for page in pages]


def joined(page: str, words: set[str]) -> str:
    """A page without the hyphens at its lines' ends that break a word."""
    lines = page.split("\n")
    out: list[str] = []
    for line in lines:
        before = out[-1].rstrip() if out else ""
        after = line.lstrip()
        if before.endswith("\u00ad") and after:
            out[-1] = before[:-1] + after
        elif len(before) > 1 and before[-1] in "-‐" and before[-2].isalpha() and after[:1].islower():
            first = before[:-1].rpartition(" ")[2]
            second = after.partition(" ")[0].rstrip(".,;:!?)")
            kept = f"{first}-{second}".lower() in words and (first + second).lower() not in words
            out[-1] = (before if kept else before[:-1]) + after
        else:
            out.append(line)
    return "\n".join(out)
