"""Log-probabilities in OpenAI's two formats: for chat, and the older one for text completions.

They are of the model's raw distribution, in nats, whatever the temperature and truncation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from waver.engines.base import Step
from waver.engines.tokens import TokenText
from waver.server.assembly import Token

LOWEST = -9999.0
"""Stands for minus infinity, which JSON has no word for."""


def finite(value: float) -> float:
    return max(value, LOWEST)


def chat_logprobs(entries: Sequence[Token], tokens: TokenText, count: int) -> list[dict[str, Any]]:
    """Return the entries of `choices[].logprobs.content`; `bytes` are a token's own, also where it is part of a code
    point."""

    def entry(data: bytes, logprob: float) -> dict[str, Any]:
        return {"token": data.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(data)}

    return [
        entry(token.data, token.step.logprob)
        | {"top_logprobs": [entry(tokens.token_bytes(i), p) for i, p in token.step.top_logprobs[:count]]}
        for token in entries
    ]


def text_logprobs(entries: Sequence[Token], tokens: TokenText, count: int) -> dict[str, list[Any]]:
    """Return `choices[].logprobs` of a text completion. The drawn token is always among the alternatives.

    Tokens are keys here, so each needs a unique name: invalid UTF-8 is written `bytes:\\xe6`, a special
    token by its name.
    """
    out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in entries:
        name = (
            label(token.step.token, tokens) if token.data == tokens.token_bytes(token.step.token) else spell(token.data)
        )
        known = not math.isnan(token.step.logprob)
        alternatives = {name: finite(token.step.logprob)}
        for i, logprob in token.step.top_logprobs[:count]:
            alternatives.setdefault(label(i, tokens), finite(logprob))
        out["tokens"].append(name)
        out["token_logprobs"].append(finite(token.step.logprob) if known else None)
        out["top_logprobs"].append(alternatives if known else None)
        out["text_offset"].append(token.offset)
    return out


def label(token: int, tokens: TokenText) -> str:
    data = tokens.token_bytes(token)
    return spell(data) if data else str(tokens.tokenizer.convert_ids_to_tokens(token) or f"token_id:{token}")


def spell(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def trace(steps: Sequence[Step], tokens: TokenText) -> list[dict[str, Any]]:
    """Return one object per token, as in `waver.trace`."""
    return [
        {
            "token": tokens.token_str(step.token),
            "id": step.token,
            "engine": step.engine,
            "entropy": step.entropy,
            "logprob": finite(step.logprob),
        }
        | ({} if step.kept is None else {"kept": step.kept, "crop_entropy": step.crop_entropy})
        for step in steps
    ]
