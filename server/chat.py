"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from waver.server.answer import Answer
from waver.server.auth import SCOPE_KEY
from waver.server.bodies import BodyRoute
from waver.server.chat_format import ChatFormatter
from waver.server.chat_plan import plan_chat
from waver.server.chat_schemas import ChatRequest
from waver.server.errors import invalid
from waver.server.runtime import ready_runtime

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/chat/completions", summary="Answer a conversation")
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    runtime = ready_runtime(request)
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs needs 'logprobs': true.", "top_logprobs")
    route = runtime.route(body.model, body.policy, request.scope.get(SCOPE_KEY))
    deadline = runtime.deadline(body.timeout)
    async with asyncio.timeout_at(deadline):
        plan = await plan_chat(request, runtime, body, route, deadline)
    formatter = ChatFormatter(runtime.engines[route.engine].tokens, body.logprobs, body.top_logprobs or 0)
    return await Answer(body, plan, formatter, runtime).respond(request)
