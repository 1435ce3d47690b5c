"""From bytes to text: by a byte order mark, by what is declared, as UTF-8, or by a guess, which is said."""

from __future__ import annotations

import codecs
import re

from waver.retrieval.base import BadDocument

MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
ALIASES = {
    "ascii": "cp1252", "us-ascii": "cp1252", "iso-8859-1": "cp1252", "iso8859-1": "cp1252", "latin1": "cp1252",
    "latin-1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "x-gbk": "gb18030", "shift_jis": "cp932",
    "shift-jis": "cp932", "sjis": "cp932", "x-sjis": "cp932", "windows-31j": "cp932", "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949", "x-mac-roman": "mac-roman", "macintosh": "mac-roman", "big5": "big5hkscs",
    "iso-8859-9": "cp1254", "tis-620": "cp874", "windows-874": "cp874",
}  # fmt: skip
"""Encodings that browsers read for a name, where Python reads less."""
NO_ENCODINGS = frozenset(
    "base64 bz2 hex idna mbcs oem punycode quopri raw-unicode-escape rot13 undefined unicode-escape utf-7 uu "
    "zlib".split()
)
HEAD = 4096
"""Bytes of a page in which its declaration stands."""
COMMON = {
    **dict.fromkeys(("cp1251", "koi8-r", "cp866", "iso8859-5"), "оеаинтсрвл"),
    "cp1253": "αοιετνσρκς",
    "gb18030": "的一是不了人我在有他这中大来上国，。",
    "big5hkscs": "的一是不了人我在有他這中大來上國，。",
    **dict.fromkeys(("cp932", "euc_jp"), "のにはをたがでてとしれさなるい、。"),
    "cp949": "이다는에의가을를고하지은로서기",
}
"""The most frequent characters of what is written in an encoding."""
PLAUSIBLE = 0.2
"""Of the characters beyond ASCII, how many must be frequent ones: 0.4 to 0.6 where a guess is right."""
_META = re.compile(rb"<meta\b[^<>]*+>", re.I)
_CHARSET = re.compile(rb"charset\s*+=\s*+[\"']?+\s*+([A-Za-z0-9_.:-]{1,40})", re.I)
_XML = re.compile(rb"<\?xml[^<>?]*+\?>")
_ENCODING = re.compile(rb"encoding\s*+=\s*+[\"']([A-Za-z0-9_.:-]{1,40})")

_SHEET = re.compile(rb"@charset \"([A-Za-z0-9_.:-]{1,40})\";")
_CODING = re.compile(rb"coding[:=][ \t]*+([A-Za-z0-9_.-]{1,40})")


def decode(data: bytes, charset: str = "", markup: bool = False) -> tuple[str, tuple[str, ...]]:
    """Text, and a sentence for each thing that was lost or guessed.

    Args:
        charset: what came with the data said of it; empty if nothing did.
        markup: whether a `meta` element may name the encoding, too, as an XML declaration, a style sheet's `@charset`
            and a comment with `coding:` in the first two lines (PEP 263) may at the beginning of any text.

    Raises:
        BadDocument: it is no text.
    """
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return lossy(data, encoding)
    said = charset or declared(data, markup)
    known = codec(said)
    warnings: tuple[str, ...] = ()
    if said and known is None:
        warnings = (f"its encoding '{said}' is not known",)
    if known is None or not known.startswith(("utf-16", "utf-32")):
        if wide := without_mark(data):
            return data.decode(wide, "replace"), (f"its encoding is not declared: read as {wide}, a guess",)
        refuse_binary(data)
    if known is not None and known != "utf-8":
        text = data.decode(known, "replace")
        if known == "cp1252" and not data.isascii() and is_utf8(data):
            return data.decode("utf-8"), (f"it is declared as {said}, but is UTF-8",)
        if text.count("\ufffd") <= 1 + len(text) // 100:
            return text, lost(text)
        warnings = (f"it is declared as {said}, which it is not",)
    text, more = undeclared(data)
    return text, warnings + more


