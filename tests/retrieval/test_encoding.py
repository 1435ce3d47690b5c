"""Text in whatever encoding it comes: what is declared is honoured, what is damaged or guessed is said."""

from __future__ import annotations

import pytest

from waver.retrieval.base import BadDocument
from waver.retrieval.encoding import decode
from waver.retrieval.formats import charset_of, kind_of

TEXTS = {
    "Съешь же ещё этих мягких французских булок, да выпей чаю.": ("cp1251", "koi8-r", "cp866", "iso8859-5"),
    "我们在这里测试一个中文的文本，看看它是不是能够被正确地读出来。": ("gb18030",),
    "我在這裡看一個中文的檔案，不是英文的。": ("big5hkscs",),
    "これは日本語の文章です。文字コードを正しく読めるかどうかを試しています。": ("cp932", "euc_jp"),
    "이것은 한국어 문장입니다. 문자 인코딩을 올바르게 읽을 수 있는지 확인하는 것입니다.": ("cp949",),
    "Αυτό είναι ένα κείμενο στα ελληνικά για τον έλεγχο της κωδικοποίησης.": ("cp1253",),
    "Grüße aus München, à bientôt": ("cp1252",),
}
CASES = [(text, encoding) for text, encodings in TEXTS.items() for encoding in encodings]


@pytest.mark.parametrize(("text", "encoding"), CASES)
def test_declared_or_guessed(text: str, encoding: str) -> None:
    data = text.encode(encoding)
    assert decode(data, encoding.upper()) == (text, ())
    found, warnings = decode(data)
    assert found == text
    assert warnings == (f"its encoding is not declared: read as {encoding}, a guess",)
    for page in (
        f"<meta charset={encoding}>{text}",
        f'<head><META http-equiv="Content-Type" content="text/html; charset={encoding}"></head>{text}',
        f"<?xml version='1.0' encoding='{encoding}'?><p>{text}</p>",
    ):
        assert decode(page.encode(encoding), markup=True) == (page, ())
    for source in (
        f"<?xml version='1.0' encoding='{encoding}'?><rss>{text}</rss>",
        f'@charset "{encoding}";\n/* {text} */',
        f"# -*- coding: {encoding} -*-\n# {text}",
        f"#!/usr/bin/python\n# vim: set fileencoding={encoding} :\n# {text}",
    ):
        assert decode(source.encode(encoding)) == (source, ())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_tells_itself(encoding: str) -> None:
    text = "Grüße, 日本 and €"
    assert decode(text.encode(encoding)) == (text, ())
    assert decode(text.encode("utf-16-le"), "utf-16le") == (text, ())
    for wide in ("utf-16-le", "utf-16-be"):
        found, (warning,) = decode("An ordinary text.".encode(wide))
        assert (found, wide in warning) == ("An ordinary text.", True)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("Grüße\xff".encode().replace(b"\xc3\xbf", b"\xff"), "Grüße\ufffd"),
        (b"plain\xff text", "plain\ufffd text"),
        ("日本".encode()[:-1], "日\ufffd"),
        ("a日".encode()[:-1], "a\ufffd"),
        ("Grüße 日本 ".encode() * 9 + b"\x80", "Grüße 日本 " * 9 + "\ufffd"),
        ("Grüße".encode("utf-16")[:-1], "Grüß\ufffd"),
    ],
)
def test_one_bad_byte_is_one_bad_character(data: bytes, text: str) -> None:
    assert decode(data) == (text, ("1 character could not be read: damaged or cut off",))


def test_what_is_declared_wrongly_is_said() -> None:
    assert decode("Grüße".encode(), "iso-8859-1") == ("Grüße", ("it is declared as iso-8859-1, but is UTF-8",))
    assert decode("Grüße 日本".encode(), "x-none") == ("Grüße 日本", ("its encoding 'x-none' is not known",))
    assert decode("Grüße".encode(), "base64")[0] == "Grüße"
    text, warnings = decode("これは日本語の文章です。".encode("cp932") * 9, "euc-jp")
    assert text.startswith("これは日本語")
    assert len(warnings) == 2
    with pytest.raises(BadDocument, match="binary"):
        decode(bytes(range(256)) * 3, "windows-1251")


@pytest.mark.parametrize("mention", ["say encoding='koi8-r'", "<meta charset=koi8-r>", "# a\n# b\n# coding: koi8-r"])
def test_a_mention_is_no_declaration(mention: str) -> None:
    text = f"{mention} Grüße aus München, à bientôt"
    assert decode(text.encode("cp1252")) == (text, ("its encoding is not declared: read as cp1252, a guess",))


def test_charsets_of_content_types() -> None:
    assert charset_of('text/html; boundary=x; Charset="windows-1251"') == "windows-1251"
    assert charset_of("text/plain") == charset_of("") == charset_of("charset=x") == ""


@pytest.mark.parametrize(
    ("data", "name", "kind"),
    [
        (b"# PDF\n\nA file begins with %PDF-1.4, and so on.", "howto.md", "markdown"),
        (b"%PDF-1.4 is how it begins", "pdf.txt", "text"),
        (b"<p>%PDF-1.7</p>", "a.html", "html"),
        (b"GIF89a is a format", "gif.txt", "text"),
        (b"BZh91AY is a mark, Rar! another", "marks", "text"),
        (b"SQLite format 3 is what it says", "db.md", "markdown"),
        (b"\n%PDF-1.4\n\xff\xfe\x00", "scan", "pdf"),
        (b"junk\x00%PDF-1.4\n", "mail.txt", "pdf"),
        (b"text %PDF-1.4", "a.pdf", "pdf"),
        (b"A file in RTF begins with {\\rtf1", "rtf.txt", "text"),
    ],
)
def test_a_text_that_mentions_a_mark_is_a_text(data: bytes, name: str, kind: str) -> None:
    assert kind_of(data, name) == kind


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (rb"{\rtf1\ansi{\fonttbl}\f0 Hello \b mill\b0 .}", "a.rtf"),
        (rb"{\rtf1 \u8364? 5}", "a.txt"),
        (b"%!PS-Adobe-3.0\n(mill) show", "a.ps"),
        (b"%!PS\n/Helvetica findfont", "figure"),
    ],
)
def test_what_is_written_for_a_program_is_no_text(data: bytes, name: str) -> None:
    with pytest.raises(BadDocument, match=r"RTF|PostScript"):
        kind_of(data, name)
