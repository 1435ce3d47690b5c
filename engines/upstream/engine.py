"""The upstream engine: a model behind an OpenAI-compatible server, used through `POST /completions`.

Token ids go there, and token ids come back with the log-probabilities of the likeliest tokens; these bound the entropy.
(Another Waver gives exact entropies.) A gate runs in the upstream where that is a vLLM with Waver's plugin, else here:
the stream is closed when it fires. A conversation with pictures goes to `POST /chat/completions` as it is
(`waver.engines.upstream.conversation`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig

from waver.engines.base import (
    ContextExceeded,
    EngineError,
    Inside,
    Sampling,
    Step,
    Unsupported,
    reason,
    without_pictures,
)
from waver.engines.config import UpstreamConfig
from waver.engines.tokens import TokenText
from waver.engines.upstream.client import DRAIN
from waver.engines.upstream.conversation import Told, chat, refuse_pictures
from waver.engines.upstream.discovery import discover
from waver.engines.upstream.parsing import TokenParser
from waver.engines.upstream.replicas import Replicas
from waver.engines.upstream.request import TOKEN_FIELDS, body, prompt, refuse
from waver.engines.upstream.segment import Segment
from waver.engines.weights import parameter_count_in_name


class UpstreamEngine:
    """One model of an upstream. Implements `waver.engines.base.Engine`.

    Raises:
        ValueError: the upstream is not there or cannot be used, or the configuration leaves something open.
    """

    def __init__(self, name: str, config: UpstreamConfig) -> None:
        self.name = name
        self.forwards_pictures = config.pictures
        self._model = config.model
        try:
            self.tokens = load_tokenizer(config)
            self.parameters = config.parameters or parameter_count_in_name(config.model)
            self._client = Replicas(name, config)
            self._parser = TokenParser(self._client.who, self.tokens)
            found = discover(self._client.first, self.tokens, self._parser)
            if found.context_length is None and config.context_length is None:
                raise ValueError(f"{self._client.who} does not tell how long its context is; set `context_length`")
        except ValueError as error:
            raise ValueError(f"engine {name!r} at {config.base_url}: {error}") from error
        self.capabilities = found.capabilities
        self.keeps_text = found.capabilities.token_format == "trace"  # another Waver
        lengths = [n for n in (config.context_length, found.context_length) if n is not None]
        self.context_length = min(lengths)
        self._active = 0

    @property
    def active(self) -> int:
        return self._active

    @property
    def alive(self) -> bool:
        return self._client.alive

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        self._check(prompt_ids, room=1)
        begun = sampling.answer_start is not None and sampling.answer_start < len(prompt_ids)
        self._check_pictures(sampling, begun)
        room = self.context_length - len(prompt_ids)
        request = body(self._model, prompt_ids, sampling, self.tokens, self.capabilities, room)
        if sampling.conversation is not None:
            request = chat(request, sampling.conversation, self.capabilities)
        told = Told(self._client.who)
        segment = Segment(
            self.name, prompt_ids, sampling, self.tokens, self.capabilities, self._parser, self.context_length
        )
        self._active += 1
        try:
            async with aclosing(self._client.stream(request, begun)) as choices:
                async for choice in choices:
                    told.take(choice)
                    steps = segment.take(choice)
                    if steps and steps[-1].finish in ("stop", "length"):
                        await _drain(choices, told)
                    for step in told.on(steps):
                        yield step
                    if steps and steps[-1].finish:
                        return
            raise EngineError(f"{self._client.who} ended its answer in the middle")
        finally:
            self._active -= 1

    def check(self, sampling: Sampling, begun: bool) -> None:
        if self._client.closed:
            raise EngineError(f"engine {self.name!r} is closed")
        self._check_pictures(sampling, begun)
        refuse(sampling, self.capabilities, int(begun))

    def _check_pictures(self, sampling: Sampling, begun: bool) -> None:
        """Refuse pictures where the model takes none, and where they cannot be sent on.

        Raises:
            Unsupported: there are such.
        """
        if self.forwards_pictures and sampling.pictures:
            refuse_pictures(sampling, begun)
            sampling = replace(sampling, pictures=())
        without_pictures(self.name, sampling)

    async def score(self, ids: Sequence[int], top_logprobs: int = 0) -> list[Step]:
        self._check(ids)
        impossible = Unsupported(
            "this engine's upstream does not score a given text, so logprobs cannot be echoed", "echo"
        )
        if top_logprobs > self.capabilities.top:
            raise Unsupported(
                f"this engine's upstream gives at most {self.capabilities.top} top log-probabilities", "logprobs"
            )
        if len(ids) < 2:
            return []
        request = {
            "model": self._model,
            "prompt": prompt(ids, self.tokens, self.capabilities),
            "echo": True,
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": self.capabilities.top,
            **(TOKEN_FIELDS["ids"] if self.capabilities.token_format == "ids" else {}),
        }
        self._active += 1
        try:
            answer = await self._client.ask(request)
        except Unsupported as error:
            raise impossible from error
        finally:
            self._active -= 1
        choices = answer.get("choices")
        events = self._parser.choice(choices[0]) if isinstance(choices, list) and choices else []
        if len(events) < len(ids):
            raise impossible
        return [
            self._parser.measure(event, Step(token, event.logprob, 0.0, self.name), top_logprobs)
            for token, event in list(zip(ids, events, strict=False))[1:]
        ]

    @property
    def exposes(self) -> frozenset[Inside]:
        return frozenset()

    async def hidden_state(self, ids: Sequence[int], depth: float | None = None) -> torch.Tensor:
        raise Unsupported(f"{self.name!r} is an upstream, which does not give away hidden states; use another engine")

    async def attention(self, ids: Sequence[int], start: int) -> torch.Tensor:
        raise Unsupported(
            f"{self.name!r} is an upstream, which does not give away attention weights; use another engine"
        )

    def embedding_matrix(self) -> torch.Tensor:
        raise Unsupported(f"{self.name!r} is an upstream, which does not give away its embeddings; use another engine")

    def _check(self, ids: Sequence[int], room: int = 0) -> None:
        if self._client.closed:
            raise EngineError(f"engine {self.name!r} is closed")
        if not ids:
            raise Unsupported("the prompt is empty", "prompt")
        if len(ids) + room > self.context_length:
            raise ContextExceeded(self.context_length, f"the prompt has {len(ids)} tokens")

    async def aclose(self) -> None:
        await self._client.aclose()


async def _drain(choices: AsyncGenerator[Mapping[str, Any], None], told: Told) -> None:
    """Let the upstream end a stream whose last token has come, so that the connection can be used again."""
    with suppress(TimeoutError, EngineError):
        async with asyncio.timeout(DRAIN):
            async for choice in choices:
                told.take(choice, ending=False)


def load_tokenizer(config: UpstreamConfig) -> TokenText:
    """Load the tokenizer, and the tokens that end an answer where the model's directory or hub page names them.

    Raises:
        ValueError: it cannot be loaded.
    """
    source = config.tokenizer or config.model
    try:
        ends = GenerationConfig.from_pretrained(source).eos_token_id
    except (OSError, ValueError):
        ends = None
    try:
        return TokenText.load(source, ends)
    except Exception as error:  # transformers and the tokenizers each raise their own kinds
        raise ValueError(
            f"cannot load the tokenizer {source!r}: {reason(error)}; set `tokenizer` to a directory or hub id"
        ) from error
