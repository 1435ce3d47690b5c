"""Markdown from markdown-it's tokens.

HTML in it counts where it is meant as such: elements that format, those with attributes, those that are closed. A bare
`<script>`, `List<String>` or `<your-key>` in a sentence is text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from waver.retrieval.base import Parsed
from waver.retrieval.flow import APART, BLOCKS, HIDDEN, VOID, Flow
from waver.retrieval.front_matter import split

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.token import Token

INLINE = frozenset(
    "a abbr acronym audio b bdi bdo big cite code data del dfn em font i ins kbd map mark math nobr picture q rp rt "
    "ruby s samp small span strike strong sub sup svg time tt u var video".split()
)
KNOWN = INLINE | BLOCKS | HIDDEN | APART | VOID | {"tbody", "colgroup"}
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9-]*+)([^>]*+)>", re.S)
_CLOSERS = {"<!--": "-->", "<?": "?>", "<![cdata[": "]]>"}


def markdown(content: str, most: int) -> Parsed:
    """A document's text without its marks, and its front matter as metadata. The title is the front matter's, else
    the first heading of the first order, else the first heading.

    Args:
        most: characters that the text may have.

    Raises:
        TooLarge: it has more.
    """
    metadata, body, warnings = split(content)
    flow = Flow(most)
    Reader(flow).read(parser().parse(body))
    title, text = flow.finish()
    named = metadata.get("title")
    return Parsed(" ".join(str(named).split()) if named is not None else title, text, metadata, warnings)


def parser() -> MarkdownIt:
    """CommonMark with tables, in which HTML that is not closed is text."""
    from markdown_it import MarkdownIt
    from markdown_it.rules_block.html_block import html_block

    def closed_html(state: StateBlock, first: int, last: int, silent: bool) -> bool:
        start, end = state.bMarks[first] + state.tShift[first], state.eMarks[first]
        return not bare(state.src, start, end, state.env.setdefault("last", {})) and html_block(
            state, first, last, silent
        )

    made = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    made.block.ruler.at("html_block", closed_html, {"alt": ["paragraph", "reference", "blockquote"]})
    return made


def bare(source: str, start: int, end: int, last: dict[str, Any]) -> bool:
    """Tell whether a line that begins with `<` is a sentence about a tag rather than HTML.

    Args:
        last: kept for a document: where each end was seen last.
    """
    line = source[start : min(end, start + 200)].lower()
    for opening, closing in _CLOSERS.items():
        if line.startswith(opening):
            return opening == "<?" or last_place(source, closing, last) <= start
    tag = _TAG.match(line)
    name = tag[2] if tag else line[1:].lstrip("/").split(maxsplit=1)[0] if line[1:].strip("/ ") else ""
    if name not in HIDDEN and name not in ("pre", "svg", "textarea"):
        return bool(tag) and name not in KNOWN
    closing = f"</{name}"
    if last_place(source, closing, last) <= start:
        return True
    rest = source[start + tag.end() : end] if tag else ""
    return bool(tag and not tag[3].strip() and rest.strip() and closing not in rest.lower() and name != "pre")


def last_place(source: str, text: str, last: dict[str, Any]) -> int:
    """Return where a text is seen last, -1 if nowhere; in any case of letters."""
    if text not in last:
        if "lowered" not in last:
            last["lowered"] = source.lower()
        last[text] = last["lowered"].rfind(text)
    place: int = last[text]
    return place


class Reader:
    """Gives a document's tokens to a flow."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._open: Counter[str] = Counter()

    def read(self, tokens: Sequence[Token]) -> None:
        """Take block tokens in order."""
        for token in tokens:
            if token.type == "inline":
                self._inline(token.children or [])
            elif token.type == "html_block":
                Fragment(self._flow, self._open, token.content).read()
            elif token.type in ("fence", "code_block"):
                self._flow.start("pre")
                self._flow.text(token.content)
                self._flow.end("pre")
            elif token.nesting:
                (self._flow.start if token.nesting > 0 else self._flow.end)(token.tag)

    def _inline(self, tokens: Sequence[Token]) -> None:
        meant = self._meant(tokens)
        for i, token in enumerate(tokens):
            if token.type in ("text", "code_inline"):
                self._flow.text(token.content)
            elif token.type == "softbreak":
                self._flow.text(" ")
            elif token.type == "hardbreak":
                self._flow.start("br")
            elif token.type == "image":
                self._flow.text("".join(each.content or " " for each in token.children or []))
            elif token.type == "html_inline":
                if i in meant:
                    Fragment(self._flow, self._open, token.content, sure=True).read()
                elif not token.content.startswith("<!--"):
                    self._flow.text(token.content)

    def _meant(self, tokens: Sequence[Token]) -> set[int]:
        """Tell which tokens are tags of a page, rather than tags that are spoken of."""
        meant: set[int] = set()
        waiting: dict[str, list[int]] = {}
        for i, token in enumerate(tokens):
            tag = _TAG.fullmatch(token.content) if token.type == "html_inline" else None
            if tag is None or (name := tag[2].lower()) not in KNOWN:
                continue
            attributes = tag[3].strip(" \t\n/")
            if name in HIDDEN and not tag[1] and not attributes:
                continue
            if tag[1] and waiting.get(name):
                meant |= {waiting[name].pop(), i}
            elif tag[1] and self._open[name] > 0:
                self._open[name] -= 1
                meant.add(i)
            elif not tag[1] and name in VOID:
                if name in ("br", "hr", "wbr", "img", "input") or attributes:
                    meant.add(i)
            elif not tag[1]:
                waiting.setdefault(name, []).append(i)
                if attributes and name not in HIDDEN:
                    meant.add(i)
                    if name not in INLINE:
                        self._open[name] += 1
        return meant


class Fragment(HTMLParser):
    """Gives a piece of HTML, which need not be balanced, to a flow. Tags that HTML does not know are text.

    Args:
        opened: how many elements of a name are open; kept for the document.
        sure: whether each tag is one of a page.
    """

    def __init__(self, flow: Flow, opened: Counter[str], content: str, sure: bool = False) -> None:
        super().__init__(convert_charrefs=True)
        self._flow, self._opened, self._content, self._sure = flow, opened, content, sure
        self._last: dict[str, Any] = {}
        self._passed = 0

    def read(self) -> None:
        """Give all of it."""
        self.feed(self._content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        written = self.get_starttag_text() or ""
        self._passed = self._content.find(written, self._passed) + len(written)
        closed = self._sure or last_place(self._content, f"</{tag}", self._last) >= self._passed
        if tag not in KNOWN or (tag in HIDDEN and not closed):
            self._flow.text(written)
            return
        if tag not in VOID and not self._sure:
            self._opened[tag] += 1
        self._flow.start(tag, dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag in HIDDEN:
            self._flow.end(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in KNOWN:
            self._flow.text(f"</{tag}>")
        elif tag not in VOID:
            if not self._sure:
                self._opened[tag] -= self._opened[tag] > 0
            self._flow.end(tag)

    def handle_data(self, data: str) -> None:
        self._flow.text(data)

    def set_cdata_mode(self, *arguments: Any, **options: Any) -> None:
        """Read on: what is within `script` and `style` is left out by the flow, and only if they are closed."""
        if last_place(self._content, f"</{arguments[0]}", self._last) >= self._passed:
            super().set_cdata_mode(*arguments, **options)
