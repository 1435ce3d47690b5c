"""Fields of a request that are not served: those that would change the answer are refused by name, and those that
change nothing are named in the answer (`waver.ignored`, `x-waver-ignored`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from waver.engines.tokens import TokenText
from waver.server.chat_schemas import ChatPrompt, TokenizeRequest
from waver.server.errors import invalid
from waver.server.schemas import HARMLESS, Body, Generation

HEADER = "x-waver-ignored"
MOST_NAMED = 32
LONGEST_NAME = 80
WHITE_SPACE = "JSON is written on one line, with at most one space behind a colon or a comma"
UNSERVED: dict[str, tuple[tuple[Any, ...], str]] = {
    "suffix": (("",), ""),
    "use_beam_search": ((False,), "an answer is drawn token by token"),
    "length_penalty": ((1, 1.0), "it belongs to beam search"),
    "skip_special_tokens": ((True,), "control tokens are never part of the text; return_token_ids shows them"),
    "prompt_logprobs": ((), "use echo with logprobs in /v1/completions"),
    "logprob_token_ids": (([],), "use top_logprobs"),
    "return_token_offsets": ((False,), "the log-probabilities of text completions have offsets"),
    "return_prompt_text": ((False,), "use echo in /v1/completions"),
    "prompt_embeds": (([],), "a prompt is text or token ids"),
    "echo": ((False,), "use /v1/completions"),
    "documents": (([],), "put them into a message, or into a collection for the policy l_rag"),
    "priority": ((0,), "answers that have begun go first, and others in the order of their arrival"),
    "modalities": ((["text"],), "answers are text"),
    "audio": (({},), "answers are text"),
    "web_search_options": ((), "nothing is looked up on the web; the policy l_rag searches a collection"),
    "logits_processors": (([],), "a request cannot bring code; use a policy"),
    "vllm_xargs": (({},), "use the field policy"),
    "kv_transfer_params": (({},), "caches stay where they are"),
    "ec_transfer_params": (({},), "caches stay where they are"),
    "mm_processor_kwargs": (({},), "they cannot be set by a request"),
    "media_io_kwargs": (({},), "they cannot be set by a request"),
    "repetition_detection": (({},), "use repetition_penalty"),
    "watermarking": ((False,), "answers carry no watermark"),
    "guided_whitespace_pattern": ((), WHITE_SPACE),
}
"""Fields of OpenAI's and vLLM's APIs that would change an answer: the values that ask for nothing, and why or what to
do instead."""
WITHOUT_EFFECT = frozenset({
    "spaces_between_special_tokens", "stream_interval", "session_id", "request_id", "routed_experts_prompt_start",
    "tools", "tool_choice", "functions", "function_call",
})  # fmt: skip
"""Fields that change no word of an answer, or are refused elsewhere where they would."""


def refuse_unserved(body: Generation) -> None:
    """Refuse fields that would change the answer and are not served.

    Raises:
        APIError: 400, `param` is the field.
    """
    given = body.model_extra or {}
    for name in given.keys() & UNSERVED.keys():
        neutral, reason = UNSERVED[name]
        if not any(given[name] == value and type(given[name]) is type(value) for value in neutral):
            raise invalid(f"{name} is not supported{f': {reason}' if reason else ''}.", name)
    if given.get("best_of") not in (None, body.n):
        raise invalid("best_of is not supported; use n.", "best_of")
    options = body.stream_options
    if not body.stream and (options.include_usage or options.continuous_usage_stats):
        raise invalid("stream_options needs 'stream': true.", "stream_options")


def ignored_fields(body: Body, tokens: TokenText | None, strict: bool, unread: Sequence[str] = ()) -> list[str]:
    """List the paths of what a request says and nothing here reads.

    Args:
        tokens: the tokenizer of the engine that writes. strict: refuse the request instead.
        unread: others that are known already.

    Raises:
        APIError: 400, with `strict`.
    """
    found = [*unread, *_unknown(body)]
    if tokens is not None and isinstance(body, ChatPrompt | TokenizeRequest):
        unused = body.chat_template_kwargs.keys() - tokens.template_variables
        found += [f"chat_template_kwargs.{name}" for name in sorted(unused)]
        effort = getattr(body, "reasoning_effort", None)
        if effort is not None and tokens.template_variables.isdisjoint(body.template_variables):
            found.append("reasoning_effort")
    if tokens is not None and isinstance(body, Generation):
        found += _unreachable_stops(body.stops, tokens)
    found = [name[:LONGEST_NAME] for name in found[:MOST_NAMED]]
    if found and strict:
        raise invalid(f"{found[0]} is not known here, and this server accepts no unknown fields.", found[0])
    return found


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """Make the header that lists ignored fields; none where nothing was ignored."""
    return {HEADER: ", ".join(re.sub(r"[^\w.\[\]-]", "?", name, flags=re.ASCII) for name in names)} if names else {}


def stop_tokens(stops: Sequence[str], tokens: TokenText) -> tuple[list[str], list[int]]:
    """Split stop strings into texts, and the control tokens that others of them name: these have no text to be found
    in."""
    named = tokens.control_tokens
    return [stop for stop in stops if stop not in named], [named[stop] for stop in stops if stop in named]


def _unreachable_stops(stops: Sequence[str], tokens: TokenText) -> list[str]:
    """List the stop strings that hold a control token among other characters: no text has it."""
    words = tokens.control_tokens
    return [f"stop[{i}]" for i, stop in enumerate(stops) if stop not in words and any(word in stop for word in words)]


def _unknown(model: BaseModel, place: str = "") -> Iterator[str]:
    """Yield the paths of unknown fields, in a model and in those within it."""
    known = HARMLESS | WITHOUT_EFFECT | UNSERVED.keys() if not place else frozenset()
    for name in sorted((model.model_extra or {}).keys() - known):
        yield f"{place}{name}"
    for name in model.model_fields_set:
        value = getattr(model, name, None)
        if isinstance(value, BaseModel):
            yield from _unknown(value, f"{place}{_alias(model, name)}.")
        elif isinstance(value, list):
            for i, each in enumerate(value):
                if isinstance(each, BaseModel):
                    yield from _unknown(each, f"{place}{_alias(model, name)}[{i}].")


def _alias(model: BaseModel, name: str) -> str:
    """Return a field's name in JSON."""
    field = type(model).model_fields.get(name)
    return (field.alias if field else None) or name
