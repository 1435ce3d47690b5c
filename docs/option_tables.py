"""Make docs/configuration.md, a table of every option with its default, and configs/schema.json, from the models that
read a configuration. `docs/generate.py` writes them.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from waver.engines.config import LoraConfig, TransformersConfig, UpstreamConfig, VllmConfig
from waver.policies.select.verifiers import FunctionVerifier, HttpVerifier, PythonVerifier
from waver.server.config import Config
from waver.server.config_schema import config_schema
from waver.server.reload import is_live

ROOT = Path(__file__).resolve().parent.parent
NOTICE = "<!-- Written by docs/generate.py. -->"
VERIFIERS = {"python": PythonVerifier, "function": FunctionVerifier, "http": HttpVerifier}
ENGINES = {"transformers": TransformersConfig, "vllm": VllmConfig, "lora": LoraConfig, "openai": UpstreamConfig}


def page() -> str:
    """Make the page: an introduction, and a table for each section."""
    intro = (ROOT / "docs" / "configuration_intro.md").read_text(encoding="utf-8")
    parts = ["# Configuration", "", NOTICE, "", intro]
    parts += ["## The file", "", *_table(Config, ""), ""]
    for backend, model in ENGINES.items():
        about = " ".join((model.__doc__ or "").split())
        parts += [f"## engines.NAME with backend: {backend}", "", about, "", *_table(model, "engines.NAME."), ""]
    for kind, model in VERIFIERS.items():
        about = " ".join((model.__doc__ or "").split())
        parts += [f"## verifiers.NAME with kind: {kind}", "", about, "", *_table(model, "verifiers.NAME."), ""]
    for section in sections():
        model = Config.model_fields[section].annotation
        about = " ".join((model.__doc__ or "").split())
        parts += [f"## {section}", "", about, "", *_table(model, f"{section}."), ""]
    parts += ["The parameters of policies are in [policies.md](policies.md).", ""]
    return "\n".join(parts)


def sections() -> list[str]:
    """Name the sections that are models of their own."""
    fields = Config.model_fields.items()
    return [
        name for name, each in fields if isinstance(each.annotation, type) and issubclass(each.annotation, BaseModel)
    ]


def _table(model: type[BaseModel], prefix: str) -> Iterator[str]:
    yield "| option | default | live | what it is |"
    yield "| --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        words = " ".join((field.description or "").split()).replace("|", "\\|")
        live = "yes" if is_live(prefix + name) else ""
        yield f"| `{prefix}{name}` | {_default(field)} | {live} | {words}{_choices(field, words)} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "below"
    if isinstance(value, Path):
        value = str(value)
    return "" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


def _choices(field: FieldInfo, words: str) -> str:
    """List the values that a field can have, where there are few and its description leaves one out."""
    values = [value for value in _literals(field.annotation) if value is not None]
    if len(values) < 2 or all(f"`{value}`" in words for value in values):
        return ""
    return f" ({', '.join(f'`{value}`' for value in values)})"


def _literals(hint: Any) -> list[Any]:
    origin = get_origin(hint)
    if origin is Literal:
        return list(get_args(hint))
    if origin is Annotated:
        return _literals(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return [value for part in get_args(hint) for value in _literals(part)]
    return []


def pages() -> dict[Path, str]:
    """Make both files, by their paths."""
    schema = json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"
    return {ROOT / "docs" / "configuration.md": page(), ROOT / "configs" / "schema.json": schema}
