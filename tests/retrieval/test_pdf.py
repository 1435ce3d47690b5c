"""PDF page by page: what is lost is said, and the rest is read."""

from __future__ import annotations

import io
import zlib

import pypdf
import pytest

from tests.retrieval.conftest import pdf
from waver.retrieval.base import BadDocument, Parsed
from waver.retrieval.pdf_text import joined, listed
from waver.retrieval.pdf_text import pdf as read

MOST = 10**6
STREAM = zlib.compress(b"BT /F1 12 Tf 72 720 Td (two words) Tj ET", 9)


def test_pages_without_text_are_named() -> None:
    assert read(pdf("one", "", "three", "", ""), MOST) == Parsed(
        "", "one\n\n\n\nthree\n\n\n\n", warnings=("pages 2, 4-5 of 5: no text layer, needs text recognition (OCR)",)
    )
    with pytest.raises(BadDocument, match="OCR"):
        read(pdf("", ""), MOST)
    empty = pypdf.PdfWriter(clone_from=pypdf.PdfReader(io.BytesIO(pdf("one"))))
    empty.add_blank_page()
    assert read(written(empty), MOST).warnings == ()


@pytest.mark.parametrize(
    "damage", [b"\0" * len(STREAM), STREAM[:6] + b"\xff" * 8 + STREAM[14:], STREAM[:9].ljust(len(STREAM))]
)
def test_a_damaged_page_leaves_the_others(damage: bytes) -> None:
    whole = pdf("one", "two words", "three", compress=True)
    assert whole.count(STREAM) == 1
    found = read(whole.replace(STREAM, damage), MOST)
    assert found.text.startswith("one\n\n")
    assert found.text.endswith("\n\nthree")
    assert found.warnings == ("page 2 of 3: damaged, and not all text could be read",)
    assert read(whole, MOST).warnings == ()


def test_a_page_that_is_not_there_leaves_the_others() -> None:
    found = read(pdf("one", "two", "three").replace(b"(two) Tj", b"(two Tj<"), MOST)
    assert "one" in found.text
    assert "three" in found.text
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("page 2 of 3")


@pytest.mark.parametrize("algorithm", ["AES-256", "AES-128", "RC4-128"])
def test_encryption_without_a_password(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = []
    for password in ("", "secret"):
        writer = pypdf.PdfWriter(clone_from=pypdf.PdfReader(io.BytesIO(pdf("in the clear"))))
        writer.encrypt(password, "owner", algorithm=algorithm)
        locked.append(written(writer))
    assert read(locked[0], MOST).text == "in the clear"
    with pytest.raises(BadDocument, match="locked by a password"):
        read(locked[1], MOST)

    def missing(*_: object) -> None:
        raise pypdf.errors.DependencyError("cryptography>=3.1 is required for AES algorithm")

    monkeypatch.setattr(pypdf.PdfReader, "decrypt", missing)
    with pytest.raises(BadDocument, match="install cryptography"):
        read(locked[0], MOST)


def written(writer: pypdf.PdfWriter) -> bytes:
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("cmap", "encoding", "text"),
    [
        ("90ms-RKSJ-H", "cp932", "日本語"),
        ("EUC-H", "euc_jp", "日本語"),
        ("KSCms-UHC-H", "cp949", "한국어"),
        ("UniKS-UTF16-H", "utf-16-be", "한국어"),
        ("GBK-EUC-H", "gbk", "中文"),
        ("UniGB-UCS2-H", "utf-16-be", "中文"),
        ("HKscs-B5-H", "big5hkscs", "中文"),
    ],
)
def test_fonts_in_asian_encodings(cmap: str, encoding: str, text: str) -> None:
    plain = pdf("", content=b"BT /F1 12 Tf 72 720 Td <%s> Tj ET" % text.encode(encoding).hex().encode())
    font = b"/Type /Font /Subtype /Type0 /BaseFont /X /Encoding /%s /DescendantFonts [<< /Type /Font " % cmap.encode()
    font += b"/Subtype /CIDFontType0 /BaseFont /X /CIDSystemInfo << /Registry (A) /Ordering (X) /Supplement 1 >> >>]"
    assert read(plain.replace(b"/Type /Font /Subtype /Type1 /BaseFont /Helvetica", font), MOST).text == text


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("an exam-\nple of it", "an example of it"),
        ("a well-\nknown one", "a well-known one"),
        ("soft\u00ad\nly", "softly"),
        ("pages 3-\n5 and Franco-\nPrussian", "pages 3-\n5 and Franco-\nPrussian"),
        ("- one\n- two", "- one\n- two"),
    ],
)
def test_words_over_two_lines(page: str, text: str) -> None:
    assert joined(page, {"well-known", "one"}) == text


def test_ligatures_are_letters() -> None:
    source = pdf("", content=b"BT /F1 12 Tf 72 720 Td <0102> Tj ET").replace(
        b"/BaseFont /Helvetica", b"/BaseFont /Helvetica /Encoding << /Differences [1 /ffi /fl] >>"
    )
    assert read(source, MOST).text == "ffifl"


def test_page_numbers_are_listed_in_runs() -> None:
    assert listed([3]) == "page 3"
    assert listed([1, 2, 3, 4, 7, 9, 10]) == "pages 1-4, 7, 9-10"
    assert listed(range(1, 99, 2)).endswith("39, …")
