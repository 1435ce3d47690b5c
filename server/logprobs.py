"""Log-probabilities in OpenAI's two formats: for chat, and the older one for text completions.

They are of the model's raw distribution, in nats, whatever the temperature and truncation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from waver.engines.base import Step
from waver.engines.tokens import TokenText
from waver.server.assembly import Token

LOWEST = -9999.0
"""Stands for minus infinity, which JSON has no word for."""


def finite(value: float) -> float:
    return max(value, LOWEST)


def chat_entry(tokens: TokenText, count: int, as_ids: bool = False) -> Callable[[Token], dict[str, Any]]:
    """Return what makes a token's entry of `choices[].logprobs.content`, with `count` alternatives. `bytes` are a
    token's own, also where it is part of a code point. `as_ids`: tokens are named by their ids (`token_id:42`)."""

    def one(token: int, data: bytes, logprob: float) -> dict[str, Any]:
        name = id_name(token) if as_ids else data.decode(errors="replace")
        return {"token": name, "logprob": finite(logprob), "bytes": list(data)}

    def entry(token: Token) -> dict[str, Any]:
        alternatives = [one(i, tokens.token_bytes(i), p) for i, p in token.step.top_logprobs[:count]]
        return one(token.step.token, token.data, token.step.logprob) | {"top_logprobs": alternatives}

    return entry


def text_entries(tokens: TokenText, count: int, as_ids: bool = False) -> dict[str, Callable[[Token], Any]]:
    """Return what makes a token's entry in each list of a text completion's `choices[].logprobs`. The drawn token is
    always among the alternatives.

    Tokens are keys here, so each needs a unique name: invalid UTF-8 is written `bytes:\\xe6`, a special
    token by its name. `as_ids`: by their ids (`token_id:42`).
    """

    def named(token: int) -> str:
        return id_name(token) if as_ids else label(token, tokens)

    def name(token: Token) -> str:
        own = as_ids or token.data == tokens.token_bytes(token.step.token)
        return named(token.step.token) if own else spell(token.data)

    def logprob(token: Token) -> float | None:
        return None if math.isnan(token.step.logprob) else finite(token.step.logprob)

    def alternatives(token: Token) -> dict[str, float] | None:
        if math.isnan(token.step.logprob):
            return None
        found = {name(token): finite(token.step.logprob)}
        for i, each in token.step.top_logprobs[:count]:
            found.setdefault(named(i), finite(each))
        return found

    return {
        "tokens": name,
        "token_logprobs": logprob,
        "top_logprobs": alternatives,
        "text_offset": lambda token: token.offset,
    }


def id_name(token: int) -> str:
    return f"token_id:{token}"


def label(token: int, tokens: TokenText) -> str:
    data = tokens.token_bytes(token)
    return spell(data) if data else str(tokens.tokenizer.convert_ids_to_tokens(token) or id_name(token))


def spell(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def trace_entry(tokens: TokenText) -> Callable[[Step], dict[str, Any]]:
    """Return what makes the object of a token in `waver.trace`."""

    def entry(step: Step) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "token": tokens.token_str(step.token),
            "id": step.token,
            "engine": step.engine,
            "entropy": step.entropy,
            "logprob": finite(step.logprob),
        }
        if step.kept is not None:
            shown |= {"kept": step.kept, "crop_entropy": step.crop_entropy}
        if step.decisions:
            shown["decision"] = {each.policy: each.as_dict() for each in step.decisions}
        return shown

    return entry
