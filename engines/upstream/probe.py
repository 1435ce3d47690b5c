"""What an upstream can do, found out by asking it: a handful of requests for one token each, when Waver starts."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from waver.engines.base import EngineError, Gate, Sampling, Unsupported, reason
from waver.engines.tokens import TokenText
from waver.engines.upstream.link import Link
from waver.engines.upstream.protocol import Again
from waver.engines.upstream.reading import Heard, Reader
from waver.engines.upstream.request import Abilities, body, wishes

FEWER = (20, 10, 5, 1)
"""Log-probabilities at each position that are tried where the configured number is refused."""
PAUSE = 1.0
"""Seconds between two looks at an upstream that is starting."""
ALIKE = 0.05
"""Nats by which a log-probability may differ when the same position is asked about twice."""
LONGEST_ANSWER = 1 << 20
"""Bytes of an answer of one token."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found. `context_length` where the upstream says it."""

    able: Abilities
    context_length: int | None


@dataclass(frozen=True, slots=True)
class _Said:
    """An answer of one token."""

    tokens: Sequence[Heard]
    traced: bool
    finish: Any
    stop_reason: Any


def probe(link: Link, tokens: TokenText, reader: Reader) -> Found:
    """Ask (blocking), with patience for an upstream that is still starting.

    Raises:
        ValueError: it is not there, or cannot be used; the message says why and what to do.
    """
    with httpx.Client(**link.options()) as client:
        return _Probe(link, tokens, reader, client).run()


