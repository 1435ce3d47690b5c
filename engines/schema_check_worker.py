"""The worker script of `waver.engines.schema_check`: compile a grammar, and write a few tokens by it."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import llguidance

from waver.engines.schema_finite import endless
from waver.isolation import serve

OPTIONS: Any = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""The options of llguidance's compiler of JSON schemas; separators are regular expressions. Models were trained on JSON
with a space behind a colon and a comma, and lose their way without it; free whitespace would let a small one pad for
ever."""
REGEX, LARK = "regex:", "lark:"
"""Prefixes of grammars that are no JSON schema (`waver.engines.grammar_forms`)."""
STEP_SECONDS = 0.1
"""Most seconds of CPU time for one token's mask: every sequence of a batch waits for the slowest."""
WALKS = (b'{["', b'"}],:', None)
"""Characters that each walk through a grammar prefers: opening ones, closing ones, any."""
STEPS = 24
ENDLESS = "parser error: too many items"
COMPLEX = ("panic", "parsertoocomplex", "lexertoocomplex", "parser error", "lexer error")
"""Beginnings of llguidance's errors, in lower case."""

tokenizer: llguidance.LLTokenizer | None = None
failure = ""


def handle(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Load a tokenizer (`open`, with `vocabulary` and `eos`), or check a grammar (`complaint`)."""
    global tokenizer, failure
    if request.get("open"):
        try:
            tokenizer = llguidance.LLTokenizer(data.decode(), n_vocab=request["vocabulary"], eos_token=request["eos"])
        except Exception as error:  # not every kind of tokenizer spells its tokens in bytes
            failure = f"this model's tokenizer cannot be guided: {words(str(error))}"
        return {}, b""
    if failure:
        return {"complaint": failure}, b""
    return {"complaint": complaint(data.decode())}, b""


def compiled(grammar: str) -> str:
    """Compile a grammar to llguidance's own form.

    Raises:
        ValueError: it cannot be.
    """
    if grammar.startswith(REGEX):
        return llguidance.LLMatcher.grammar_from_regex(grammar.removeprefix(REGEX))
    if grammar.startswith(LARK):
        return llguidance.LLMatcher.grammar_from_lark(grammar.removeprefix(LARK))
    return llguidance.LLMatcher.grammar_from_json_schema(grammar, OPTIONS, OPTIONS)


def needs_itself(grammar: str) -> bool:
    """Return whether a grammar is a JSON schema that no value with an end satisfies."""
    try:
        return not grammar.startswith((REGEX, LARK)) and endless(json.loads(grammar))
    except (ValueError, RecursionError):
        return False  # the compiler says what is wrong


def complaint(grammar: str) -> str:
    """Check a grammar, and return an error message; empty if it passes."""
    assert tokenizer is not None
    if needs_itself(grammar):
        return "no value satisfies it: it needs itself"
    try:
        matcher = llguidance.LLMatcher(tokenizer, compiled(grammar))
    except ValueError as error:
        return words(str(error))
    if matcher.is_error():
        return words(matcher.get_error())
    for preferred in WALKS:
        if reason := walk(matcher.deep_copy(), preferred):
            return reason
    return ""


def walk(matcher: llguidance.LLMatcher, preferred: bytes | None) -> str:
    """Write a few tokens, as an engine would, and return an error message; empty if nothing fails."""
    assert tokenizer is not None
    draw = random.Random(0)
    likely = [] if preferred is None else [t for c in preferred for t in tokenizer.tokenize_bytes(bytes([c]))]
    for _ in range(STEPS):
        if matcher.is_stopped() and not matcher.is_error():
            return ""
        began = time.process_time()
        mask = matcher.compute_bitmask()
        if reason := obstacle(matcher, mask, time.process_time() - began):
            return reason
        allowed = int.from_bytes(mask, "little")
        token = next((t for t in likely if allowed >> t & 1), None)
        if token is None:
            token = pick(mask, draw)
        if token in tokenizer.eos_tokens:
            return ""
        matcher.consume_token(token)
    return words(matcher.get_error()) if matcher.is_error() else ""


def obstacle(matcher: llguidance.LLMatcher, mask: bytes, seconds: float) -> str:
    """Return an error message if a mask failed, took too long or allows nothing; else an empty one."""
    if matcher.is_error():
        return words(matcher.get_error())
    if seconds > STEP_SECONDS:
        return "it is too complex to be followed at a model's pace"
    return "" if any(mask) else "no value satisfies it"


def pick(mask: bytes, draw: random.Random) -> int:
    """Choose a token that a mask allows: the first one from a random place on."""
    start = draw.randrange(len(mask))
    byte = next(i % len(mask) for i in range(start, start + len(mask)) if mask[i % len(mask)])
    return 8 * byte + (mask[byte] & -mask[byte]).bit_length() - 1


def words(error: str) -> str:
    """Extract the readable part of an error: neither states of the parser nor addresses of its code."""
    first = error.strip().split("\n")[0]
    if first.startswith("NoExtension"):
        return "no value satisfies it"
    if first.lower().startswith(ENDLESS):
        return "it is too complex, or needs itself to be satisfied"
    if first.lower().startswith(COMPLEX):
        return "it is too complex"
    if first.startswith("oneOf constraints"):
        return "oneOf is supported where its schemas exclude each other by their types; use anyOf"
    if first.startswith("Resource '"):
        return "$ref can point to places within the schema only"
    return first[:200]


if __name__ == "__main__":
    serve(handle)
