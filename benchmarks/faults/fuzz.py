"""Requests with random faults: valid ones of which some part is replaced, repeated, removed or broken, and ones made
of the server's own schemas."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping
from typing import Any

from waver.benchmarks.faults.generate import Bodies, png
from waver.benchmarks.faults.hostile import CHAT, COLLECTION, DOCUMENTS, SEARCH, TEXT

PICTURE = f"data:image/png;base64,{base64.b64encode(png(8, 8)).decode()}"
SEEDS: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        {"model": "small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0.5},
        {"model": "large", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "n": 2, "logprobs": True,
         "top_logprobs": 2, "seed": 3, "stop": ["a"], "policy": [{"name": "ead", "threshold": 0.7, "window": 5}]},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "max_tokens": 3,
         "stream": True, "stream_options": {"include_usage": True}, "trace": True,
         "policy": [{"name": "l_rag", "collection": "hostile", "threshold": 0.5, "gate": "margin"}]},
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3,
         "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "integer"}}}},
        {"model": "small", "max_tokens": 6, "tool_choice": "required", "tools": [{"type": "function", "function": {
            "name": "f", "strict": True, "parameters": {"type": "object", "properties": {"a": {"enum": [1, 2]}}}}}],
         "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "5"}]},
        {"model": "see", "max_tokens": 3, "messages": [{"role": "user", "content": [
            {"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": PICTURE}}]}]},
    ],
    "/v1/responses": [
        {"model": "small", "input": "Hi", "max_output_tokens": 3, "stream": True, "store": False},
        {"model": "small", "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
         "max_output_tokens": 3, "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
         "tool_choice": "required", "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"}},
    ],
    "/v1/messages": [{"model": "small", "max_tokens": 3, "system": "Be brief.", "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}],
    TEXT: [{"model": "small", "prompt": ["Hi", "Ho"], "max_tokens": 3, "logprobs": 1, "echo": True,
            "logit_bias": {"5": 1.0}, "top_p": 0.9, "top_k": 5, "min_p": 0.01, "presence_penalty": 0.2}],
    DOCUMENTS: [{"documents": [{"id": "f", "text": "Some text.", "title": "T", "metadata": {"lang": "en"}}]}],
    SEARCH: [{"query": "text", "top_k": 2, "filter": {"lang": "en"}}],
    "/v1/collections": [{"name": "hostile", "chunk_tokens": 128, "chunk_overlap": 32}],
    "/v1/embeddings": [{"input": ["a", "b"], "encoding_format": "float"}],
    "/v1/tokenize": [{"model": "small", "prompt": "Hi"}],
    "/v1/detokenize": [{"model": "small", "tokens": [5, 6]}],
}  # fmt: skip
PATHS = (f"{COLLECTION}/nothing", "/v1/models/%00", "/v1/collections/..%2f..", "/v1/documents", "/static/../config.py")
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**30, -(10**30), 1e308, -0.0, 1e-320, "", " ", "a" * 5000, "\x00",
    "\ud83d", "日本語", "\u2028", "<|im_end|>", "../../etc/passwd", "' OR 1=1 --", "${jndi:x}",
    [], [[]], [None], {}, {"a": {}},
    {"type": "json_object"}, [{"role": "user"}], [1, "a"], ["a"] * 300, {"": 1}, "NaN",
)  # fmt: skip


def requests(count: int, seed: int, openapi: Mapping[str, Any] | None = None) -> list[tuple[str, str, bytes]]:
    """So many requests as method, path and body: the same for the same seed.

    Args:
        openapi: a server's schemas, of which half of the requests are made.
    """
    draw = random.Random(seed)
    bodies = None if openapi is None else Bodies(openapi, draw)
    return [_one(draw) if bodies is None or i % 2 else _made(draw, bodies) for i in range(count)]


def _made(draw: random.Random, bodies: Bodies) -> tuple[str, str, bytes]:
    path, body = bodies.one()
    broken = _broken(draw, body) if draw.random() < 0.2 else body
    return "POST", path, json.dumps(broken).encode()


def _one(draw: random.Random) -> tuple[str, str, bytes]:
    path = draw.choice(list(SEEDS))
    body: Any = json.loads(json.dumps(draw.choice(SEEDS[path])))
    for _ in range(draw.randint(1, 3)):
        body = _broken(draw, body)
    data = json.dumps(body).encode()
    if draw.random() < 0.1:
        at = draw.randrange(len(data) + 1)
        data = data[:at] + draw.randbytes(draw.randint(0, 4)) + data[at + draw.randint(0, 4) :]
    if draw.random() < 0.03:
        path = draw.choice(PATHS)
    return draw.choices(("POST", "PUT", "GET", "DELETE"), (60, 1, 1, 1))[0], path, data


def _broken(draw: random.Random, value: Any) -> Any:
    """A value with one part of it changed."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        kind = draw.random()
        if kind < 0.12:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return {**value, draw.choice(("extra", "", "model", "policy", "n", "stream", "user")): draw.choice(ODD)}
        return {**value, key: _broken(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.7:
        i = draw.randrange(len(value))
        return draw.choice((value * 3, value[:i], [*value[:i], _broken(draw, value[i]), *value[i + 1 :]]))
    return draw.choice(ODD)