class _Probe:
    def __init__(self, link: Link, tokens: TokenText, reader: Reader, client: httpx.Client) -> None:
        self._link, self._tokens, self._reader, self._client = link, tokens, reader, client
        self._model = link.config.model
        self._until = time.monotonic() + link.config.wait
        self._ids = tokens.encode("The sea")

    def run(self) -> Found:
        able, said = self._first()
        if able.told != "trace":
            self._check_raw(able, said)
        able = replace(able, tells_end=self._tells_end(able), reserved=self._reserved(able))
        lengths = [model.get("max_model_len") for model in self._models() if model.get("id") == self._model]
        return Found(able, next((n for n in lengths if isinstance(n, int) and n > 1), None))

    def _models(self) -> list[dict[str, Any]]:
        """What is served there; nothing where the upstream has no list."""
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
                f"{self._link.who} answers, but not as an OpenAI-compatible server does; `base_url` should end with /v1"
            ) from None

    def _first(self) -> tuple[Abilities, _Said]:
        """The first way to ask that is not refused, the best one first."""
        most = self._link.config.top_logprobs
        tops = [most, *(k for k in FEWER if k < most)]
        refusal = ""
        for ids_in, extras, top in itertools.product((True, False), (True, False), tops):
            able = Abilities(ids_in, "names", top, extras)
            extra = {"trace": True, "return_tokens_as_token_ids": True} if extras else {}
            try:
                said = self._ask(able, Sampling(max_tokens=1), **extra)
            except Unsupported as error:
                refusal = str(error)
                continue
            except LookupError:
                listed = [str(model.get("id")) for model in self._models()]
                if listed and self._model not in listed:
                    raise ValueError(
                        f"{self._link.who} has no model {self._model!r}; it has {', '.join(map(repr, listed[:10]))}"
                    ) from None
                raise ValueError(
                    f"{self._link.who} has no /completions for {self._model!r}; a server that can only chat cannot be "
                    "used, for Waver hands token ids over"
                ) from None
            if not said.tokens or not (said.traced or said.tokens[0].top):
                raise ValueError(f"{self._link.who} gives no log-probabilities, without which no entropy is known")
            known = all(name.startswith("token_id:") for name in (token.name for token in said.tokens))
            return replace(able, told="trace" if said.traced else "ids" if known else "names"), said
        raise ValueError(refusal)

    def _check_raw(self, able: Abilities, first: _Said) -> None:
        """The entropy is that of the model's own distribution, so a temperature must not change what is reported."""
        hot = self._ask(able, Sampling(max_tokens=1, temperature=2.0))
        for one, other in zip(first.tokens[:1], hot.tokens[:1], strict=False):
            pairs = zip(sorted(p for _, p in one.top)[-5:], sorted(p for _, p in other.top)[-5:], strict=False)
            if any(abs(a - b) > ALIKE * max(1.0, -a) for a, b in pairs):
                raise ValueError(
                    f"{self._link.who} reports log-probabilities that change with the temperature; the entropy needs "
                    "the model's own (vLLM: --logprobs-mode raw_logprobs; SGLang: SGLANG_RETURN_ORIGINAL_LOGPROB=1)"
                )

    def _tells_end(self, able: Abilities) -> bool:
        """Whether the token that ends an answer is reported: it is made to come at once."""
        if not self._tokens.eos_ids:
            return True
        end = self._tokens.eos_ids[0]
        try:
            said = self._ask(able, Sampling(max_tokens=1, temperature=0.0, logit_bias={end: 100.0}))
        except Unsupported:
            return False
        return said.finish == "stop" and bool(said.tokens) and said.tokens[-1].token == end

    def _reserved(self, able: Abilities) -> int | None:
        """The token with which Waver's plugin ends a request: a gate that fires at once brings it about."""
        wanted = self._link.config.plugin
        if wanted is False or (able.told, able.ids_in) != ("ids", True):
            said = None
        else:
            try:
                gate = wishes(Gate(window=1, threshold=0.0))
                said = self._ask(able, Sampling(max_tokens=1), vllm_xargs=gate)
            except Unsupported as error:
                if wanted is True:
                    raise ValueError(str(error)) from None
                said = None
        if said and said.finish == "stop" and isinstance(said.stop_reason, int):
            return said.stop_reason
        if wanted is True:
            raise ValueError(
                f"{self._link.who} does not run Waver's plugin for vLLM; install waver there, or leave `plugin` out"
            )
        return None

    def _ask(self, able: Abilities, sampling: Sampling, **extra: Any) -> _Said:
        """Raises:
        Unsupported: it is refused. LookupError: there is no such thing. ValueError: it failed."""
        content = body(self._model, self._ids, sampling, self._tokens, able, room=1) | extra
        status, answer = self._send("POST", "/completions", content)
        if status != 200:
            raise LookupError
        try:
            events = [self._link.protocol.event(line) for line in answer.splitlines()]
            choices = [choice for event in events for choice in event or ()]
            tokens = [token for choice in choices for token in self._reader.choice(choice)]
        except EngineError as error:
            raise ValueError(str(error)) from error
        last = choices[-1] if choices else {}
        return _Said(
            tokens, any(choice.get("waver") for choice in choices), last.get("finish_reason"), last.get("stop_reason")
        )

    def _send(self, method: str, path: str, content: Any) -> tuple[int, bytes]:
        """Status and content: 200, or 404 and its kin."""
        while True:
            try:
                with self._client.stream(method, self._link.url + path, json=content) as response:
                    status, answer = response.status_code, b"".join(_bounded(response))
                if status in (200, 404, 405, 501):
                    return status, answer
                raise self._link.protocol.failure(response, answer)
            except Again as again:
                failure = str(again)
            except httpx.TransportError as error:
                failure = f"{self._link.who} cannot be reached: {reason(error)}"
            except EngineError as error:
                raise ValueError(str(error)) from None
            if time.monotonic() + PAUSE > self._until:
                raise ValueError(f"{failure} (waited {self._link.config.wait:g} s; see `wait`)")
            time.sleep(PAUSE)


def _bounded(response: httpx.Response) -> Iterator[bytes]:
    length = 0
    for part in response.iter_bytes():
        length += len(part)
        yield part
        if length > LONGEST_ANSWER:
            return
