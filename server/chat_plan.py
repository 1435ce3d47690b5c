"""Plan the answer to a conversation: its prompt, what it may call, and how its text is read.

Every endpoint that answers conversations makes a `ChatRequest` of its own body, and has it planned here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import Request

from waver.engines.base import forwards_pictures
from waver.engines.tokens import TokenText
from waver.engines.vision import vision_of
from waver.policies.base import STAGES
from waver.policies.think.forced_answer import ForcedAnswer
from waver.policies.think.think_budget import ThinkBudget
from waver.server.chat_prompt import Rendered, chat_ids, user_turn
from waver.server.chat_schemas import ChatPrompt, ChatRequest
from waver.server.conversation import turns
from waver.server.errors import invalid
from waver.server.forwarding import check_forwarding, forwarded, forwards
from waver.server.message.reading import MessageFormat
from waver.server.message.reasoning import ReasoningParser, reasoning_parser
from waver.server.pictures import sent
from waver.server.plan import caller, make_plan
from waver.server.planned import Plan, Prompt
from waver.server.routing import Route
from waver.server.runtime import Runtime
from waver.server.sampling import truncated
from waver.server.structured import shaped, shaped_otherwise, wanted_form
from waver.server.tools.forced import ForcedCalls
from waver.server.tools.grammars import strict, unenforced, with_form
from waver.server.tools.offer import Offer, offer
from waver.server.tools.parsers import tool_parser

OLDER = ("functions", "function_call")
"""Fields of the API before `tools`."""


async def plan_chat(request: Request, runtime: Runtime, body: ChatRequest, route: Route, deadline: float) -> Plan:
    """Check a request and plan its decoding.

    Raises:
        APIError: something about the request cannot be, or a policy cannot do its part.
        Unsupported, EngineError: an engine cannot do its part.
    """
    refuse_functions(body)
    route = with_think_budget(route, body.thinking_token_budget)
    offered = offer(body)
    tokens = runtime.engines[route.engine].tokens
    if offered is not None and offered.forced and shaped_otherwise(body):
        raise invalid("A forced call has a form of its own: leave out the fields that ask for another.", "tool_choice")
    how, parser, thinking = await runtime.texts.run(message_format, runtime, route.engine, offered, body)
    calls, ignored = await calls_grammar(runtime, route, body, offered, parser, thinking is not None)
    tools = offered.for_template if offered else []
    rendered = await chat_prompt(runtime, body, route, tools)
    if rendered.pictures and body.truncate_prompt_tokens is not None:
        raise invalid("truncate_prompt_tokens cannot be used with pictures.", "truncate_prompt_tokens")
    if rendered.conversation is not None and body.return_token_ids:
        raise invalid("return_token_ids cannot be used with pictures on an upstream.", "return_token_ids")
    ids = truncated(rendered.ids, body, runtime.context(route), route)
    engine = runtime.engines[route.engine]
    closing, shaped_whole = list[int](), guided(body, offered)
    if thinking is not None:
        if shaped_whole and tokens.in_think(ids):  # the grammar holds from the first token on: there is no thinking
            closing = tokens.close_think()
        how = replace(how, reasoning=partial(thinking.make, ids, body.template_variables, shaped_whole))
    if rendered.conversation is not None and closing:
        raise invalid("With pictures on an upstream, an answer of this form needs enable_thinking: false.", "messages")
    question = user_turn(body, engine, tools, closing, rendered.pictures)
    prompt = Prompt(
        (*ids, *closing),
        question=question,
        messages=turns(body.messages),
        pictures=rendered.pictures,
        conversation=rendered.conversation,
    )
    plan = await make_plan(
        runtime,
        route,
        body,
        caller(request, body),
        [prompt],
        body.max_completion_tokens or body.max_tokens,
        body.logprobs,
        body.top_logprobs or 0,
        deadline,
        message=how if how.reasoning or how.calls else None,
        calls=calls,
    )
    return replace(plan, ignored=tuple(ignored))


async def calls_grammar(
    runtime: Runtime, route: Route, body: ChatRequest, offered: Offer | None, parser: str, thinks: bool
) -> tuple[str | None, list[str]]:
    """Choose the grammar of an answer that may be, or has to be, a call; and name the fields that change nothing.

    Raises:
        APIError: 400, what is wanted cannot be written as a grammar.
    """
    if offered is None:
        return None, []
    if offered.forced:
        return await asyncio.to_thread(offered.schema), []
    tokens = runtime.engines[route.engine].tokens
    if (wanted := await wanted_form(body)) is not None:
        return await asyncio.to_thread(with_form, wanted, offered, parser, tokens), []
    engines = [runtime.engines[name] for name in {route.engine, *route.engines}]
    free = any(isinstance(policy, ForcedAnswer) for policy in route.policies)  # its words would break any grammar
    grammar = None if free else await strict(offered, parser, tokens, thinks, engines, runtime.schema_checks)
    return grammar, unenforced(offered, grammar)


async def chat_prompt(runtime: Runtime, body: ChatPrompt, route: Route, tools: Sequence[dict[str, Any]]) -> Rendered:
    """Make the prompt of a conversation, with its pictures. Engines that write in turns have to read these alike.

    Raises:
        APIError: 400, the conversation is not acceptable, or one of its pictures; `param` names it.
        ContextExceeded: it is too long.
    """
    given = sent(body.messages)
    names = dict.fromkeys((route.engine, *route.engines))
    for name in names if given else ():
        engine = runtime.engines[name]
        if vision_of(engine) is None and not forwards_pictures(engine):
            raise invalid(f"{given[0].place}: engine '{name}' takes no pictures.", given[0].place)
    sends_on = bool(given) and forwards(runtime, [*names])
    for part, policy in ((part, policy) for part in given[:1] for policy in route.policies):
        if not policy.takes_pictures:
            raise invalid(f"{part.place}: the policy {policy.name} takes no pictures.", part.place)
    for each in given:
        role = body.messages[each.message].role
        if role != "user":
            raise invalid(f"{each.place}: pictures belong into messages of the user, not of the {role}.", each.place)
    if sends_on:
        check_forwarding([*names], route, tools, given[0])
    pictures = await runtime.pictures.read(given) if given else ()
    context = runtime.context(route)
    if sends_on:
        return await forwarded(body, runtime, route.engine, context, pictures)
    made = {
        name: await chat_ids(body, body.messages, runtime.engines[name], runtime.texts, context, tools, pictures)
        for name in (names if given else (route.engine,))
    }
    for name, other in made.items():
        if other.ids != made[route.engine].ids:
            raise invalid(
                f"{given[0].place}: engines '{route.engine}' and '{name}' read pictures as different tokens, so that "
                "they cannot share an answer.",
                given[0].place,
            )
    return made[route.engine]


async def chat_tokens(runtime: Runtime, body: ChatRequest, route: Route) -> list[int]:
    """Make the prompt that a request would have.

    Raises:
        APIError, ContextExceeded: as for the request itself.
    """
    refuse_functions(body)
    offered = offer(body)
    tokens = runtime.engines[route.engine].tokens
    if offered is not None:
        check_renders(route.engine, tokens)
    tools = offered.for_template if offered else []
    rendered = await chat_prompt(runtime, body, route, tools)
    if rendered.conversation is not None:
        place = sent(body.messages)[0].place
        raise invalid(f"{place}: only the upstream of engine '{route.engine}' can count a picture's tokens.", place)
    return rendered.ids


def guided(body: ChatRequest, offered: Offer | None) -> bool:
    """Return whether a grammar decides the form of the answer."""
    return shaped(body) or (offered is not None and offered.forced)


def message_format(
    runtime: Runtime, engine: str, offered: Offer | None, body: ChatRequest
) -> tuple[MessageFormat, str, ReasoningParser | None]:
    """Decide how the text of an answer is read as a message: also the name of the parser of calls, if one is used, and
    the parser of reasoning, which needs the prompt. Blocks where they have to be loaded.

    Raises:
        APIError: 400, tools are offered, and the engine's model cannot be told of them, or its calls cannot be read.
    """
    config, tokens = runtime.config.engines[engine], runtime.engines[engine].tokens
    thinking = reasoning_parser(config.reasoning_parser, tokens)
    plain = MessageFormat(include_reasoning=body.include_reasoning)
    if offered is None:
        return plain, "", thinking
    check_renders(engine, tokens)
    if offered.forced:
        return replace(plain, calls=ForcedCalls), "", thinking
    parser = tool_parser(config.tool_parser, tokens)
    if parser is None:
        raise invalid(
            f"Nothing tells how the model of engine '{engine}' writes its calls: name a tool_parser in the engine's "
            "configuration, or force a call by tool_choice.",
            "tools",
        )
    read = replace(
        plain, calls=lambda: parser.make(offered, body.stream), markers=parser.markers, single=offered.single
    )
    return read, parser.name, thinking


def with_think_budget(route: Route, tokens: int | None) -> Route:
    """Add the policy `think_budget` to a route, or set its budget; None: leave it as it is."""
    if tokens is None:
        return route
    own = next((policy for policy in route.policies if isinstance(policy, ThinkBudget)), ThinkBudget())
    budget = own.model_copy(update={"tokens": tokens})
    chosen = [*(policy for policy in route.policies if policy is not own), budget]
    ordered = tuple(sorted(chosen, key=lambda policy: STAGES.index(policy.stage)))
    return replace(route, policies=ordered, places={**route.places, budget.name: "thinking_token_budget"})


def check_renders(engine: str, tokens: TokenText) -> None:
    """Refuse tools where the chat template does not show them to the model.

    Raises:
        APIError: 400.
    """
    if not tokens.renders_tools:
        raise invalid(
            f"The chat template of engine '{engine}' shows no tools to its model. Use an engine whose model knows "
            "tools, or name a template that shows them as chat_template in the engine's configuration.",
            "tools",
        )


def refuse_functions(body: ChatRequest) -> None:
    """Refuse the API before `tools`, which is never silently ignored.

    Raises:
        APIError: 400.
    """
    for name in OLDER:
        if (body.model_extra or {}).get(name) not in (None, [], "none"):
            raise invalid(f"'{name}' is not supported: use tools and tool_choice.", name)
