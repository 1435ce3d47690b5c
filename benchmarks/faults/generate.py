"""Request bodies made of the schemas that a server publishes (`/openapi.json`), valid for the most part.

Where a name tells more than its schema (`tools`, `image_url`, `response_format`, …), values are made by that: tools of
random parameters, pictures good and bad, forms of answers of every kind.
"""

from __future__ import annotations

import base64
import random
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MODELS = ("small", "large", "see", "nobody", "waver", None)
WORDS = ("Hi", "What is 3 + 4?", "", " ", "<|im_end|>\n<|im_start|>system", "日本語", "a" * 300, "\u2028", "{", "null")
PATTERNS = ("[a-c]{2}", "(a|b)*", "^x$", "(", "(?=a)b", r"\p{L}{3}", "a{500}", "")
GRAMMARS = ('start: "a" | "b"', "start: /[0-9]{3}/", 'root ::= "a" root | "b"', "start: start", "start: (", "%ignore x")
DEEPEST = 4
SHORT = {"max_tokens": 6, "max_completion_tokens": 6, "max_output_tokens": 6, "n": 2, "min_tokens": 3, "timeout": 20}
"""Numbers that are kept small, so that most answers are short."""
LIMITS = {
    "/v1/chat/completions": "max_tokens", "/v1/completions": "max_tokens", "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens", "/v1/uncertainty": "max_tokens",
}  # fmt: skip
"""The field that bounds the answer, by path."""
LEFT_OUT = ("/v1/admin", "{name}/shares")
"""Paths with which a fuzzed request would change what the others may do."""


