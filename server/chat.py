"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from transformers import PreTrainedTokenizerBase

from waver.engines.tokens import TokenText
from waver.policies.job import UserTurn
from waver.server.answer import Answer, FinishedChoice
from waver.server.assembly import Piece, Token
from waver.server.bodies import BodyRoute
from waver.server.chat_schemas import ChatPrompt, ChatRequest, Message, TokenizeRequest
from waver.server.decoding import Prompt
from waver.server.errors import invalid
from waver.server.logprobs import chat_logprobs
from waver.server.plan import caller, make_plan
from waver.server.runtime import ready_runtime
from waver.server.texts import TokenizerPool, check_length, check_tokens

router = APIRouter(route_class=BodyRoute)

RESERVED = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages", "template_kwargs"}
"""Never a template's variable: these would change what the tokenizer does."""
TOOLS = ("tools", "tool_choice", "functions", "function_call")


@router.post("/v1/chat/completions", summary="Answer a conversation")
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    runtime = ready_runtime(request)
    refuse_tools(body)
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs needs 'logprobs': true.", "top_logprobs")
    route = runtime.route(body.model, body.policy)
    tokens = runtime.engines[route.engine].tokens
    deadline = runtime.deadline(body.timeout)
    async with asyncio.timeout_at(deadline):
        ids = await chat_ids(body, body.messages, tokens, runtime.texts, runtime.context(route))
        turns = [turn(message, "messages") for message in body.messages]
        prompt = Prompt(tuple(ids), question=user_turn(body, turns, tokens), messages=turns)
        limit = body.max_completion_tokens or body.max_tokens
        who, top = caller(request, body), body.top_logprobs or 0
        plan = await make_plan(runtime, route, body, who, [prompt], limit, body.logprobs, top, deadline)
    formatter = ChatFormatter(tokens, body.logprobs, body.top_logprobs or 0)
    return await Answer(body, plan, formatter, runtime).respond(request)


class ChatFormatter:
    """Chat completions: text in `message.content`, or in `delta.content` piece by piece."""

    prefix = "chatcmpl"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def __init__(self, tokens: TokenText, logprobs: bool, top: int) -> None:
        self._tokens = tokens
        self._wanted = logprobs
        self._top = top

    def opening(self, index: int) -> dict[str, Any]:
        return self._choice(index, delta={"role": "assistant", "content": ""})

    def part(self, piece: Piece) -> dict[str, Any]:
        if piece.finish:
            return self._choice(piece.index, delta={}, finish_reason=piece.finish)
        return self._choice(piece.index, delta={"content": piece.text}, logprobs=self._logprobs(piece.tokens))

    def complete(self, choice: FinishedChoice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        logprobs = self._logprobs(choice.tokens)
        return self._choice(choice.index, message=message, logprobs=logprobs, finish_reason=choice.finish)

    def _choice(
        self, index: int, logprobs: Any = None, finish_reason: str | None = None, **content: Any
    ) -> dict[str, Any]:
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        return {"content": chat_logprobs(tokens, self._tokens, self._top), "refusal": None} if self._wanted else None


async def chat_ids(
    body: ChatPrompt | TokenizeRequest,
    messages: Sequence[Message],
    tokens: TokenText,
    texts: TokenizerPool,
    context: int,
) -> list[int]:
    """Make the prompt of a conversation, tokenised outside of the event loop.

    Raises:
        APIError: 400, the conversation or the template's variables are not acceptable, or too long for the context.
    """
    words = [part for message in messages for part in message.strings]
    words += [each for each in body.chat_template_kwargs.values() if isinstance(each, str)]
    check_length(words, context, "messages")
    if len(messages) > context:
        message = f"There are {len(messages)} messages, and the context of {context} tokens must hold them."
        raise invalid(message, "messages", "context_length_exceeded")
    for key, value in body.chat_template_kwargs.items():
        if key in RESERVED or not isinstance(value, str | bool | int | float | None):
            raise invalid(f"chat_template_kwargs: '{key[:40]}' cannot be set by a request.", "chat_template_kwargs")
    if "chat_template" in (body.model_extra or {}):
        raise invalid("A request cannot bring a chat template.", "chat_template")
    turns = [turn(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if body.continue_final_message and body.add_generation_prompt and "add_generation_prompt" in body.model_fields_set:
        raise invalid("continue_final_message and add_generation_prompt exclude each other.", "continue_final_message")

    def work() -> list[int]:
        check_tokens(words, tokens, context, "messages")
        return render(body, turns, tokens)

    try:
        return await texts.run(work)
    except ValueError as error:
        raise invalid(str(error), "messages") from error


def render(body: ChatPrompt | TokenizeRequest, turns: Sequence[dict[str, Any]], tokens: TokenText) -> list[int]:
    """Render a conversation by the chat template.

    Raises:
        ValueError: the template refuses the conversation.
    """
    generate = body.add_generation_prompt and not body.continue_final_message
    return tokens.chat(turns, generate, body.continue_final_message, **body.chat_template_kwargs)


def user_turn(body: ChatRequest, turns: Sequence[dict[str, Any]], tokens: TokenText) -> UserTurn | None:
    """Return what the user said last, if a user said anything."""
    last = max((i for i, message in enumerate(body.messages) if message.role == "user"), default=None)
    if last is None:
        return None

    def with_context(words: str) -> list[int]:
        led = [dict(each) for each in turns]
        led[last]["content"] = words + led[last]["content"]
        return render(body, led, tokens)

    opens = body.add_generation_prompt and not body.continue_final_message
    return UserTurn(body.messages[last].text or "", with_context, opens)


def turn(message: Message, param: str) -> dict[str, Any]:
    """Turn a message into what chat templates expect: `developer` is their `system`, and the content is one string."""
    text = message.text
    if text is None and message.role != "assistant":
        raise invalid(f"{param}.content is required.", f"{param}.content")
    out: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": text or ""}
    if message.tool_calls:
        out["tool_calls"] = [call.model_dump(include={"id", "type", "function"}) for call in message.tool_calls]
    return out | message.model_dump(include={"name", "tool_call_id"}, exclude_none=True)


def refuse_tools(body: ChatRequest) -> None:
    """Refuse tools, which are not supported and never silently ignored.

    Raises:
        APIError: 400.
    """
    for name in TOOLS:
        if (body.model_extra or {}).get(name) not in (None, [], "none"):
            raise invalid(f"Tools are not supported: leave out '{name}'.", "tools" if name == "tools" else name)
