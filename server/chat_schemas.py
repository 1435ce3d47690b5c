"""Request bodies that hold a conversation: chat completions, and what is tokenised as a chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from waver.server.schemas import Body, Generation, Many, Plain, Text
from waver.server.tools.schemas import MOST_TOOLS, Tool, ToolFields

MOST_CALLS = 512


class TextPart(Body):
    type: Literal["text"]
    text: Text


class RefusalPart(Body):
    """The text of a refusal; a part of an assistant's message."""

    type: Literal["refusal"]
    refusal: Text

    @property
    def text(self) -> str:
        return self.refusal


class ImageUrl(Body):
    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"


class ImagePart(Body):
    """A picture, as a data URL; a part of a user's message."""

    type: Literal["image_url"]
    image_url: ImageUrl | str

    @property
    def url(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url

    @property
    def text(self) -> str:
        """Return nothing: a picture is no text."""
        return ""


ContentPart = Annotated[TextPart | ImagePart | RefusalPart, Field(discriminator="type")]


class Function(Body):
    name: Text
    arguments: Text = ""


class ToolCall(Body):
    id: Text = ""
    type: Literal["function"] = "function"
    function: Function


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Many[ContentPart] | None = None
    name: Text | None = None
    refusal: Text | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    tool_calls: Many[ToolCall] = Field([], max_length=MOST_CALLS)
    function_call: Function | None = None
    tool_call_id: Text | None = None

    @property
    def calls(self) -> list[ToolCall]:
        """Return the calls of tools, also that of the older API."""
        older = [] if self.function_call is None else [ToolCall(function=self.function_call)]
        return [*self.tool_calls, *older]

    @property
    def thought(self) -> str | None:
        """Return the reasoning before the answer."""
        return self.reasoning_content or self.reasoning

    @property
    def strings(self) -> list[str]:
        """Yield every string that a chat template may use."""
        calls = [part for call in self.calls for part in (call.id, call.function.name, call.function.arguments)]
        return [each for each in (self.text, self.name, self.tool_call_id, self.thought, *calls) if each]

    @property
    def parts(self) -> list[dict[str, str]] | None:
        """Return the content as chat templates take it where it has pictures; None where it has none."""
        if not isinstance(self.content, list) or not any(isinstance(part, ImagePart) for part in self.content):
            return None
        return [
            {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
            for part in self.content
        ]

    @property
    def text(self) -> str | None:
        """Return the content as one string, without its pictures."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.refusal if self.content is None else self.content


MOST_PARTS = 8192
"""Parts of contents and calls of tools in a conversation; each of them is validated on the event loop."""


def _of_few_parts(messages: Any) -> Any:
    """Check the number of parts in a conversation that was not validated yet."""
    if isinstance(messages, list):
        inside = [each.get(key) for each in messages if isinstance(each, dict) for key in ("content", "tool_calls")]
        if sum(len(each) for each in inside if isinstance(each, list)) > MOST_PARTS:
            raise ValueError(f"should have at most {MOST_PARTS} parts and calls of tools together.")
    return messages


Messages = Annotated[Many[Message], BeforeValidator(_of_few_parts)]


class ChatPrompt(Body):
    """The fields of a chat request from which the prompt is rendered."""

    messages: Messages = Field(min_length=1, max_length=4096)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Plain[dict[str, Any]] = Field({})
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    @property
    def template_variables(self) -> dict[str, Any]:
        """Return the variables of the chat template, under the names that templates have for thinking."""
        effort = self.reasoning_effort
        thinks = {} if effort is None else dict.fromkeys(("enable_thinking", "thinking"), effort != "none")
        return {**thinks, **({} if effort is None else {"reasoning_effort": effort}), **self.chat_template_kwargs}


class ChatRequest(ToolFields, ChatPrompt, Generation):
    """POST /v1/chat/completions."""

    include_reasoning: bool = True
    thinking_token_budget: int | None = Field(None, ge=0, lt=2**31)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class TokenizeRequest(Body):
    """POST /tokenize: a text, or the messages of a chat."""

    model: Text | None = None
    prompt: Text | None = None
    messages: Messages | None = Field(None, max_length=4096)
    tools: Many[Tool] = Field([], max_length=MOST_TOOLS)
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Plain[dict[str, Any]] = Field({})
    return_token_strs: bool = False

    @property
    def template_variables(self) -> dict[str, Any]:
        """Return the variables of the chat template."""
        return self.chat_template_kwargs
