"""Run a plan and return a stream or a single object, for chat and text completions alike.

A `Formatter` builds the objects of an endpoint; this module decides their order in a stream.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from fastapi import Request, Response

from waver.engines.base import Step
from waver.policies.report import Report, total
from waver.server.assembly import Piece, Reason, Token
from waver.server.decoding import Decoding
from waver.server.disconnect import CLIENT_GONE, ClientGone, while_connected
from waver.server.errors import from_exception
from waver.server.fields import ignored_header
from waver.server.logprobs import trace_entry
from waver.server.message.parts import Content, Message
from waver.server.piecewise import Listed, PiecewiseResponse, pieces
from waver.server.planned import Plan
from waver.server.runtime import Runtime
from waver.server.schemas import Generation
from waver.server.sse import EventStream, NamedEventStream, dump
from waver.server.translation import Translation, translated

log = structlog.get_logger("waver")

SETTLE = (0.1, 12.0)
"""Seconds, at least and at most, that a stream's headers wait for its first token, so that a failure before it can be
an HTTP status: longer than an upstream is tried again for, and no longer than a stream may be silent (`keepalive`)."""
INLINE_BYTES = 64 * 2**10
"""Bytes of a response that is translated on the event loop."""
INLINE = 2048
"""Tokens and log-probabilities of an answer that is put together on the event loop, in a few milliseconds."""


@dataclass
class FinishedChoice:
    """A finished choice, assembled from its pieces."""

    index: int
    texts: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    traced: list[Step] = field(default_factory=list)
    message: Message = field(default_factory=Message)
    finish: Reason | None = None
    ended_by: Token | None = None
    stop_reason: str | int | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.message.add((Content(piece.text),) if piece.parts is None else piece.parts)
        self.tokens += piece.tokens
        self.traced += piece.traced
        self.finish = piece.finish or self.finish
        self.ended_by = piece.ended_by or self.ended_by
        self.stop_reason = piece.stop_reason if piece.finish else self.stop_reason


class Formatter(Protocol):
    """Builder of the response objects of one endpoint."""

    prefix: str
    whole: str
    chunk: str
    one_prompt: bool
    """True if all choices have one prompt, which is shown once."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the first object of a choice's stream, or None."""

    def part(self, piece: Piece) -> dict[str, Any]:
        """Return the entry of `choices` for a piece, in a chunk of a stream."""

    def complete(self, choice: FinishedChoice) -> dict[str, Any]:
        """Return the entry of `choices` for a finished choice."""


