"""Send a conversation with pictures on to an upstream's `POST /chat/completions`.

The upstream renders it by its own template and reads the pictures as its model's tokens, whose number it alone knows:
so it tells the prompt's length, and nobody else can go on with such an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from waver.engines.base import EngineError, Sampling, Step, Unsupported
from waver.engines.pictures import Conversation
from waver.engines.upstream.request import Capabilities


def chat(request: Mapping[str, Any], conversation: Conversation, capabilities: Capabilities) -> dict[str, Any]:
    """Make the body of a chat request out of that of a completion."""
    out = {name: value for name, value in request.items() if name not in ("prompt", "logprobs")}
    if not conversation.limited:  # what the pictures leave of the context is the upstream's to know
        del out["max_tokens"]
    if (top := request.get("logprobs")) is not None:
        out |= {"logprobs": True, "top_logprobs": top}
    options: dict[str, Any] = {"include_usage": True}
    if capabilities.extras:
        options["continuous_usage_stats"] = True
    optional = {
        "chat_template_kwargs": dict(conversation.variables),
        "continue_final_message": conversation.continues,
    }
    out |= {name: value for name, value in optional.items() if value}
    if not conversation.generate:
        out["add_generation_prompt"] = False
    return out | {"messages": list(conversation.messages), "stream_options": options}


def refuse_pictures(sampling: Sampling, begun: bool) -> None:
    """Refuse pictures that cannot be sent on.

    Raises:
        Unsupported: the message says why.
    """
    if begun or sampling.conversation is None:
        raise Unsupported(
            "an upstream is sent pictures with the conversation that they belong to, so nothing can be added to its "
            "prompt, and no other engine can write a part of the answer",
            "messages",
        )


class Told:
    """Keeps what a stream says beside its tokens: how long the prompt was, and how many tokens there have been.

    Args:
        who: the upstream's name, for errors.
    """

    def __init__(self, who: str) -> None:
        self._who = who
        self._prompt: int | None = None
        self._said = self._written = self._seen = 0
        self._ended = False

    def take(self, choice: Mapping[str, Any], ending: bool = True) -> None:
        """Note what a choice says; not `ending`: the answer has ended before it."""
        self._ended = self._ended or (ending and choice.get("finish_reason") is not None)
        usage = choice.get("usage") or {}
        prompt, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if isinstance(prompt, int) and prompt > 0:
            self._prompt = prompt
        if isinstance(written, int):
            self._written = written

    def on(self, steps: Sequence[Step]) -> Iterator[Step]:
        """Return steps, the first of which tells the length of the prompt, if it is known and was not told before.

        Raises:
            EngineError: tokens of the answer have not come.
        """
        self._seen += len(steps)
        if self._ended and self._written > self._seen + 1:  # an end may be counted that is not reported
            raise EngineError(
                f"{self._who} keeps tokens of its answer to itself; let it run without parsers of its own",
                f"{self._seen} of {self._written}",
            )
        for i, step in enumerate(steps):
            if i == 0 and self._prompt is not None and self._said != self._prompt:
                self._said = self._prompt
                step = replace(step, prompt_tokens=self._prompt)
            yield step
