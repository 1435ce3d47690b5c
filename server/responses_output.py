"""Turn a chat's answer into OpenAI's response objects and the events of their stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from waver.server.responses_input import ResponsesRequest
from waver.server.translation import Event, new_id

Item = dict[str, Any]
STATUS = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Reasons for an incomplete response, by chat's finish reason."""


class ResponseTranslation:
    """Builds one response. `keep` is called with the finished response and the answer as a chat's message."""

    def __init__(self, body: ResponsesRequest, model: str, keep: Callable[[Item, Item], None]) -> None:
        self._keep = keep
        self._number = 0
        self._items: list[Item] = []
        self._open: Item | None = None
        self._calls: dict[int, Item] = {}
        self._trace: list[Any] = []
        self._finish: str | None = None
        self._report: dict[str, Any] = {}
        self._response: Item = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata,
            "model": model,
            "output": self._items,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
            "store": body.store,
            "temperature": body.temperature,
            "text": {"format": body.text.format},
            "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
            "tools": body.tools,
            "top_logprobs": body.top_logprobs,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    def whole(self, answer: Mapping[str, Any]) -> Item:
        (choice,) = answer["choices"]
        message = choice["message"]
        delta = {key: message[key] for key in ("reasoning_content", "content") if message.get(key)}
        calls = [{"index": i, **call} for i, call in enumerate(message.get("tool_calls") or [])]
        logprobs = choice.get("logprobs")
        for _ in self.chunk({"choices": [{"delta": {**delta, "tool_calls": calls}, "logprobs": logprobs}]}):
            pass
        for _ in self.chunk({"choices": [{"delta": {}, "finish_reason": choice["finish_reason"]}]}):
            pass
        for _ in self.chunk({"choices": [], "usage": answer["usage"], "waver": answer["waver"]}):
            pass
        return self._response

    def opening(self, prompt_tokens: int) -> Iterator[Event]:
        yield self._event("response.created", response=dict(self._response))
        yield self._event("response.in_progress", response=dict(self._response))

    def chunk(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        for choice in chunk["choices"]:
            yield from self._delta(choice["delta"], (choice.get("logprobs") or {}).get("content") or [])
            self._trace += (choice.get("waver") or {}).get("trace", [])
            if choice.get("finish_reason"):
                self._finish = choice["finish_reason"]
                if not self._items:
                    yield from self._begin("message")
                yield from self._end()
        if not chunk["choices"] and chunk.get("usage"):
            yield self._completed(chunk["usage"], chunk.get("waver") or {})

    def failure(self, error: Mapping[str, Any]) -> Iterator[Event]:
        code = "rate_limit_exceeded" if error.get("type") == "rate_limit_error" else "server_error"
        failed = {"status": "failed", "error": {"code": code, "message": error["message"]}}
        yield self._event("response.failed", response={**self._response, **failed})

    def _delta(self, delta: Mapping[str, Any], logprobs: list[Any]) -> Iterator[Event]:
        if text := delta.get("reasoning_content"):
            yield from self._add("reasoning", text, [])
        if text := delta.get("content"):
            yield from self._add("message", text, logprobs)
        for call in delta.get("tool_calls") or ():
            if call["index"] not in self._calls:
                yield from self._begin("function_call", call)
            item = self._calls[call["index"]]
            if arguments := call["function"].get("arguments"):
                item["arguments"] += arguments
                yield self._event("response.function_call_arguments.delta", item, delta=arguments)

    def _add(self, kind: str, text: str, logprobs: list[Any]) -> Iterator[Event]:
        """Add text to the open item, or to a new one where that is of another kind."""
        if self._open is None or self._open["type"] != kind:
            yield from self._begin(kind)
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += text
        if kind == "reasoning":
            yield self._event("response.reasoning_text.delta", self._open, content_index=0, delta=text)
        else:
            part["logprobs"] += logprobs
            yield self._event("response.output_text.delta", self._open, content_index=0, delta=text, logprobs=logprobs)

    def _begin(self, kind: str, call: Mapping[str, Any] | None = None) -> Iterator[Event]:
        yield from self._end()
        if call is not None:
            item = {"type": kind, "id": new_id("fc"), "call_id": call["id"], "name": call["function"]["name"]}
            item |= {"arguments": "", "status": "in_progress"}
            self._calls[call["index"]] = item
        elif kind == "reasoning":
            part: Item = {"type": "reasoning_text", "text": ""}
            item = {"type": kind, "id": new_id("rs"), "summary": [], "content": [part], "status": "in_progress"}
        else:
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item = {"type": kind, "id": new_id("msg"), "role": "assistant", "content": [part], "status": "in_progress"}
        self._open = item
        self._items.append(item)
        begun = item if call is not None else {**item, "content": []}
        yield self._event("response.output_item.added", output_index=len(self._items) - 1, item=dict(begun))
        if call is None:
            yield self._event("response.content_part.added", item, content_index=0, part=dict(part))

    def _end(self) -> Iterator[Event]:
        """End the open item, if there is one."""
        item, self._open = self._open, None
        if item is None:
            return
        item["status"] = "incomplete" if self._finish in STATUS else "completed"
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", item, **done)
        else:
            (part,) = item["content"]
            if item["type"] == "reasoning":
                yield self._event("response.reasoning_text.done", item, content_index=0, text=part["text"])
            else:
                done = {"text": part["text"], "logprobs": part["logprobs"]}
                yield self._event("response.output_text.done", item, content_index=0, **done)
            yield self._event("response.content_part.done", item, content_index=0, part=dict(part))
        yield self._event("response.output_item.done", output_index=self._items.index(item), item=dict(item))

    def _completed(self, usage: Mapping[str, Any], report: Mapping[str, Any]) -> Event:
        reason = STATUS.get(self._finish or "")
        details = usage.get("completion_tokens_details") or {}
        self._response |= {
            "status": "incomplete" if reason else "completed",
            "incomplete_details": {"reason": reason} if reason else None,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": details.get("reasoning_tokens", 0)},
                "total_tokens": usage["total_tokens"],
            },
            "waver": {**report, **({"trace": self._trace} if self._trace else {})},
        }
        self._keep(self._response, self._as_message())
        return self._event("response.incomplete" if reason else "response.completed", response=self._response)

    def _as_message(self) -> Item:
        """Return the answer as a chat's message."""
        texts: dict[str, str] = {"message": "", "reasoning": ""}
        for item in self._items:
            if item["type"] in texts:
                texts[item["type"]] += item["content"][0]["text"]
        calls = [
            {"id": item["call_id"], "type": "function", "function": {k: item[k] for k in ("name", "arguments")}}
            for item in self._items
            if item["type"] == "function_call"
        ]
        message: Item = {"role": "assistant", "content": texts["message"] or (None if calls else "")}
        if texts["reasoning"]:
            message["reasoning_content"] = texts["reasoning"]
        return message | ({"tool_calls": calls} if calls else {})

    def _event(self, kind: str, item: Item | None = None, /, **fields: Any) -> Event:
        place = {} if item is None else {"item_id": item["id"], "output_index": self._items.index(item)}
        event = {"type": kind, "sequence_number": self._number, **place, **fields}
        self._number += 1
        return event