def declared(data: bytes, markup: bool) -> str:
    """The encoding that a text names itself; empty if it names none."""
    head = data[:HEAD]
    if (xml := _XML.match(head.lstrip())) and (found := _ENCODING.search(xml[0])):
        return found[1].decode()
    if found := _SHEET.match(head) or in_comment(head):
        return found[1].decode()
    for meta in _META.finditer(head) if markup else ():
        if found := _CHARSET.search(meta[0]):
            name = found[1].decode()
            # What could be read so far has a byte for each character.
            return "utf-8" if name.lower().startswith("utf-16") else name
    return ""


def in_comment(head: bytes) -> re.Match[bytes] | None:
    """Find `coding: NAME` in a comment, in one of the first two lines; before the second one stands a comment (PEP
    263)."""
    for line in head.split(b"\n", 2)[:2]:
        if not line.startswith(b"#"):
            return None
        if found := _CODING.search(line[:120]):
            return found
    return None


def codec(name: str) -> str | None:
    """Python's name of an encoding of text, None if there is none."""
    label = name.strip().strip("\"'").lower()
    try:
        found = codecs.lookup(ALIASES.get(label, label)).name.lower() if label else ""
    except (LookupError, ValueError):
        return None
    return found if found and found.replace("_", "-") not in NO_ENCODINGS else None


def undeclared(data: bytes) -> tuple[str, tuple[str, ...]]:
    """UTF-8, with marks for what is damaged in it, or else what is most plausible."""
    if is_utf8(data):
        return data.decode("utf-8"), ()
    text = data.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    good = sum(1 for byte in data if byte >= 0xC0) - bad
    never = data.count(b"\xff") + data.count(b"\xfe")  # in no UTF-8, and hardly a letter elsewhere
    if bad <= never or (good > 0 and bad <= max(1, good // 10)) or cut(data):
        return text, lost(text)
    encoding = guess(data)
    return data.decode(encoding, "replace"), (f"its encoding is not declared: read as {encoding}, a guess",)


def cut(data: bytes) -> bool:
    """Tell whether it is UTF-8 but for an end in the middle of a character, two bytes or more of which are there."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end == len(data) and error.reason == "unexpected end of data" and error.end - error.start > 1
    return False


def guess(data: bytes) -> str:
    """The encoding in which the most of what is beyond ASCII are frequent characters; Windows-1252 if in none."""
    sample = data[:65536]
    best, score = "cp1252", PLAUSIBLE
    beyond = sum(byte >= 128 for byte in sample)
    if beyond * 3 < sum(chr(byte).isalpha() for byte in sample if byte < 128):
        return best  # Latin letters, some of them with accents
    for encoding, common in COMMON.items():
        text = sample.decode(encoding, "replace")
        foreign = [c for c in text if c >= "\x80"]
        if text.count("\ufffd") > 1 + len(text) // 100 or not foreign:
            continue
        share = sum(c in common for c in foreign) / len(foreign)
        if share > score:
            best, score = encoding, share
    return best


def without_mark(data: bytes) -> str | None:
    """UTF-16 that has no byte order mark but the zeros of Western text in every second place; None if it is not."""
    head = data[:4096]
    half = len(head) // 2
    if half < 2 or len(data) % 2:
        return None
    for first, encoding in ((0, "utf-16-be"), (1, "utf-16-le")):
        if head[first::2].count(0) > 0.6 * half and not head[1 - first :: 2].count(0):
            return encoding
    return None


def is_utf8(data: bytes) -> bool:
    """Tell whether it can be read as UTF-8 without a loss."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def refuse_binary(data: bytes) -> None:
    """Raises:
    BadDocument: it is no text."""
    head = data[:65536]
    if b"\0" in data or sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head) > 2 + len(head) // 20:
        raise BadDocument("this is binary data, not text")


def lossy(data: bytes, encoding: str) -> tuple[str, tuple[str, ...]]:
    """Text, with marks for what is damaged in it."""
    text = data.decode(encoding, "replace")
    return text, lost(text)


def lost(text: str) -> tuple[str, ...]:
    """A sentence for the characters that could not be read."""
    count = text.count("\ufffd")
    return (f"{count} character{'s' * (count > 1)} could not be read: damaged or cut off",) if count else ()
