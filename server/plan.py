"""Turn a validated request into a `Plan`, with every check that can be made before the first token."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request

from waver.engines.base import Unsupported
from waver.engines.defaults import NONE, Recommending
from waver.engines.salt import set_salt
from waver.policies.answer import Answer
from waver.policies.job import Caller, Job
from waver.policies.registry import check_engines
from waver.retrieval.base import RetrievalError
from waver.server.auth import SCOPE_KEY
from waver.server.collection_access import check_lookups
from waver.server.decoding import new_job, new_report
from waver.server.errors import from_exception, invalid
from waver.server.fields import stop_tokens
from waver.server.message.reading import MessageFormat
from waver.server.planned import Plan, Prompt
from waver.server.routing import Route
from waver.server.runtime import Runtime
from waver.server.sampling import first_seed, sampling, settings, token_limit
from waver.server.schemas import Generation
from waver.server.settings import ServerConfig
from waver.server.structured import Form, wanted_form
from waver.server.tenants.grant import current
from waver.server.tenants.meter import cache_salt

MOST_USER_CHARACTERS = 512
LONGEST_LISTED = 8000
"""Tokens of a prompt whose ids fit a line of a stream, of 64 KiB."""


async def make_plan(
    runtime: Runtime,
    route: Route,
    body: Generation,
    caller: Caller,
    prompts: Sequence[Prompt],
    max_tokens: int | None,
    logprobs: bool,
    top_logprobs: int,
    deadline: float,
    message: MessageFormat | None = None,
    calls: str | None = None,
) -> Plan:
    """Check a request and plan its decoding.

    Args:
        message: how the text is read. calls: the grammar of an answer with calls, in place of the body's own.

    Raises:
        APIError: something about the request cannot be, or a policy cannot do its part.
        Unsupported, EngineError: an engine cannot do its part.
    """
    runtime.check_pins(route, caller.key)
    await check_lookups(runtime, route)
    set_salt(cache_salt(caller.key, body.cache_salt or ""))
    bounds, grant = runtime.config.server, current().grant
    if body.n > (most := min(bounds.max_n, grant.max_n or bounds.max_n)):
        raise invalid(f"n should be at most {most}.", "n")
    if max_tokens is not None and grant.max_tokens is not None and max_tokens > grant.max_tokens:
        raise invalid(f"An answer may have {grant.max_tokens} tokens with this key, not {max_tokens}.", "max_tokens")
    if body.n * len(prompts) > bounds.max_choices:
        raise invalid(f"{len(prompts)} prompts times n = {body.n} are more than {bounds.max_choices} choices.", "n")
    if body.return_token_ids and body.stream and max(len(prompt.ids) for prompt in prompts) > LONGEST_LISTED:
        raise invalid(
            f"return_token_ids in a stream lists prompts of up to {LONGEST_LISTED} tokens.", "return_token_ids"
        )
    context = runtime.context(route)
    wanted = await wanted_form(body) if calls is None else Form(calls, "tools")
    engine = runtime.engines[route.engine]
    if wanted is not None:
        await runtime.schema_checks.check(wanted.grammar, wanted.param, engine.tokens)
    recommended = engine.recommended if isinstance(engine, Recommending) else NONE
    truncates = any(policy.stage == "sample" and not policy.combines for policy in route.policies)
    longest = min(
        bounds.default_max_tokens,
        grant.max_tokens or bounds.default_max_tokens,
        int(recommended.get("max_new_tokens", bounds.default_max_tokens)),
    )
    plan = Plan(
        route=route,
        prompts=[replace(p, limit=token_limit(len(p.ids), max_tokens, body, context, longest)) for p in prompts],
        n=body.n,
        sampling=sampling(
            body,
            engine,
            logprobs or body.trace,
            top_logprobs,
            None if wanted is None else wanted.grammar,
            settings(body, recommended, truncates),
            alone=len(route.engines) == 1,
        ),
        seed=first_seed(body.seed),
        stops=tuple(stop_tokens(body.stops, engine.tokens)[0]),
        include_stop=body.include_stop_str_in_output,
        logprobs=logprobs,
        limited=max_tokens is not None,
        timeout=max(deadline - asyncio.get_running_loop().time(), 0.0),
        caller=caller,
        message=message,
    )
    check_weight(plan, bounds, body.trace)
    first = plan.prompts[0]  # the others are of its kind
    sampled = first.sampled(plan.sampling, plan.seed)
    job = new_job(runtime, route, first, sampled, new_report(runtime, route), caller)
    try:
        await _check(route, job)
        await asyncio.to_thread(check_engines, route.policies, job)
    except Exception as error:
        if isinstance(error, Unsupported) and calls is not None and error.param == "response_format":
            error.param = "tool_choice"
        runtime.after_hooks.begin(route.policies, job, Answer("", (), "refused"))
        raise
    return plan


def check_weight(plan: Plan, bounds: ServerConfig, trace: bool) -> None:
    """Refuse a request whose answer could list more than a server writes, or whose policies draw more than it allows.

    Raises:
        APIError: 400.
    """
    listed = (1 + plan.sampling.top_logprobs if plan.logprobs else 0) + trace
    tokens = plan.n * sum(p.limit + (len(p.ids) if p.echo is not None else 0) for p in plan.prompts)
    if listed * tokens > bounds.max_answer_entries:
        raise invalid(
            f"The answer could list {listed * tokens} tokens and log-probabilities ({tokens} tokens with {listed} "
            f"entries each); at most {bounds.max_answer_entries} are written. Ask for fewer choices, tokens or "
            "log-probabilities.",
            "logprobs" if plan.logprobs else "trace",
        )
    for policy in plan.route.policies:
        extra = policy.extra_sequences * plan.choices
        if extra > bounds.max_extra_sequences:
            place = plan.route.places.get(policy.name)
            raise invalid(
                f"The policy {policy.name} would draw {policy.extra_sequences} sequences for each of {plan.choices} "
                f"choices; at most {bounds.max_extra_sequences} are drawn for a request.",
                f"{place}.samples" if place else "n",
            )


async def _check(route: Route, job: Job) -> None:
    """Run every policy's check.

    Raises:
        APIError: one of them cannot; `param` is its place in the request, with the field if it named one.
    """
    for policy in route.policies:
        try:
            await policy.check(job)
        except (Unsupported, RetrievalError) as error:
            answer = from_exception(error)
            if answer.status < 500:
                place = route.places.get(policy.name)
                field = "" if answer.param in (None, "policy") else f".{answer.param}"
                answer.param = f"{place}{field}" if place else "policy"
            raise answer from error


def caller(request: Request, body: Generation) -> Caller:
    """Tell who asks: the name of the request's key, and its field `user`."""
    return _caller(request, (body.model_extra or {}).get("user"))


def owner_name(request: Request, user: str | None) -> str:
    """Return the name under which the request's key and a user own things."""
    return _caller(request, user).owner


def _caller(request: Request, user: Any) -> Caller:
    return Caller(request.scope.get(SCOPE_KEY), None if user is None else user_name(user))


def user_name(user: Any) -> str:
    """Return the name of a user: a text of reasonable length as it is. Others are turned into one, so that no two users
    are ever taken for the same."""
    name = user if isinstance(user, str) else json.dumps(user, sort_keys=True)
    if len(name) <= MOST_USER_CHARACTERS:
        return name
    return f"sha256:{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}"
