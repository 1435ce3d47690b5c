"""Make the reference of the Python interface (docs/api.md), which `docs/generate.py` writes.

It comes from signatures and docstrings. Files are read, not imported, so that the page is the same wherever it is made.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTICE = "<!-- Written by docs/generate.py. -->"
PARTS = {
    "Talk to a server": ["clients/client.py", "clients/resources.py", "clients/calls.py", "clients/policies.py"],
    "Measure uncertainty": [
        "entropy/shannon.py", "entropy/rolling.py", "entropy/bounds.py", "entropy/conformal.py", "entropy/top_w.py",
    ],
    "Write a policy": ["policies/base.py", "policies/helpers.py", "policies/job.py"],
    "Run a model": ["engines/base.py", "engines/footprint.py"],
}  # fmt: skip
"""Sections of the page, and the files of each."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def page() -> str:
    """Make the page."""
    out = [
        "# The Python interface",
        "",
        NOTICE,
        "",
        "Everything is imported as `waver.…`. The wheel brings all of it. Policies and their parameters "
        "are in [policies.md](policies.md), all modules in [modules.md](modules.md), and how to add to them in "
        "[extending.md](extending.md).",
        "",
    ]
    for title, files in PARTS.items():
        out += [f"## {title}", ""]
        for file in files:
            out += module(ROOT / file)
    return "\n".join(out)


def module(file: Path) -> list[str]:
    """Return the lines about a file: what it is for, and its public classes and functions."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    name = "waver." + ".".join(file.relative_to(ROOT).with_suffix("").parts)
    out = [f"### {name}", "", _text(ast.get_docstring(tree)), ""]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and _public(node.name):
            out += _class(node)
        elif isinstance(node, Function) and _public(node.name):
            out += _described(signature(node), ast.get_docstring(node))
    return out


def _class(node: ast.ClassDef) -> list[str]:
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    out = _described(f"class {node.name}({bases})" if bases else f"class {node.name}", ast.get_docstring(node))
    fields = list(_fields(node))
    if fields:
        out += ["```text", *fields, "```", ""]
    for each in node.body:
        if isinstance(each, Function) and (_public(each.name) or each.name == "__init__"):
            about = ast.get_docstring(each)
            if about or _public(each.name):
                out += _described(f"{node.name}.{signature(each)}", about)
    return out


def _fields(node: ast.ClassDef) -> Iterator[str]:
    """Yield the annotated and the assigned attributes of a class, each with its docstring as a comment."""
    following = [*node.body[1:], None]
    for each, after in zip(node.body, following, strict=True):
        if isinstance(each, ast.AnnAssign):
            names: list[ast.expr] = [each.target]
        elif isinstance(each, ast.Assign):
            names = each.targets
        else:
            continue
        if any(isinstance(name, ast.Name) and _public(name.id) and name.id != "model_config" for name in names):
            if (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                yield from (f"# {line}" for line in textwrap.wrap(_flat(after.value.value), 110))
            yield ast.unparse(each)


def signature(node: Function) -> str:
    """Return a function's name, arguments and result, decorators left out."""
    start = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return f"{start}{node.name}({ast.unparse(node.args)}){result}"


def _described(head: str, about: str | None) -> list[str]:
    return [f"#### `{head}`", "", _text(about), ""] if about else [f"#### `{head}`", ""]


def _text(docstring: str | None) -> str:
    """Return a docstring as Markdown: paragraphs on one line each, sections of arguments and errors as lists."""
    if not docstring:
        return ""
    return "\n\n".join(_paragraph(part) for part in docstring.strip().split("\n\n"))


def _paragraph(part: str) -> str:
    lines = part.splitlines()
    if lines[0].strip() in ("Args:", "Raises:", "Returns:", "Yields:"):
        return f"*{lines[0].strip()[:-1]}:* {_flat(' '.join(lines[1:]))}"
    if all(line.startswith("    ") for line in lines):
        return "\n".join(["```", *textwrap.dedent(part).splitlines(), "```"])
    return _flat(part)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _public(name: str) -> bool:
    return not name.startswith("_")
