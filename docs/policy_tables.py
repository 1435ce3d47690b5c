"""Make what lists the policies, from their own modules: docs/policies.md, the table in README.md, and the types of the
clients' policies (clients/policies.pyi, clients/typescript/policies.d.ts). `docs/generate.py` writes them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from waver.engines.plugins import summary
from waver.policies.base import STAGES, Policy
from waver.policies.registry import policies
from waver.policies.retrieve.gate_registry import gates

ROOT = Path(__file__).resolve().parent.parent
NOTICE = "Written by docs/generate.py."
TABLE = re.compile(r"(<!-- policies -->\n).*?(<!-- end of policies -->\n)", re.S)


def readme_table() -> str:
    """Make the table of the README: a row for each policy."""
    rows = [
        f"| `{name}` | {summary(each)} | {_link(each.paper).replace('[arXiv ', '[')} |"
        for name, each in policies().items()
    ]
    return "\n".join(["| policy | what it does | arXiv |", "| --- | --- | --- |", *rows, ""])


def readme() -> str:
    """Put the table into the README, where it has a place for it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return TABLE.sub(lambda found: found[1] + readme_table() + found[2], text)


def page() -> str:
    """Make the page of policies: parameters, report keys and metrics of each, and the gates of `l_rag`."""
    parts = ["# Policies", "", f"<!-- {NOTICE} -->", "", f"Outermost first: {', '.join(STAGES)}.", "", readme_table()]
    for name, each in policies().items():
        parts += [f"## {name}", "", f"{summary(each)} Stage `{each.stage}`. {_link(each.paper)}".strip(), ""]
        parts += _parameters(each)
        parts += [f"- `waver.{key}`: {text}" for key, text in each.report_keys.items()]
        parts += [f"- metric `{counter.name}_total`: {counter.help}" for counter in each.metrics]
        parts += [] if parts[-1] == "" else [""]
    parts += ["## Gates of l_rag", "", "| gate | score | threshold | draft tokens | needs | paper |"]
    parts += ["| --- | --- | --- | --- | --- | --- |"]
    for name, gate in gates().items():
        threshold = "" if gate.threshold is None else f"{gate.threshold:g}"
        row = [f"`{name}`", summary(gate), threshold, str(gate.draft_tokens), gate.needs or "", _link(gate.paper)]
        parts.append(f"| {' | '.join(row)} |")
    return "\n".join([*parts, ""])


def _parameters(policy: type[Policy]) -> list[str]:
    described = policy.model_json_schema()["properties"]
    rows = [
        f"| `{name}` | {described[name].get('description', field.description)} | `{_default(field.default)}` |"
        for name, field in policy.model_fields.items()
        if name != "name"
    ]
    return ["| parameter | what it is | default |", "| --- | --- | --- |", *rows, ""] if rows else []


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump()
    return repr(value).replace("|", "\\|")


def _link(paper: str | None) -> str:
    return "" if paper is None else f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv ')})"


def stub() -> str:
    """Make the types of the client's builders."""
    nested: dict[str, type[BaseModel]] = {}
    functions = []
    for name, each in policies().items():
        described = each.model_json_schema()["properties"]
        arguments = [
            f"{key}: {_hint(field.annotation, nested, described[key])} = ..."
            for key, field in each.model_fields.items()
            if key != "name"
        ]
        star = "*, " if arguments else ""
        functions.append(f'def {name}({star}{", ".join(arguments)}) -> dict[str, Any]:\n    """{summary(each)}"""\n')
    classes = [
        f'class {name}(TypedDict, total=False):\n    """{summary(each)}"""\n\n'
        + "".join(f"    {key}: {_hint(field.annotation, {}, {})}\n" for key, field in each.model_fields.items())
        for name, each in nested.items()
    ]
    head = (
        f'"""{NOTICE}"""\n\nfrom typing import Any, Literal, TypedDict\n\n'
        "def policy(name: str, **parameters: Any) -> dict[str, Any]: ...\n"
    )
    text = "\n".join([head, *classes, *functions])
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", "policies.pyi", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


def _hint(hint: Any, nested: dict[str, type[BaseModel]], schema: Mapping[str, Any]) -> str:
    """A type as Python writes it; a model becomes a TypedDict."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _hint(parts[0], nested, schema)
    if origin is Literal or "enum" in schema:
        return f"Literal[{', '.join(map(repr, schema.get('enum', parts)))}]"
    if origin in (Union, types.UnionType):
        written = [_hint(part, nested, {}) for part in parts]
        return " | ".join(sorted(written, key=lambda part: part == "None"))  # None last, as ruff wants it
    if origin is not None:
        return f"{origin.__name__}[{', '.join(_hint(part, nested, {}) for part in parts)}]"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        nested[hint.__name__] = hint
        return hint.__name__
    return "None" if hint in (None, type(None)) else str(hint.__name__)


def typescript() -> str:
    """Make the types of policies for the TypeScript client, from their JSON schemas."""
    parts = [f"// {NOTICE}"]
    nested: dict[str, str] = {}
    for name, each in policies().items():
        schema = each.model_json_schema()
        for key, inner in schema.get("$defs", {}).items():
            nested[key] = _interface(key, inner, "")
        fixed = f"  name: {json.dumps(name)};\n"
        parts.append(f"/** {summary(each)} */\n{_interface(_camel(name), schema, fixed)}")
    names = "".join(f"\n  | {_camel(name)}" for name in policies())
    about = "A policy with its parameters, as a request names it; one of a plug-in is cast to this type."
    union = f"/** {about} */\nexport type Policy ={names};"
    return "\n\n".join([*parts, *nested.values(), union]) + "\n"


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _interface(name: str, schema: Mapping[str, Any], fixed: str) -> str:
    """An interface of what a JSON schema describes; every field may be left out."""
    if "enum" in schema:
        return f"export type {name} = {' | '.join(map(json.dumps, schema['enum']))};"
    fields = []
    for key, each in schema.get("properties", {}).items():
        if key == "name" and fixed:
            continue
        if about := " ".join(each.get("description", "").split()).replace("*/", "* /"):
            fields.append(f"  /** {about} */\n")
        fields.append(f"  {key}?: {_type(each)};\n")
    return f"export interface {name} {{\n{fixed}{''.join(fields)}}}"


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema as TypeScript writes it."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "const" in schema or "enum" in schema:
        return " | ".join(map(json.dumps, schema.get("enum", [schema.get("const")])))
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " | ".join(dict.fromkeys(_type(each) for each in schema[key]))
    simple = {"integer": "number", "number": "number", "string": "string", "boolean": "boolean", "null": "null"}
    kind = schema.get("type")
    if kind == "array":
        return f"Array<{_type(schema.get('items', {}))}>"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"Record<string, {_type(values) if isinstance(values, dict) else 'unknown'}>"
    return simple.get(str(kind), "unknown")


def pages() -> dict[Path, str]:
    """Make every file that lists policies, by its path."""
    return {
        ROOT / "docs" / "policies.md": page(),
        ROOT / "README.md": readme(),
        ROOT / "clients" / "policies.pyi": stub(),
        ROOT / "clients" / "typescript" / "policies.d.ts": typescript(),
    }
