"""From a validated request to a `Plan`: every check that can be made before the first token is made here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from policies.base import Job, Report
from policies.registry import check_engines
from server.decoding import Plan, Prompt
from server.errors import invalid
from server.runtime import Route, Runtime
from server.sampling import first_seed, grammar, sampling, token_limit
from server.schemas import Generation


async def make_plan(
    runtime: Runtime,
    route: Route,
    body: Generation,
    prompts: Sequence[Prompt],
    max_tokens: int | None,
    logprobs: bool,
    top_logprobs: int,
) -> Plan:
    """Raises:
    APIError: 400, something about the request cannot be.
    Unsupported, RetrievalError, EngineError: a policy or an engine cannot do its part."""
    bounds = runtime.config.server
    if body.n > bounds.max_n:
        raise invalid(f"n should be at most {bounds.max_n}.", "n")
    if body.n * len(prompts) > bounds.max_choices:
        raise invalid(f"{len(prompts)} prompts times n = {body.n} are more than {bounds.max_choices} choices.", "n")
    context = min(runtime.engines[name].context_length for name in {route.engine, *route.engines})
    plan = Plan(
        route=route,
        prompts=[
            replace(p, limit=token_limit(len(p.ids), max_tokens, body, context, bounds.default_max_tokens))
            for p in prompts
        ],
        n=body.n,
        sampling=sampling(
            body,
            runtime.engines[route.engine],
            logprobs or body.trace,
            top_logprobs,
            await grammar(body.response_format),
        ),
        seed=first_seed(body.seed),
        stops=body.stops,
        logprobs=logprobs,
        timeout=min(body.timeout or bounds.timeout, bounds.timeout),
    )
    first = plan.prompts[0]  # the others are of its kind
    sampled = replace(plan.sampling, max_tokens=first.limit, seed=plan.seed)
    report = Report(parameters=runtime.parameters(route))
    job = Job(
        first.ids, sampled, route.engine, runtime.engines, report, first.question, runtime.library, runtime.probes
    )
    for policy in route.policies:
        await policy.check(job)
    await asyncio.to_thread(check_engines, route.policies, job)
    return plan
