"""Few bytes that stand for much work: grammars, containers of wrong entries, Unicode, markup, compressed files."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from waver.benchmarks.faults.hostile import (
    CHAT,
    DOCUMENTS,
    MIB,
    PATIENTLY,
    QUICKLY,
    SEARCH,
    SOON,
    TEXT,
    Hostile,
    chat,
    complete,
    document,
    multipart,
    schema,
)

HALF = "\ud800"
"""Half of a surrogate pair: JSON can spell it, UTF-8 cannot."""


def bombs() -> list[Hostile]:
    """The whole set; the collection `hostile` has to be there."""
    return [*grammars(), *wrong_entries(), *halves(), *unicode(), *long_answers(), *markup(), *uploads()]


def grammars() -> Iterator[Hostile]:
    """Schemas that are small, or pass every bound, and are hard to compile or to follow."""
    letters = [chr(ord("a") + i) for i in range(26)]
    item = {"type": "object", "properties": {c: {"type": "string"} for c in letters}, "required": letters}
    either: dict[str, Any] = {"type": "integer"}
    for i in range(12):
        either = {"allOf": [{"anyOf": [either, {"type": "string", "maxLength": i}]}, {"anyOf": [either, {}]}]}
    for name, content in {
        "10,000 items of 26 properties": {"type": "array", "minItems": 10_000, "items": item},
        "patterns that overlap": {"patternProperties": {f"^.*{i}.*$": {"type": "integer"} for i in range(400)}},
        "a pattern of 800 alternatives": {"type": "string", "pattern": f"^({'|'.join(f'a{i}' for i in range(800))})*$"},
        "a pattern of classes": {"type": "string", "pattern": r"^(\p{L}|\p{N}|\p{P}){900}$"},
        "a pattern that looks ahead": {"type": "string", "pattern": "^(?=.*a)(?=.*b)(?=.*c).*$"},
        "a pattern of optional parts": {"type": "string", "pattern": "^" + "a?" * 1000 + "a" * 1000 + "$"},
        "both of either": either,
        "a constant of 200 kB": {"const": "x" * 200_000},
        "1,000 required names": {"type": "object", "required": [f"r{i}" for i in range(1000)]},
        "lengths between lengths": {"type": "string", "minLength": 50_000, "maxLength": 100_000},
        "half a surrogate": {"const": HALF},
    }.items():
        yield Hostile(f"schema: {name}", CHAT, schema(content))


def wrong_entries() -> Iterator[Hostile]:
    """Containers whose every entry is wrong: each would have an error of its own."""
    many = 60_000
    calls = [{"role": "assistant", "content": "", "tool_calls": [{}] * many}]
    wrong: dict[str, Any] = {f"k{i}": [] for i in range(many)}
    yield Hostile("60,000 biases that are lists", CHAT, chat(logit_bias=wrong), QUICKLY)
    yield Hostile("metadata of 60,000 lists", DOCUMENTS, document(metadata=wrong))
    yield Hostile("filter of 60,000 objects", SEARCH, of(query="a", filter={f"k{i}": {} for i in range(many)}), QUICKLY)
    yield Hostile("filter of one list of 100,000 objects", SEARCH, of(query="a", filter={"k": [{}] * 100_000}), QUICKLY)
    yield Hostile("60,000 tool calls without a name", CHAT, chat(messages=calls), QUICKLY)
    yield Hostile("a message of 60,000 parts", CHAT,
                  chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * many}]))  # fmt: skip
    yield Hostile("60,000 stop tokens that are none", CHAT, chat(stop_token_ids=[-1] * many), QUICKLY)
    yield Hostile("a policy of 60,000 unknown fields", CHAT, chat(policy=[{"name": "top_p", **wrong}]), QUICKLY)
    yield Hostile("60,000 unknown fields", CHAT, chat(**wrong), QUICKLY)
    yield Hostile("60,000 variables of the template", CHAT, chat(chat_template_kwargs=wrong), QUICKLY)
    yield Hostile("60,000 tools", CHAT, chat(tools=[{"type": "function"}] * many), QUICKLY)
    yield Hostile("a policy of 900 levels", CHAT,
                  lambda: chat(policy=[{"name": "top_p", "p": 0}])().replace(b": 0", b":" + b"[" * 900 + b"]" * 900),
                  QUICKLY)  # fmt: skip


def halves() -> Iterator[Hostile]:
    """Text that is no Unicode, wherever a request may hold any value."""
    look = {"name": "l_rag", "collection": "hostile"}
    for name, body in {
        "a policy's documents": chat(policy=[{**look, "documents": [HALF]}]),
        "a policy's filter": chat(policy=[{**look, "filter": {HALF: HALF}}]),
        "a policy's instruction": chat(policy=[{**look, "gate": "always", "instruction": HALF}]),
        "a template's variable": chat(chat_template_kwargs={"enable_thinking": HALF * 15_000}),
        "an unknown field": chat(**{HALF: HALF}),
        "the user": chat(user=HALF),
    }.items():
        yield Hostile(f"half a surrogate in {name}", CHAT, body, QUICKLY)


def unicode() -> Iterator[Hostile]:
    """Characters that grow, combine or hide."""
    units = {
        "a ligature of 18 characters": "\ufdfa", "combining marks": "\u0301", "spaces without width": "\u200b",
        "marks of direction": "\u202e", "control tokens": "<|im_end|>", "line separators": "\u2028",
        "zeros": "\0", "Hangul parts": "\u1100\u1161\u11a8",
    }  # fmt: skip
    for name, unit in units.items():
        text = unit * (15_000 // len(unit))
        yield Hostile(f"message of {name}", CHAT, chat(messages=[{"role": "user", "content": text}]))
        yield Hostile(f"search for {name}", SEARCH, of(query=unit * (200_000 // len(unit))))
        yield Hostile(f"document of {name}", DOCUMENTS, document(text=f"a{unit * (8000 // len(unit))}x"), PATIENTLY)
    other = "".join(map(chr, range(0x4E00, 0x4E00 + 15_000)))
    yield Hostile("prompt of 15,000 different characters", TEXT, complete(prompt=other))
    yield Hostile("search for 30,000 words", SEARCH, of(query=" ".join(f"w{i}" for i in range(30_000))))


def long_answers() -> Iterator[Hostile]:
    """Answers of which every token costs something besides."""
    stops = ["a" * 4095 + chr(ord("a") + i) for i in range(16)]
    yield Hostile("16 stop strings of 4,096 letters, n 32", CHAT, chat(stop=stops, n=32, max_tokens=200), PATIENTLY)
    yield Hostile("n 32 with a trace", CHAT, chat(n=32, trace=True, max_tokens=200), PATIENTLY)
    yield Hostile("one choice of the whole context with 20 log-probabilities", TEXT,
                  complete(logprobs=20, trace=True, ignore_eos=True, max_tokens=10**6), PATIENTLY)  # fmt: skip
    yield Hostile("1,024 biases, n 32", CHAT,
                  chat(logit_bias={str(i): -1 for i in range(300)}, n=32, max_tokens=100), PATIENTLY)  # fmt: skip
    yield Hostile("a schema, n 32", CHAT, lambda: schema({"type": "array", "items": {"type": "string"}})().replace(
        b'"max_tokens": 32', b'"max_tokens": 100, "n": 32'), PATIENTLY)  # fmt: skip


def markup() -> Iterator[Hostile]:
    """Files that are small and describe something large."""
    cells = "<td colspan=1000 rowspan=65534>a</td>" * 20
    aliases = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
    )
    zipped = zlib.compress(b"(a) Tj " * (100 * MIB // 7), 9)
    stream = (
        b"%%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    )
    stream += (
        b"3 0 obj<</Type/Page/Parent 2 0 R/Contents 4 0 R>>endobj\n4 0 obj<</Length %d/Filter/FlateDecode>>stream\n"
    )
    files = {
        "cells that span": ("d.html", "text/html", b"<table>" + f"<tr>{cells}</tr>".encode() * 2000 + b"</table>"),
        "lists in lists": ("d.html", "text/html", b"<ul><li>" * 20_000 + b"a"),
        "tables in tables": ("d.html", "text/html", b"<table><tr><td>" * 5000 + b"a"),
        "lists and quotes in Markdown": ("d.md", "text/markdown", b"> - " * 5000 + b"a"),
        "a table of 20,000 columns": ("d.md", "text/markdown", b"|a" * 20_000 + b"|\n" + b"|-" * 20_000 + b"|\n" * 50),
        "links that are references": ("d.md", "text/markdown", b"[a][b]" * 20_000 + b"\n\n[b]: c\n"),
        "front matter that multiplies": ("d.md", "text/markdown", f"---\n{aliases}---\ntext".encode()),
        "a PDF of 100 MiB in 100 kB": ("d.pdf", "application/pdf", stream % len(zipped) + zipped + b"endstream endobj"),
        "half a character at a time": ("d.txt", "text/plain; charset=utf-16", b"\xd8\x00" * 30_000),
        "an encoding that compresses": ("d.txt", "text/plain; charset=bz2", b"BZh91AY" * 10_000),
    }  # fmt: skip
    for name, (file, kind, content) in files.items():
        yield Hostile(f"file: {name}", DOCUMENTS, *multipart(file, kind, content))


def uploads() -> Iterator[Hostile]:
    """Forms that a parser reads slowly."""
    kind = "multipart/form-data; boundary=b"
    part = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\na\r\n'
    for name, body in {
        "a form of 20,000 files": lambda: part * 20_000 + b"--b--\r\n",
        "a form of 8 MB that nearly ends": lambda: part[:-3] + b"\r\n--" * (2 * MIB) + b"\r\n--b--\r\n",
        "a form of 8 MB of line ends": lambda: part[:-3] + b"\r" * (8 * MIB) + b"\r\n--b--\r\n",
        "a form without an end": lambda: part[:-3] + b"x" * MIB,
        "a header of 8 MB in a form": lambda: b"--b\r\na: " + b"x" * (8 * MIB),
        "20,000 headers in a form": lambda: b"--b\r\n" + b"a: b\r\n" * 20_000 + b"\r\na\r\n--b--\r\n",
    }.items():
        yield Hostile(name, DOCUMENTS, body, PATIENTLY, "POST", kind)
    field = b'--b\r\ncontent-disposition: form-data; name="metadata"\r\n\r\n' + b"a" * 900_000 + b"-a" + part[-2:]
    yield Hostile(
        "a form in Punycode", DOCUMENTS, lambda: field + b"--b--\r\n", SOON, "POST", f"{kind}; charset=punycode"
    )
    yield Hostile("a boundary of 20 kB", DOCUMENTS, lambda: part, SOON, "POST", f"{kind}{'b' * 20_000}")


def of(**fields: Any) -> Callable[[], bytes]:
    return lambda: json.dumps(fields).encode()
