"""HTML from its tree, and XHTML as XML."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.entities import html5
from xml.parsers import expat

from waver.retrieval.base import Parsed
from waver.retrieval.flow import VOID, Flow

NEEDED = frozenset({"dialog", "img", "input", "table", "td", "th"})
"""Elements whose attributes matter."""
_XHTML = re.compile(r"<\?xml\s|<!DOCTYPE[^<>]*XHTML|<html[^<>]*\sxmlns\s*+=", re.I)
_DECLARATION = re.compile(r"<\?xml[^<>]*\?>")


def html(content: str, most: int) -> Parsed:
    """Return what a reader of a page would see, one paragraph for a block, without hidden parts.

    Args:
        most: characters that the text may have.

    Raises:
        TooLarge: it has more.
    """
    if _XHTML.search(content[:1024]):
        try:
            return xhtml(content, most)
        except expat.ExpatError:
            pass  # not well-formed: browsers take it for HTML, too
    return from_tree(content, most)


def from_tree(content: str, most: int) -> Parsed:
    """HTML as browsers read it."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(content)
    for hidden in tree.css("[hidden]"):
        hidden.decompose()
    heading = tree.css_first("title")
    flow = Flow(most)
    node = tree.body
    top = node.mem_id if node is not None else 0
    while node is not None:
        tag = node.tag or ""
        if tag == "-text":
            flow.text(node.text() or "")
        elif not tag.startswith("-"):
            flow.start(tag, node.attributes if tag in NEEDED else None)
        below = node.first_child
        if below is not None:
            node = below
            continue
        while node is not None:
            if not (node.tag or "-").startswith("-") and node.tag not in VOID:
                flow.end(node.tag or "")
            if node.mem_id == top:
                node = None
                break
            if node.next is not None:
                node = node.next
                break
            node = node.parent
    title, text = flow.finish()
    named = " ".join(heading.text().split()) if heading is not None else ""
    return Parsed(named or title, text)


def xhtml(content: str, most: int) -> Parsed:
    """XHTML as XML: `<title/>` and `<script/>` end where they begin.

    Raises:
        expat.ExpatError: it is not well-formed, or declares entities of its own.
    """
    flow, named, within = Flow(most), [""], [0, 0]
    parser = expat.ParserCreate("utf-8", " ")
    parser.buffer_text = True
    parser.UseForeignDTD(True)
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)

    def start(name: str, attributes: dict[str, str]) -> None:
        tag = name.rpartition(" ")[2].lower()
        within[0] += tag == "body" or within[0] > 0
        within[1] = within[1] + 1 if tag == "title" or within[1] else 0
        if within[0]:
            flow.start(tag, attributes)

    def end(name: str) -> None:
        tag = name.rpartition(" ")[2].lower()
        if within[0]:
            within[0] -= 1
            if tag not in VOID:
                flow.end(tag)
        within[1] = max(within[1] - 1, 0)

    def text(data: str) -> None:
        if within[0]:
            flow.text(data)
        elif within[1]:
            named[0] += data

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.SkippedEntityHandler = _skipped(text)
    parser.EntityDeclHandler = _refuse
    parser.Parse(_DECLARATION.sub("", content.lstrip("\ufeff \t\r\n"), count=1).encode("utf-8", "replace"), True)
    title, body = flow.finish()
    return Parsed(" ".join(named[0].split()) or title, body)


def _skipped(text: Callable[[str], None]) -> Callable[[str, bool], None]:
    """HTML's own entities, which XHTML's document type declares elsewhere; others stay as they are written."""
    return lambda name, parameter: None if parameter else text(html5.get(f"{name};", f"&{name};"))


def _refuse(*declared: object) -> None:
    raise expat.ExpatError("entities of its own")
