"""Convert a request's fields to `Sampling`, checked against the engine that runs it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence

from waver.engines.base import ContextExceeded, Engine, Sampling
from waver.engines.tokens import TokenText
from waver.server.errors import invalid
from waver.server.fields import stop_tokens
from waver.server.routing import Route
from waver.server.schemas import Generation

MOST_STOP_CHARACTERS = 4096
LONGEST_BAD_WORD = 64
"""Tokens of one of `bad_words`."""
SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Fields for which a model may come with values of its own."""
UNPROMPTED = ("finish", "decode", "sample")
"""Stages of policies that take the prompt as it is."""
TRUNCATIONS = ("top_p", "top_k", "min_p")


def settings(body: Generation, recommended: Mapping[str, float], truncates: bool) -> Mapping[str, float]:
    """Return the settings of a request that it or the model has, without those that neither has.

    Args:
        recommended: the model's own. truncates: a policy of the request truncates, and takes the place of the model's
            truncations.
    """
    asked = {name: getattr(body, name) for name in SETTINGS if name in body.model_fields_set}
    own = {name: recommended[name] for name in SETTINGS if name in recommended}
    return {name: value for name, value in own.items() if not (truncates and name in TRUNCATIONS)} | asked


def sampling(
    body: Generation,
    engine: Engine,
    logprobs: bool,
    top_logprobs: int,
    grammar: str | None,
    known: Mapping[str, float],
    alone: bool,
) -> Sampling:
    """Return the sampling of a request, without `max_tokens` and the seed, which differ from choice to choice.

    Args:
        known: what `settings` returned. alone: no other engine writes any of the answer; else all must draw alike, and
            nothing is left to an upstream.

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
    check_ids(body.allowed_token_ids, vocabulary, "allowed_token_ids")
    if grammar is not None and body.allowed_token_ids:
        raise invalid("allowed_token_ids cannot be combined with a form of the answer.", "allowed_token_ids")
    values = {name: known.get(name, getattr(body, name)) for name in SETTINGS}
    return Sampling(
        temperature=values["temperature"],
        top_p=values["top_p"],
        top_k=max(int(values["top_k"]), 0),
        min_p=values["min_p"],
        allowed_token_ids=tuple(dict.fromkeys(body.allowed_token_ids)),
        bad_words=bad_words(body.bad_words, engine.tokens),
        unset=frozenset(SETTINGS) - known.keys() if alone else frozenset(),
        min_tokens=body.min_tokens,
        stop_token_ids=(*body.stop_token_ids, *stop_tokens(body.stops, engine.tokens)[1]),
        ignore_eos=body.ignore_eos,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=values["repetition_penalty"],
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
        ContextExceeded: the prompt leaves no room.
        APIError: 400, fewer tokens are allowed than demanded.
    """
    room = context - prompt
    if room < 0 or (room == 0 and asked != 0):
        param = "messages" if hasattr(body, "messages") else "prompt"
        raise ContextExceeded(context, f"the prompt has {prompt} tokens", param)
    limit = min(room, default if asked is None else asked)
    if body.min_tokens > limit:
        raise invalid(f"min_tokens is {body.min_tokens}, but the answer can have {limit} tokens at most.", "min_tokens")
    return limit


def bad_words(words: Sequence[str], tokens: TokenText) -> tuple[tuple[int, ...], ...]:
    """Return the runs of tokens that spell words, at the start of a text and behind a space.

    Raises:
        APIError: 400, a word is empty or too long.
    """
    runs = []
    for i, word in enumerate(words):
        stripped = word.lstrip(" ")
        runs += [tuple(tokens.encode_plain(spelled)) for spelled in (stripped, f" {stripped}") if stripped]
        if not stripped or len(runs[-1]) > LONGEST_BAD_WORD:
            raise invalid(f"bad_words[{i}] should have between 1 and {LONGEST_BAD_WORD} tokens.", f"bad_words[{i}]")
    return tuple(dict.fromkeys(runs))


def truncated(ids: Sequence[int], body: Generation, context: int, route: Route) -> tuple[int, ...]:
    """Cut a prompt to `truncate_prompt_tokens`, of which -1 means what the context leaves beside the answer.

    Raises:
        APIError: 400, something would be cut away that a policy renders anew.
    """
    most = body.truncate_prompt_tokens
    if most is None:
        return tuple(ids)
    if most == -1:
        asked = getattr(body, "max_completion_tokens", None) or getattr(body, "max_tokens", None) or 1
        most = max(context - asked, 1)
    if len(ids) <= most:
        return tuple(ids)
    if any(policy.stage not in UNPROMPTED for policy in route.policies):
        param = "truncate_prompt_tokens"
        raise invalid(f"{param} cannot be combined with policies that render the prompt anew.", param)
    return tuple(ids[:most] if body.truncation_side == "right" else ids[len(ids) - most :])


def first_seed(seed: int | None) -> int:
    """Return the request's seed, or a random one, also for -1."""
    return secrets.randbits(63) if seed in (None, -1) else seed % 2**63


def choice_seed(seed: int, choice: int) -> int:
    """Return the seed of the n-th choice: the request's own for the first, derived ones for the others."""
    if choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
