"""Find out what an upstream can do, by a few requests for one token each when Waver starts."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import httpx

from waver.engines.base import EngineError, Gate, Sampling, Unsupported, in_full, reason
from waver.engines.pictures import Conversation
from waver.engines.tokens import TokenText
from waver.engines.upstream.client import UpstreamClient
from waver.engines.upstream.conversation import chat
from waver.engines.upstream.parsing import TokenEvent, TokenParser
from waver.engines.upstream.protocol import Retryable
from waver.engines.upstream.request import Capabilities, body, plugin_args

FEWER = (20, 10, 5, 1)
"""Log-probabilities at each position that are tried where the configured number is refused."""
PAUSE = 1.0
"""Seconds between two attempts to reach an upstream that is starting."""
SQUARE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAADgAAAA4CAIAAAAn5KxJAAAAQElEQVR42u3OQQkAAAgAsetfWh+mEAYLsKZeSFRUVFRUVFRUVFRU"
    "VFRUVFRUVFRUVFRUVFRUVFRUVFRUVFRU9CwicjR1t9nCvQAAAABJRU5ErkJggg=="
)
"""A picture: a red square of 56 by 56 pixels."""
ALIKE = 0.05
"""Nats by which a log-probability may differ when the same position is asked about twice."""
LONGEST_ANSWER = 1 << 20
"""Most bytes of an answer of one token."""


@dataclass(frozen=True, slots=True)
class Discovered:
    """The capabilities of an upstream, and its context length in tokens where it says it."""

    capabilities: Capabilities
    context_length: int | None


@dataclass(frozen=True, slots=True)
class _Reply:
    """An answer of one token."""

    tokens: Sequence[TokenEvent]
    traced: bool
    finish: Any
    stop_reason: Any


def discover(upstream: UpstreamClient, tokens: TokenText, parser: TokenParser) -> Discovered:
    """Ask the upstream (blocking), and wait for one that is still starting.

    Raises:
        ValueError: it is not there, or cannot be used; the message says why and what to do.
    """
    with httpx.Client(**upstream.options()) as http:
        return _Discovery(upstream, tokens, parser, http).run()


class _Discovery:
    def __init__(self, upstream: UpstreamClient, tokens: TokenText, parser: TokenParser, http: httpx.Client) -> None:
        self._upstream, self._tokens, self._parser, self._http = upstream, tokens, parser, http
        self._model = upstream.config.model
        self._until = time.monotonic() + upstream.config.wait
        self._ids = tokens.encode("The sea")

    def run(self) -> Discovered:
        capabilities, reply = self._first()
        if capabilities.token_format != "trace":
            self._check_raw(capabilities, reply)
        capabilities = replace(
            capabilities, reports_end=self._reports_end(capabilities), reserved=self._reserved(capabilities)
        )
        if self._upstream.config.pictures:
            self._check_pictures(capabilities)
        lengths = [model.get("max_model_len") for model in self._models() if model.get("id") == self._model]
        return Discovered(capabilities, next((n for n in lengths if isinstance(n, int) and n > 1), None))

    def _models(self) -> list[dict[str, Any]]:
        """List the models that are served there; empty where the upstream has no list."""
        try:
            status, content = self._send("GET", "/models", None)
        except Unsupported:
            return []
        if status != 200:
            return []
        try:
            data = json.loads(content)["data"]
            return [model for model in data if isinstance(model, dict)]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{self._upstream.who} answers, but not as an OpenAI-compatible server does; "
                "`base_url` should end with /v1"
            ) from None

    def _first(self) -> tuple[Capabilities, _Reply]:
        """Try ways to ask, the best one first, until one is not refused."""
        most = self._upstream.config.top_logprobs
        tops = [most, *(k for k in FEWER if k < most)]
        refusal = ""
        for takes_ids, extras, top in itertools.product((True, False), (True, False), tops):
            capabilities = Capabilities(takes_ids, "names", top, extras)
            extra = {"trace": True, "return_tokens_as_token_ids": True} if extras else {}
            try:
                reply = self._ask(capabilities, Sampling(max_tokens=1), **extra)
            except Unsupported as error:
                refusal = in_full(error)
            except LookupError:
                raise ValueError(self._missing()) from None
            else:
                return replace(capabilities, token_format=self._token_format(reply)), reply
        raise ValueError(refusal)

    def _missing(self) -> str:
        """Explain why there is no such endpoint or model."""
        listed = [str(model.get("id")) for model in self._models()]
        if listed and self._model not in listed:
            return f"{self._upstream.who} has no model {self._model!r}; it has {', '.join(map(repr, listed[:10]))}"
        return (
            f"{self._upstream.who} has no /completions for {self._model!r}; a server that can only chat cannot be "
            "used, for Waver hands token ids over"
        )

    def _token_format(self, reply: _Reply) -> Literal["trace", "ids", "names"]:
        """Find out how the upstream reports which tokens it wrote.

        Raises:
            ValueError: it reports no log-probabilities.
        """
        if not reply.tokens or not (reply.traced or reply.tokens[0].top):
            raise ValueError(f"{self._upstream.who} gives no log-probabilities, without which no entropy is known")
        if reply.traced:
            return "trace"
        return "ids" if all(token.name.startswith("token_id:") for token in reply.tokens) else "names"

    def _check_raw(self, capabilities: Capabilities, first: _Reply) -> None:
        """Check that a temperature does not change the reported log-probabilities: the entropy is that of the model's
        own distribution."""
        hot = self._ask(capabilities, Sampling(max_tokens=1, temperature=2.0))
        for one, other in zip(first.tokens[:1], hot.tokens[:1], strict=False):
            pairs = zip(sorted(p for _, p in one.top)[-5:], sorted(p for _, p in other.top)[-5:], strict=False)
            if any(abs(a - b) > ALIKE * max(1.0, -a) for a, b in pairs):
                raise ValueError(
                    f"{self._upstream.who} reports log-probabilities that change with the temperature; the entropy "
                    "needs the model's own (vLLM: --logprobs-mode raw_logprobs; SGLang: "
                    "SGLANG_RETURN_ORIGINAL_LOGPROB=1)"
                )

    def _check_pictures(self, capabilities: Capabilities) -> None:
        """Check that a conversation with a picture is answered, token by token.

        Raises:
            ValueError: it is not.
        """
        parts = [{"type": "image_url", "image_url": {"url": SQUARE}}, {"type": "text", "text": "What is this?"}]
        conversation = Conversation([{"role": "user", "content": parts}])
        plain = body(self._model, self._ids, Sampling(max_tokens=1), self._tokens, capabilities, room=1)
        try:
            reply = self._reply("/chat/completions", chat(plain, conversation, capabilities))
        except (Unsupported, LookupError) as error:
            why = in_full(error) if isinstance(error, Unsupported) else f"{self._upstream.who} has no /chat/completions"
            raise ValueError(f"pictures cannot be sent there: {why}; leave `pictures` out") from None
        if not reply.tokens:
            raise ValueError(f"{self._upstream.who} gives no log-probabilities in a chat; leave `pictures` out")

    def _reports_end(self, capabilities: Capabilities) -> bool:
        """Find out whether the token that ends an answer is reported, by a bias that makes it come at once."""
        if not self._tokens.eos_ids:
            return True
        end = self._tokens.eos_ids[0]
        try:
            reply = self._ask(capabilities, Sampling(max_tokens=1, temperature=0.0, logit_bias={end: 100.0}))
        except Unsupported:
            return False
        return reply.finish == "stop" and bool(reply.tokens) and reply.tokens[-1].token == end

    def _reserved(self, capabilities: Capabilities) -> int | None:
        """Find the token with which Waver's plugin ends a request, by a gate that fires at once."""
        wanted = self._upstream.config.plugin
        if wanted is False or (capabilities.token_format, capabilities.takes_ids) != ("ids", True):
            reply = None
        else:
            try:
                gate = plugin_args(Gate(window=1, threshold=0.0))
                reply = self._ask(capabilities, Sampling(max_tokens=1), vllm_xargs=gate)
            except Unsupported as error:
                if wanted is True:
                    raise ValueError(in_full(error)) from None
                reply = None
        if reply and reply.finish == "stop" and isinstance(reply.stop_reason, int):
            return reply.stop_reason
        if wanted is True:
            raise ValueError(
                f"{self._upstream.who} does not run Waver's plugin for vLLM; install waver-llm there, or leave "
                "`plugin` out"
            )
        return None

    def _ask(self, capabilities: Capabilities, sampling: Sampling, **extra: Any) -> _Reply:
        """Ask for one token.

        Raises:
            Unsupported: it is refused. LookupError: there is no such endpoint or model. ValueError: it failed.
        """
        content = body(self._model, self._ids, sampling, self._tokens, capabilities, room=1) | extra
        return self._reply("/completions", content)

    def _reply(self, path: str, content: dict[str, Any]) -> _Reply:
        """Send a request for one token; raises as `_ask`."""
        status, answer = self._send("POST", path, content)
        if status != 200:
            raise LookupError
        try:
            events = [self._upstream.protocol.event(line) for line in answer.splitlines()]
            choices = [choice for event in events for choice in event or () if "usage" not in choice]
            tokens = [token for choice in choices for token in self._parser.choice(choice)]
        except EngineError as error:
            raise ValueError(in_full(error)) from error
        last = choices[-1] if choices else {}
        return _Reply(
            tokens, any(choice.get("waver") for choice in choices), last.get("finish_reason"), last.get("stop_reason")
        )

    def _send(self, method: str, path: str, content: Any) -> tuple[int, bytes]:
        """Send a request, again while the upstream is starting; status (200, 404, 405 or 501) and content."""
        while True:
            try:
                with self._http.stream(method, self._upstream.url + path, json=content) as response:
                    status, answer = response.status_code, b"".join(_bounded(response))
                if status in (200, 404, 405, 501):
                    return status, answer
                raise self._upstream.protocol.failure(response, answer)
            except Retryable as again:
                failure = str(again)
            except httpx.TransportError as error:
                failure = f"{self._upstream.who} cannot be reached: {reason(error)}"
            except EngineError as error:
                raise ValueError(in_full(error)) from None
            if time.monotonic() + PAUSE > self._until:
                raise ValueError(f"{failure} (waited {self._upstream.config.wait:g} s; see `wait`)")
            time.sleep(PAUSE)


def _bounded(response: httpx.Response) -> Iterator[bytes]:
    """Read a response up to `LONGEST_ANSWER` bytes."""
    length = 0
    for part in response.iter_bytes():
        length += len(part)
        yield part
        if length > LONGEST_ANSWER:
            return
