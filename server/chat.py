"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from waver.server.answer import Answer
from waver.server.auth import SCOPE_KEY
from waver.server.bodies import BodyRoute
from waver.server.chat_format import ChatFormatter
from waver.server.chat_plan import plan_chat
from waver.server.chat_schemas import ChatRequest
from waver.server.errors import invalid
from waver.server.fields import ignored_fields, refuse_unserved
from waver.server.runtime import ready_runtime
from waver.server.sse import STREAMED
from waver.server.translation import Translation

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/chat/completions", summary="Answer a conversation", responses=STREAMED)
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    return await chat_answer(request, body)


async def chat_answer(
    request: Request, body: ChatRequest, translation: Translation | None = None, unread: Sequence[str] = ()
) -> Response:
    """Answer a conversation.

    Args:
        translation: into the protocol that the request came in. unread: what that had, and changes nothing.
    """
    runtime = ready_runtime(request)
    refuse_unserved(body)
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs needs 'logprobs': true.", "top_logprobs")
    route = runtime.route(body.model, body.policy, request.scope.get(SCOPE_KEY))
    tokens = runtime.engines[route.engine].tokens
    ignored = ignored_fields(body, tokens, runtime.config.server.strict, unread)
    deadline = runtime.deadline(body.timeout)
    async with asyncio.timeout_at(deadline):
        plan = await plan_chat(request, runtime, body, route, deadline)
    formatter = ChatFormatter(tokens, body.logprobs, body.top_logprobs or 0, body.return_tokens_as_token_ids)
    return await Answer(body, plan, formatter, runtime, [*ignored, *plan.ignored]).respond(request, translation)
