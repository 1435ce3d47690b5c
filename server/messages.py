"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API on top of chat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response

from waver.engines.base import Unsupported
from waver.server.auth import SCOPE_KEY
from waver.server.bodies import BodyRoute
from waver.server.chat import chat_answer
from waver.server.chat_plan import chat_tokens
from waver.server.errors import APIError, from_exception, invalid
from waver.server.messages_input import MessagesRequest, to_chat, unread
from waver.server.messages_output import REFUSED, MessageTranslation, error_body
from waver.server.runtime import ready_runtime
from waver.server.sse import STREAMED, dump


class MessagesRoute(BodyRoute):
    """A route that answers errors in Anthropic's format."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:
                answer = from_exception(error)
                return Response(dump(error_body(answer)), answer.status, answer.headers, "application/json")

        return handler


router = APIRouter(route_class=MessagesRoute)


@router.post(
    "/v1/messages", summary="Answer a conversation, in Anthropic's protocol", responses={**STREAMED, **REFUSED}
)
async def messages(request: Request, body: MessagesRequest) -> Response:
    here = ready_runtime(request)
    if body.max_tokens is None:
        raise invalid("max_tokens is required.", "max_tokens")
    route = here.route(body.model, (body.model_extra or {}).get("policy"), request.scope.get(SCOPE_KEY))
    tokens = here.engines[route.engine].tokens
    chat, conversation = to_chat(body, tokens)
    try:
        return await chat_answer(request, chat, MessageTranslation(route.model), unread(body, tokens))
    except (APIError, Unsupported) as error:
        raise conversation.original(from_exception(error)) from error


@router.post("/v1/messages/count_tokens", summary="Count the tokens of a conversation", responses=REFUSED)
async def count_tokens(request: Request, body: MessagesRequest) -> dict[str, int]:
    here = ready_runtime(request)
    route = here.route(body.model, (body.model_extra or {}).get("policy"), request.scope.get(SCOPE_KEY))
    chat, conversation = to_chat(body, here.engines[route.engine].tokens)
    try:
        async with asyncio.timeout_at(here.deadline(None)):
            return {"input_tokens": len(await chat_tokens(here, chat, route))}
    except (APIError, Unsupported) as error:
        raise conversation.original(from_exception(error)) from error
