"""Parse documents in separate processes, which are killed when they take too long and replaced when they die."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from waver.isolation import Exhausted, Overdue, Workers
from waver.retrieval.base import BadDocument, Parsed, TooLarge
from waver.retrieval.encoding import is_utf8, refuse_binary
from waver.retrieval.formats import LANGUAGES, charset_of, clean, kind_of, suffix_of

FAILED = "reading it failed: it is damaged, or takes more memory than is allowed"
WORKER = Path(__file__).with_name("worker.py")


class Parsers:
    """Pool of `at_once` parser processes. Sizes in bytes, time in seconds."""

    def __init__(
        self,
        max_file: int,
        max_text: int,
        seconds: float,
        memory: int,
        at_once: int = 2,
        max_kind: Mapping[str, int] | None = None,
    ) -> None:
        self._max_file, self._max_text, self._max_kind = max_file, max_text, max_kind or {}
        self._seconds = seconds
        self._workers = Workers(WORKER, memory, at_once)

    def check_size(self, size: int) -> None:
        """Check the size of a document.

        Raises:
            TooLarge: a document of so many bytes is not read.
        """
        if size > self._max_file:
            raise TooLarge(f"it is larger than {self._max_file} bytes")

    def parse(self, data: bytes, name: str, content_type: str = "") -> Parsed:
        """Read a document.

        Raises:
            BadDocument: it cannot be read, or holds no text.
            TooLarge: it, or what is in it, is beyond the limits.
        """
        self.check_size(len(data))
        if not data.strip():
            raise BadDocument("it is empty")
        kind = kind_of(data, name, content_type)
        if len(data) > (most := self._max_kind.get(kind, self._max_file)):
            raise TooLarge(f"it is larger than {most} bytes, the most of its kind ({kind})")
        if kind == "text" and len(data) > 4 * self._max_text + 4:  # UTF-32 has four bytes for what may be one
            raise TooLarge(f"its text is larger than {self._max_text} bytes")
        charset = charset_of(content_type)
        if kind == "text" and is_utf8(data) and not data.startswith(BOM_UTF8) and not charset and b"\0" not in data:
            refuse_binary(data)
            found = Parsed("", clean(data.decode()))  # quick, and most are
            if len(found.text.encode("utf-8", "replace")) > self._max_text:
                raise TooLarge(f"its text is larger than {self._max_text} bytes")
        else:
            found = self._ask(kind, data, charset)
        if not found.text:
            raise BadDocument("it holds no text")
        language = LANGUAGES.get(suffix_of(name)) if kind == "text" else None
        return replace(found, metadata={"code": language, **found.metadata}) if language else found

    def _ask(self, kind: str, data: bytes, charset: str) -> Parsed:
        try:
            answer, text = self._workers.ask(
                {"kind": kind, "most": self._max_text, "charset": charset}, data, self._seconds
            )
        except Overdue:
            raise BadDocument(f"reading it took longer than {self._seconds:g} s") from None
        except Exhausted:
            raise BadDocument(FAILED) from None
        if "error" in answer:
            raise (TooLarge if answer["error"] == "TooLarge" else BadDocument)(answer["message"])
        return Parsed(answer["title"], text.decode("utf-8"), answer["metadata"], tuple(answer["warnings"]))

    def close(self) -> None:
        self._workers.close()

    def __enter__(self) -> Parsers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
