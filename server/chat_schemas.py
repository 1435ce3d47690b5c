"""Request bodies that hold a conversation: chat completions, and what is tokenised as a chat."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from waver.server.schemas import Body, Generation, Many, Text


class TextPart(Body):
    type: Literal["text"]
    text: Text


class Function(Body):
    name: Text
    arguments: Text


class ToolCall(Body):
    id: Text
    type: Literal["function"] = "function"
    function: Function


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Many[TextPart] | None = None
    name: Text | None = None
    tool_calls: list[ToolCall] = Field([], max_length=512)
    tool_call_id: Text | None = None

    @property
    def strings(self) -> list[str]:
        """Yield every string that a chat template may use."""
        calls = [part for call in self.tool_calls for part in (call.id, call.function.name, call.function.arguments)]
        return [each for each in (self.text, self.name, self.tool_call_id, *calls) if each]

    @property
    def text(self) -> str | None:
        """Return the content as one string."""
        return "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content


class ChatPrompt(Body):
    """The fields of a chat request from which the prompt is rendered."""

    messages: Many[Message] = Field(min_length=1, max_length=4096)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field({})


class ChatRequest(ChatPrompt, Generation):
    """POST /v1/chat/completions."""

    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class TokenizeRequest(Body):
    """POST /tokenize: a text, or the messages of a chat."""

    model: Text | None = None
    prompt: Text | None = None
    messages: Many[Message] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field({})
    return_token_strs: bool = False
