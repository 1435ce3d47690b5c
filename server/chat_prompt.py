"""Make the prompt of a conversation: the chat template's text as token ids, outside of the event loop."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from waver.engines.base import ContextExceeded, Engine, Unsupported
from waver.engines.pictures import Conversation, Picture
from waver.engines.tokens import TokenText
from waver.engines.vision import vision_of
from waver.policies.job import UserTurn
from waver.server.chat_schemas import ChatPrompt, ChatRequest, Message, TokenizeRequest
from waver.server.conversation import turns
from waver.server.errors import invalid
from waver.server.texts import TokenizerPool, check_length, check_tokens

RESERVED = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages", "template_kwargs"}
"""Never a template's variable: these would change what the tokenizer does."""
Tools = Sequence[dict[str, Any]]
"""Tools as chat templates take them."""


@dataclass(frozen=True)
class Rendered:
    """A prompt's ids, and the pictures whose tokens stand in it; or those of a `conversation` that is sent on, whose
    ids are of its texts alone."""

    ids: list[int]
    pictures: tuple[Picture, ...] = ()
    conversation: Conversation | None = None


async def chat_ids(
    body: ChatPrompt | TokenizeRequest,
    messages: Sequence[Message],
    engine: Engine,
    texts: TokenizerPool,
    context: int,
    tools: Tools = (),
    pictures: Sequence[Picture] = (),
) -> Rendered:
    """Make the prompt of a conversation, tokenised outside of the event loop.

    Args:
        engine: the one whose template and tokens it has. pictures: those of the messages, in order.

    Raises:
        APIError: 400, the conversation or the template's variables are not acceptable, or too long for the context.
    """
    tokens, vision = engine.tokens, vision_of(engine)
    words = [part for message in messages for part in message.strings]
    words += [each for each in body.chat_template_kwargs.values() if isinstance(each, str)]
    words += [json.dumps(tool, ensure_ascii=False) for tool in tools]
    check_length(words, context, "messages")
    if len(messages) > context:
        raise ContextExceeded(context, f"there are {len(messages)} messages", "messages")
    for key, value in body.chat_template_kwargs.items():
        if key in RESERVED or not isinstance(value, str | bool | int | float | None):
            raise invalid(f"chat_template_kwargs: '{key[:40]}' cannot be set by a request.", "chat_template_kwargs")
    if "chat_template" in (body.model_extra or {}):
        raise invalid("A request cannot bring a chat template.", "chat_template")
    conversation = turns(messages, pictures=True)
    if body.continue_final_message and body.add_generation_prompt and "add_generation_prompt" in body.model_fields_set:
        raise invalid("continue_final_message and add_generation_prompt exclude each other.", "continue_final_message")

    def work() -> Rendered:
        if getattr(body, "truncate_prompt_tokens", None) is None:
            check_tokens(words, tokens, context, "messages")
        ids = render(body, conversation, tokens, tools)
        return Rendered(*vision.place(ids, pictures)) if vision is not None and pictures else Rendered(ids)

    try:
        return await texts.run(work)
    except Unsupported:
        raise
    except ValueError as error:
        raise invalid(str(error), "messages") from error


def render(
    body: ChatPrompt | TokenizeRequest, conversation: Sequence[dict[str, Any]], tokens: TokenText, tools: Tools = ()
) -> list[int]:
    """Render a conversation by the chat template.

    Raises:
        ValueError: the template refuses the conversation.
    """
    generate = body.add_generation_prompt and not body.continue_final_message
    return tokens.chat(conversation, generate, body.continue_final_message, tools, **body.template_variables)


def user_turn(
    body: ChatRequest,
    engine: Engine,
    tools: Tools = (),
    closing: Sequence[int] = (),
    pictures: Sequence[Picture] = (),
) -> UserTurn | None:
    """Return what the user said last, if a user said anything. `closing`: tokens behind what the template renders;
    `pictures`: those of the conversation."""
    vision = vision_of(engine)
    conversation = turns(body.messages, pictures=True)
    last = max((i for i, message in enumerate(body.messages) if message.role == "user"), default=None)
    if last is None:
        return None

    def with_context(words: str) -> list[int]:
        led = [dict(each) for each in conversation]
        said = led[last]["content"]
        led[last]["content"] = words + said if isinstance(said, str) else [{"type": "text", "text": words}, *said]
        ids = render(body, led, engine.tokens, tools)
        if vision is not None and pictures:
            ids, _ = vision.place(ids, pictures)
        return [*ids, *closing]

    opens = body.add_generation_prompt and not body.continue_final_message
    return UserTurn(body.messages[last].text or "", with_context, opens)
