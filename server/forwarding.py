"""Send a conversation with pictures on to an upstream, whose own template and processor read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from waver.engines.base import forwards_pictures, keeps_text
from waver.engines.pictures import Conversation, Picture
from waver.engines.tokens import TokenText
from waver.server.chat_prompt import Rendered, chat_ids
from waver.server.chat_schemas import ChatPrompt, ChatRequest, ContentPart, ImagePart, Message
from waver.server.errors import invalid
from waver.server.pictures import Sent
from waver.server.routing import Route
from waver.server.runtime import Runtime


def forwards(runtime: Runtime, names: Sequence[str]) -> bool:
    """Return whether one of these engines has its pictures read elsewhere."""
    return any(forwards_pictures(runtime.engines[name]) for name in names)


def check_forwarding(names: Sequence[str], route: Route, tools: Sequence[object], first: Sent) -> None:
    """Refuse what takes more than sending a conversation on.

    Args:
        names: the engines that may write. first: the first picture, for errors.

    Raises:
        APIError: 400.
    """
    if len(names) > 1:
        raise invalid(
            f"{first.place}: pictures are sent on to an upstream as they are, so that no other engine can write a part "
            "of the answer; ask for one engine.",
            first.place,
        )
    if tools:
        raise invalid(
            f"tools cannot be used with pictures on engine '{names[0]}', an upstream: its answer is read here, token "
            "by token, and its template need not show them then.",
            "tools",
        )
    for policy in route.policies:
        if policy.stage != "sample":
            raise invalid(
                f"{first.place}: the policy {policy.name} cannot be used with pictures on engine '{names[0]}', an "
                "upstream.",
                first.place,
            )


async def forwarded(
    body: ChatPrompt, runtime: Runtime, engine: str, context: int, pictures: Sequence[Picture]
) -> Rendered:
    """Make the conversation that is sent on, and the ids of its texts.

    Args:
        pictures: those of the conversation, in order.

    Raises:
        APIError: 400, the conversation is not acceptable, or holds the text of a control token, which would be one
            there.
        ContextExceeded: its texts alone are too long.
    """
    writer = runtime.engines[engine]
    if not keeps_text(writer):
        refuse_control_tokens(body.messages, writer.tokens)
    texts = [message.model_copy(update={"content": message.text}) for message in body.messages]
    rendered = await chat_ids(body, texts, writer, runtime.texts, context)
    left = iter(pictures)
    messages = [as_sent(message, [next(left) for _ in range(pictures_of(message))]) for message in body.messages]
    limited = isinstance(body, ChatRequest) and (body.max_completion_tokens or body.max_tokens) is not None
    generate = body.add_generation_prompt and not body.continue_final_message
    conversation = Conversation(messages, body.template_variables, generate, body.continue_final_message, limited)
    return Rendered(rendered.ids, tuple(pictures), conversation)


def refuse_control_tokens(messages: Sequence[Message], tokens: TokenText) -> None:
    """Refuse texts that spell a control token.

    Raises:
        APIError: 400, one does.
    """
    for i, message in enumerate(messages):
        for text in message.strings:
            if found := next((name for name in tokens.control_tokens if name in text), None):
                raise invalid(
                    f"messages[{i}] has the text '{found[:40]}', which would be a control token of the model behind "
                    "this engine's upstream; leave it out of a conversation with pictures.",
                    f"messages[{i}]",
                )


def pictures_of(message: Message) -> int:
    """Count the pictures of a message."""
    return sum(isinstance(part, ImagePart) for part in message.content) if isinstance(message.content, list) else 0


def as_sent(message: Message, pictures: Sequence[Picture]) -> Mapping[str, Any]:
    """Return a message as OpenAI's API has it."""
    out: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    left = iter(pictures)
    if pictures and isinstance(message.content, list):
        out["content"] = [_part(part, left) for part in message.content]
    else:
        out["content"] = message.text or ""
    if message.calls:
        out["tool_calls"] = [call.model_dump(include={"id", "type", "function"}) for call in message.calls]
    if message.thought:
        out["reasoning_content"] = message.thought
    return out | message.model_dump(include={"name", "tool_call_id"}, exclude_none=True)


def _part(part: ContentPart, pictures: Any) -> dict[str, Any]:
    if not isinstance(part, ImagePart):
        return {"type": "text", "text": part.text}
    detail = (
        {} if isinstance(part.image_url, str) else part.image_url.model_dump(include={"detail"}, exclude_unset=True)
    )
    return {"type": "image_url", "image_url": {"url": next(pictures).url, **detail}}