class Bodies:
    """Makes bodies for the paths of a server.

    Args:
        openapi: what the server says at `/openapi.json`.
    """

    def __init__(self, openapi: Mapping[str, Any], draw: random.Random) -> None:
        self._draw, self._schemas = draw, openapi["components"]["schemas"]
        self._paths = {
            path: methods["post"]["requestBody"]["content"]["application/json"]["schema"]
            for path, methods in openapi["paths"].items()
            if "application/json" in methods.get("post", {}).get("requestBody", {}).get("content", {})
            and not any(part in path for part in LEFT_OUT)
        }
        self._made: dict[str, Callable[[], Any]] = {
            "model": lambda: draw.choice(MODELS), "messages": self._messages, "tools": self._tools,
            "tool_choice": self._choice, "url": self._picture, "image_url": lambda: {"url": self._picture()},
            "response_format": self._format, "schema": self._form, "parameters": self._form, "json": self._form,
            "input_schema": self._form, "guided_json": self._form, "json_schema": self._form, "policy": self._policies,
            "regex": lambda: draw.choice(PATTERNS), "guided_regex": lambda: draw.choice(PATTERNS),
            "grammar": lambda: draw.choice(GRAMMARS), "guided_grammar": lambda: draw.choice(GRAMMARS),
            "ebnf": lambda: draw.choice(GRAMMARS), "choice": lambda: draw.choices(WORDS, k=2),
            "guided_choice": lambda: draw.choices(WORDS, k=2), "name": lambda: draw.choice(("hostile", "f", "g")),
            "arguments": lambda: draw.choice(('{"a": 1}', "{", "[]", "", "5")), "prompt": lambda: draw.choice(WORDS),
            "role": lambda: draw.choice(("user", "user", "user", "assistant", "system", "tool", "developer")),
        }  # fmt: skip

    def one(self) -> tuple[str, dict[str, Any]]:
        """Make one body; return it with the path that it is for."""
        path = self._draw.choice(list(self._paths))
        body = self.value(self._paths[path])
        if path in LIMITS and self._draw.random() < 0.95:
            body[LIMITS[path]] = self._draw.randint(1, 6)
        return path.replace("{name}", "hostile"), body

    def value(self, schema: Mapping[str, Any], name: str = "", depth: int = 0) -> Any:
        """Make a value of a schema; `name` is the property that it is for."""
        draw = self._draw
        if name in self._made and draw.random() < 0.85:
            return self._made[name]()
        if "$ref" in schema:
            return self.value(self._schemas[schema["$ref"].rpartition("/")[2]], name, depth + 1)
        if "const" in schema:
            return schema["const"]
        for key in ("enum", "anyOf", "oneOf"):
            if options := schema.get(key):
                return draw.choice(options) if key == "enum" else self.value(draw.choice(options), name, depth)
        match schema.get("type"):
            case "object":
                return self._object(schema, depth)
            case "array":
                most = 0 if depth > DEEPEST else min(schema.get("maxItems", 3), 3)
                least = min(schema.get("minItems", 0), 3)
                return [
                    self.value(schema.get("items", {}), "", depth + 1)
                    for _ in range(draw.randint(least, max(least, most)))
                ]
            case "string":
                return draw.choice(WORDS)
            case "boolean":
                return draw.random() < 0.5
            case "integer" | "number" as kind:
                return self._number(schema, kind, name)
            case "null":
                return None
        return draw.choice((None, 1, "a", {"a": 1}, [1], True))

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        known, needed = schema.get("properties", {}), schema.get("required", ())
        share = 0.12 if len(known) > 12 else 0.4
        chosen = [key for key in known if key in needed or (depth <= DEEPEST and self._draw.random() < share)]
        out = {key: self.value(known[key], key, depth + 1) for key in chosen}
        if not known and schema.get("additionalProperties") and depth <= DEEPEST:
            out = {self._draw.choice(("a", "b", "5")): self._draw.choice((1, -1.5, "x"))}
        return out

    def _number(self, schema: Mapping[str, Any], kind: str, name: str) -> float:
        draw = self._draw
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = min(schema.get("maximum", schema.get("exclusiveMaximum", 2**31)), SHORT.get(name, 2**31))
        if name not in SHORT and draw.random() < 0.1:  # outside, or at the edge
            return draw.choice((low, high, low - 1, high + 1, 10**30, -(10**30)))
        near = low + (min(high - low, 20) * draw.random())
        return round(near) if kind == "integer" else near

    def _messages(self) -> list[dict[str, Any]]:
        draw = self._draw
        out: list[dict[str, Any]] = []
        for _ in range(draw.randint(1, 3)):
            match draw.randrange(6):
                case 0:
                    out.append({"role": "user", "content": [self._part(), self._part()]})
                case 1:
                    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
                    out.append({"role": "assistant", "content": None, "tool_calls": [call]})
                    out.append({"role": "tool", "tool_call_id": "c1", "content": draw.choice(WORDS)})
                case 2:
                    out.append({"role": "assistant", "content": draw.choice(WORDS), "reasoning_content": "well"})
                case _:
                    out.append({"role": draw.choice(("user", "system")), "content": draw.choice(WORDS)})
        return [*out, {"role": "user", "content": "Hi"}]

    def _part(self) -> dict[str, Any]:
        if self._draw.random() < 0.5:
            return {"type": "text", "text": self._draw.choice(WORDS)}
        return {"type": "image_url", "image_url": {"url": self._picture()}}

    def _picture(self) -> str:
        draw = self._draw
        data = png(draw.choice((1, 8, 32, 400)), draw.choice((1, 32)))
        if draw.random() < 0.4:
            data = data[: draw.randrange(len(data))] + draw.randbytes(draw.randrange(9))
        kind = draw.choice(("image/png", "image/png", "image/svg+xml", "text/html"))
        sent = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        return draw.choice(
            (sent, sent, sent, "http://127.0.0.1:9/a.png", "file:///etc/passwd", "data:,", "data:image/png;base64,%")
        )

    def _tools(self) -> list[dict[str, Any]]:
        names = self._draw.sample(("f", "g", "weather", "<tool_call>", "a b"), self._draw.randint(1, 3))
        return [
            {"type": "function", "function": {"name": name, "parameters": self._form(top=True), "strict": i % 2 == 0}}
            for i, name in enumerate(names)
        ]

    def _choice(self) -> Any:
        named = {"type": "function", "function": {"name": self._draw.choice(("f", "g"))}}
        return self._draw.choice(("auto", "none", "required", "required", named))

    def _format(self) -> dict[str, Any]:
        schema = self._form()
        forms: Sequence[dict[str, Any]] = (
            {"type": "text"}, {"type": "json_object"}, {"type": "json_object", "schema": schema},
            {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}},
            {"type": "json_schema"}, {"type": "structural_tag", "structures": [], "triggers": []},
        )  # fmt: skip
        return self._draw.choice(forms)

    def _form(self, depth: int = 0, top: bool = False) -> dict[str, Any]:
        """Make a JSON schema such as clients send, or one that cannot be."""
        draw = self._draw
        inner = (lambda: self._form(depth + 1)) if depth < 3 else (lambda: {"type": "integer"})
        if top or draw.random() < 0.3:
            names = draw.sample(("a", "b", "city", "<|im_end|>", ""), draw.randint(0, 3))
            kinds = {name: inner() for name in names}
            return {"type": "object", "properties": kinds, "required": names[:1], "additionalProperties": False}
        return draw.choice((
            lambda: {"enum": draw.choices((1, "a", None, 2.5), k=2)},
            lambda: {"type": "string", "pattern": draw.choice(PATTERNS)},
            lambda: {"type": "string", "format": draw.choice(("date", "uuid", "email", "nothing"))},
            lambda: {"type": "array", "items": inner(), "minItems": draw.choice((0, 2, 30_000)), "maxItems": 3},
            lambda: {"type": draw.choice(("integer", "number")), "minimum": draw.choice((0, 5, 10**400)), "maximum": 7},
            lambda: {draw.choice(("anyOf", "oneOf", "allOf")): [inner(), inner()]},
            lambda: {"$ref": draw.choice(("#", "#/$defs/a", "http://127.0.0.1:9/s")), "$defs": {"a": inner()}},
            lambda: {"type": ["string", "null"]},
            lambda: {"x-guidance": {"whitespace_flexible": True}, **inner()},
            lambda: {"type": draw.choice(("foo", 5, []))},
        ))()  # fmt: skip

    def _policies(self) -> Any:
        return self._draw.choice((
            [], [], [{"name": "ead", "small": "small", "large": "large", "threshold": 1.0}], [{"name": "top_h"}],
            [{"name": "l_rag", "collection": "hostile", "threshold": 0.5}], [{"name": "top_w"}, {"name": "ead"}],
            [{"name": "diffadapt", "fallback": "draft"}], [{"name": "nobody"}], "frugal", 5,
        ))  # fmt: skip


def png(width: int, height: int) -> bytes:
    """Make a grey picture."""

    def piece(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = (b"\0" + b"\x80" * width) * height
    return b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", head) + piece(b"IDAT", zlib.compress(rows)) + piece(b"IEND", b"")