class Answer:
    """The response to one completion request."""

    def __init__(
        self, body: Generation, plan: Plan, formatter: Formatter, runtime: Runtime, ignored: Sequence[str] = ()
    ) -> None:
        """Begin nothing yet; `ignored` are the fields of the request that change nothing."""
        self.body = body
        self.plan = plan
        self.formatter = formatter
        self.runtime = runtime
        self._traced = trace_entry(runtime.engines[plan.route.engine].tokens)
        self.ignored = list(ignored)
        self._opened: set[int] = set()
        self.decoding = Decoding(plan, runtime)
        self.head = {
            "id": f"{formatter.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": plan.route.model,
            "object": formatter.chunk if body.stream else formatter.whole,
            "system_fingerprint": runtime.fingerprint,
        }

    async def respond(self, request: Request, translation: Translation | None = None) -> Response:
        """Run the plan and answer, in another protocol where there is a translation into it.

        Raises:
            Exception: what went wrong before an answer was begun.
        """
        request.scope["log"].update(model=self.plan.route.model, policy=self.plan.route.label)
        if self.ignored:
            log.warning("unknown fields are ignored", fields=self.ignored)
        headers = {"x-waver-policy": self.plan.route.label, **ignored_header(self.ignored)}
        self.decoding.start()
        try:
            if not self.body.stream:
                content = await while_connected(request, self._whole())
                await self._close(request)
                if translation is not None:
                    content = await self._translated(content, translation)
                return PiecewiseResponse(content, headers=headers)
            await while_connected(request, self.decoding.settle(self._settle_time))
            keepalive = self.runtime.config.server.keepalive
            if translation is None:
                return EventStream(self._events(request), headers, keepalive)
            events = translated(self._events(request), translation, self.decoding.plan.prompt_tokens)
            return NamedEventStream(events, headers, keepalive)
        except ClientGone:
            await self._close(request)
            return Response(status_code=CLIENT_GONE)
        except BaseException as error:
            await self._close(request)
            if not isinstance(error, Exception):
                raise
            raise from_exception(error, work_spent=self.decoding.completion_tokens > 0) from error

    @property
    def _settle_time(self) -> float:
        least, most = SETTLE
        return max(least, min(most, self.runtime.config.server.keepalive))

    async def _close(self, request: Request) -> None:
        request.scope["log"].update(tokens=total(self.decoding.reports).tokens)
        await self.decoding.aclose()

    async def _whole(self) -> bytes:
        choices = [FinishedChoice(index) for index in range(self.plan.choices)]
        async for batch in self.decoding.batches():
            for piece in batch:
                choices[piece.index].add(piece)
        if sum(len(choice.tokens) for choice in choices) * (1 + self.plan.sampling.top_logprobs) < INLINE:
            return b"".join(self._written(choices))
        return await self.runtime.shaping.run(lambda: b"".join(self._written(choices)))

    async def _translated(self, content: bytes, translation: Translation) -> bytes:
        """Translate a whole response, in the pool where it is long."""

        def work() -> bytes:
            return dump(translation.whole(json.loads(content)))

        return work() if len(content) < INLINE_BYTES else await self.runtime.shaping.run(work)

    def _written(self, choices: list[FinishedChoice]) -> Iterator[bytes]:
        """Yield the response as JSON, in which what can be long is made while it is written."""
        reports = self.decoding.reports
        several = len(choices) > 1
        if self.body.return_token_ids and self.formatter.one_prompt:
            self.head["prompt_token_ids"] = list(self.plan.prompts[0].ids)
        yield dump(self.head)[:-1] + b',"choices":['
        for i, (choice, own) in enumerate(zip(choices, reports, strict=True)):
            shown = self.formatter.complete(choice) | {"stop_reason": choice.stop_reason}
            if self.body.return_token_ids:
                shown["token_ids"] = [step.token for step in choice.traced]
                if not self.formatter.one_prompt:
                    shown["prompt_token_ids"] = list(self.plan.prompt_of(i).ids)
            if several:
                shown["waver"] = own.as_dict() | self._trace(Listed(choice.traced, self._traced))
            yield b"," if i else b""
            yield from pieces(shown, depth=2)  # as deep as it stands in the whole
        traced = {} if several else self._trace(Listed(choices[0].traced, self._traced))
        report = self._report(total(reports)) | traced
        rest = pieces({"usage": self._usage(), "waver": report})
        yield b"]," + next(rest)[1:]
        yield from rest

    async def _events(self, request: Request) -> AsyncGenerator[list[dict[str, Any]], None]:
        events = list(self._openings())
        try:
            async for batch in self.decoding.batches():
                events += [self._chunk(piece) for piece in batch if self._shows(piece)]
                if events:
                    yield events
                events = []
            if self.body.stream_options.include_usage:
                report = self._report(total(self.decoding.reports))
                yield [{**self.head, "choices": [], "usage": self._usage(), "waver": report}]
        except Exception as error:
            answer = from_exception(error)
            request.scope["log"].update(error=answer.code, status=answer.status)
            yield [answer.body]
        finally:
            await self._close(request)

    def _shows(self, piece: Piece) -> bool:
        listed = (self.body.trace or self.body.return_token_ids) and piece.traced
        if piece.parts is not None and not piece.parts and not self.plan.logprobs:
            return bool(listed)
        return bool(piece.finish or piece.text or piece.tokens or piece.parts or listed)

    def _openings(self) -> Iterator[dict[str, Any]]:
        # All of them before anything else: the SDK wants new indices in ascending order.
        for index in range(self.plan.choices):
            if opening := self.formatter.opening(index):
                yield {**self.head, "choices": [opening], **self._running_usage()}

    def _chunk(self, piece: Piece) -> dict[str, Any]:
        choice = self.formatter.part(piece)
        chunk = {**self.head, "choices": [choice], **self._running_usage()}
        own = self._trace(list(map(self._traced, piece.traced))) if piece.traced else {}
        if piece.finish:
            choice["stop_reason"] = piece.stop_reason
            chunk["waver"] = self._report(self.decoding.reports[piece.index])
            if self.plan.choices > 1:
                own = chunk["waver"] | own
        if own:
            choice["waver"] = own
        if self.body.return_token_ids:
            choice["token_ids"] = [step.token for step in piece.traced]
            if piece.index not in self._opened:
                self._opened.add(piece.index)
                ids = list(self.plan.prompt_of(piece.index).ids)
                (chunk if self.formatter.one_prompt else choice)["prompt_token_ids"] = ids
        return chunk

    def _report(self, report: Report) -> dict[str, Any]:
        """Return a report with the names of what was ignored."""
        return report.as_dict() | ({"ignored": self.ignored} if self.ignored else {})

    def _trace(self, entries: list[dict[str, Any]] | Listed) -> dict[str, Any]:
        return {"trace": entries} if self.body.trace else {}

    def _usage(self) -> dict[str, Any]:
        prompt, completion = self.decoding.plan.prompt_tokens, self.decoding.completion_tokens
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        if self.plan.message is not None and self.plan.message.reasoning is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.decoding.reasoning_tokens}
        return usage

    def _running_usage(self) -> dict[str, Any]:
        options = self.body.stream_options
        if not options.include_usage:
            return {}
        return {"usage": self._usage() if options.continuous_usage_stats else None}
