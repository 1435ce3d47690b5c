"""Convert a request's fields to `Sampling`, checked against the engine that runs it."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence

from waver.engines.base import Engine, Sampling
from waver.engines.schema import MOST_CHARACTERS, flaw
from waver.server.errors import invalid
from waver.server.schemas import Generation, ResponseFormat

MOST_STOP_CHARACTERS = 4096
SCHEMA = "response_format.json_schema.schema"


def sampling(body: Generation, engine: Engine, logprobs: bool, top_logprobs: int, grammar: str | None) -> Sampling:
    """Return the sampling of a request, without `max_tokens` and the seed, which differ from choice to choice.

    Raises:
        APIError: 400, a token id that the engine does not have, or an impossible stop string.
    """
    vocabulary = engine.tokens.vocab_size
    bias = {}
    for key, value in body.logit_bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocabulary):
            raise invalid(f"logit_bias: '{key[:20]}' is not a token id between 0 and {vocabulary - 1}.", "logit_bias")
        bias[int(key)] = value
    check_ids(body.stop_token_ids, vocabulary, "stop_token_ids")
    for i, stop in enumerate(body.stops):
        if not 0 < len(stop) <= MOST_STOP_CHARACTERS:
            param = "stop" if isinstance(body.stop, str) else f"stop[{i}]"
            raise invalid(f"{param} should have between 1 and {MOST_STOP_CHARACTERS} characters.", param)
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),
        min_p=body.min_p,
        min_tokens=body.min_tokens,
        stop_token_ids=tuple(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=bias,
        top_logprobs=top_logprobs,
        grammar=grammar,
        logprobs=logprobs,
    )


def check_ids(ids: Sequence[int], vocabulary: int, param: str) -> None:
    """Check token ids against the vocabulary.

    Raises:
        APIError: 400, an id is outside of the vocabulary.
    """
    if ids and max(ids) >= vocabulary:
        raise invalid(f"{param}: {max(ids)} is not a token id; the largest is {vocabulary - 1}.", param)


def token_limit(prompt: int, asked: int | None, body: Generation, context: int, default: int) -> int:
    """Return the most tokens of an answer: as requested, at most what the context leaves.

    Raises:
        APIError: 400, the prompt leaves no room, or fewer tokens are allowed than demanded.
    """
    room = context - prompt
    if room < 0 or (room == 0 and asked != 0):
        message = f"The prompt has {prompt} tokens, and the context of {context} tokens must hold it and an answer."
        raise invalid(message, "messages" if hasattr(body, "messages") else "prompt", "context_length_exceeded")
    limit = min(room, default if asked is None else asked)
    if body.min_tokens > limit:
        raise invalid(f"min_tokens is {body.min_tokens}, but the answer can have {limit} tokens at most.", "min_tokens")
    return limit


def first_seed(seed: int | None) -> int:
    """Return the request's seed, or a random one."""
    return secrets.randbits(63) if seed is None else seed % 2**63


def choice_seed(seed: int, choice: int) -> int:
    """Return the seed of the n-th choice: the request's own for the first, derived ones for the others."""
    if choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def grammar(wanted: ResponseFormat | None) -> str | None:
    """Return the JSON schema that an answer must follow, as a string, None for free text. Its size is checked; it is
    not compiled.

    Raises:
        APIError: 400, the schema is missing, or larger than it may be.
    """
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return '{"type": "object"}'
    if wanted.json_schema is None:
        raise invalid(
            "response_format.json_schema is required when the type is 'json_schema'.", "response_format.json_schema"
        )
    if reason := flaw(wanted.json_schema.schema_):
        raise invalid(f"{SCHEMA}{reason}.", SCHEMA)
    schema = json.dumps(wanted.json_schema.schema_)
    if len(schema) > MOST_CHARACTERS:
        raise invalid(f"{SCHEMA} has more than {MOST_CHARACTERS} characters.", SCHEMA)
    return schema
