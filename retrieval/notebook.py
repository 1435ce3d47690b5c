"""Jupyter notebooks: the text of their cells, code with its indentation, and what the cells printed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from waver.retrieval.base import BadDocument, Parsed, Scalar
from waver.retrieval.markdown_text import markdown

NO_NOTEBOOK = "this is called a notebook but is none"


def notebook(content: str, most: int) -> Parsed:
    """Read a notebook of format 4, or the older 3.

    Args:
        most: characters that the text of a cell may have.

    Raises:
        BadDocument: it is none.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadDocument(NO_NOTEBOOK) from error
    if not isinstance(found, dict):
        raise BadDocument(NO_NOTEBOOK)
    sheets = found.get("worksheets") or [found]
    cells = [cell for sheet in sheets if isinstance(sheet, dict) for cell in sheet.get("cells") or ()]
    if not all(isinstance(cell, dict) for cell in cells) or "nbformat" not in found:
        raise BadDocument(NO_NOTEBOOK)
    title, parts, pictures = "", [], 0
    for cell in cells:
        text = joined(cell.get("source", cell.get("input", "")))
        if cell.get("cell_type") == "markdown":
            read = markdown(text, most)
            title, text = title or read.title, read.text
        parts.append(text)
        for output in cell.get("outputs") or ():
            printed, drawn = shown(output) if isinstance(output, dict) else ("", 0)
            parts.append(printed)
            pictures += drawn
    warnings = (f"{pictures} of its outputs show no text: pictures or widgets",) if pictures else ()
    return Parsed(title, "\n\n".join(part for part in parts if part.strip()), metadata(found), warnings)


def shown(output: Mapping[str, Any]) -> tuple[str, int]:
    """Return the text of a cell's output, and 1 if there is something else than text."""
    if output.get("output_type") == "error":
        return f"{joined(output.get('ename'))}: {joined(output.get('evalue'))}", 0
    data = output.get("data")
    data = data if isinstance(data, dict) else output
    other = any(kind.startswith(("image/", "application/vnd.")) or kind in ("png", "jpeg", "svg") for kind in data)
    text = joined(output.get("text")) or joined(data.get("text/markdown")) or joined(data.get("text/plain"))
    return ("", 1) if other else (text, 0)


def joined(value: Any) -> str:
    """Return a text, which a notebook may hold as a list of lines."""
    return value if isinstance(value, str) else "".join(map(str, _each(value)))


def _each(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, list) else ()


def metadata(found: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return the language of the code, if it is said."""
    said = found.get("metadata")
    for key in ("language_info", "kernelspec"):
        about = said.get(key) if isinstance(said, dict) else None
        name = (
            (about.get("name") if key == "language_info" else about.get("language")) if isinstance(about, dict) else 0
        )
        if isinstance(name, str) and name:
            return {"code": name.lower()[:64]}
    return {}
