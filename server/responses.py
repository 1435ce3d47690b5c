"""POST /v1/responses: OpenAI's Responses API on top of chat, with responses that can be continued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from waver.engines.base import Unsupported
from waver.server.auth import SCOPE_KEY
from waver.server.bodies import BodyRoute
from waver.server.chat import chat_answer
from waver.server.errors import APIError, from_exception
from waver.server.response_store import StoredResponse
from waver.server.responses_input import ResponsesRequest, to_chat, unread
from waver.server.responses_output import ResponseTranslation
from waver.server.runtime import Runtime, ready_runtime, runtime
from waver.server.sse import STREAMED

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/responses", summary="Answer a conversation, in OpenAI's newer protocol", responses=STREAMED)
async def responses(request: Request, body: ResponsesRequest) -> Response:
    here, owner = ready_runtime(request), request.scope.get(SCOPE_KEY)
    previous = body.previous_response_id
    history = stored(here, owner, previous, "previous_response_id").messages if previous is not None else ()
    chat, conversation = to_chat(body, history)
    own = conversation.messages[0 if body.instructions is None else 1 :]  # instructions are not carried over

    def keep(response: Mapping[str, Any], message: Mapping[str, Any]) -> None:
        if body.store:
            here.responses.put(owner, StoredResponse(dict(response), (*own, message)))

    translation = ResponseTranslation(body, here.route(body.model, chat.policy, owner).model, keep)
    try:
        return await chat_answer(request, chat, translation, unread(body))
    except (APIError, Unsupported) as error:
        raise conversation.original(from_exception(error)) from error


@router.get("/v1/responses/{response}", summary="A stored response")
async def response(request: Request, response: str) -> dict[str, Any]:
    return stored(runtime(request), request.scope.get(SCOPE_KEY), response, None).response


@router.delete("/v1/responses/{response}", summary="Forget a stored response")
async def delete(request: Request, response: str) -> dict[str, Any]:
    here, owner = runtime(request), request.scope.get(SCOPE_KEY)
    stored(here, owner, response, None)
    here.responses.discard(owner, response)
    return {"id": response, "object": "response", "deleted": True}


def stored(here: Runtime, owner: str | None, name: str, param: str | None) -> StoredResponse:
    """Return a stored response of an owner.

    Raises:
        APIError: 404, there is none.
    """
    found = here.responses.get(owner, name)
    if found is None:
        message = (
            f"There is no response '{name[:80]}': they are kept in memory while the server runs, the latest "
            f"{here.responses.most} at most."
        )
        raise APIError(404, message, param=param, code="response_not_found")
    return found
