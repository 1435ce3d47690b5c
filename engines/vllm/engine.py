"""The base of the two vLLM engines: requests to vLLM, refusals, and scores of prompts.

`waver.engines.vllm.exact` measures exact entropies in vLLM's worker; `waver.engines.vllm.speculative` serves a vLLM
that decodes speculatively, and bounds them.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from prometheus_client.core import Metric

from waver.engines.base import (
    ContextExceeded,
    EngineError,
    Inside,
    Sampling,
    Step,
    Unsupported,
    not_a_number,
    reason,
    without_pictures,
)
from waver.engines.pictures import Picture
from waver.engines.salt import current_salt
from waver.engines.vision import image
from waver.engines.vllm.core import Running
from waver.engines.vllm.model import VllmModel
from waver.engines.vllm.ring import TOP
from waver.engines.weights import input_embeddings
from waver.entropy import entropy_bounds

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

FIRST, NEXT = 0, -1
"""Priorities (lower goes first): a new answer, and one that has begun."""


class VllmEngine(ABC):
    """Implements `waver.engines.base.Engine`, up to how an answer is decoded.

    Args:
        model: shared by the engine of the model itself and those of its adapters.
        adapter: a LoRA adapter that `model` has loaded; None for the model itself.
    """

    def __init__(self, name: str, model: VllmModel, adapter: LoRARequest | None = None) -> None:
        self.name = name
        self.model = model
        self.tokens = model.tokens
        self.vocabulary, self.context_length, self.parameters = model.vocabulary, model.context_length, model.parameters
        self.recommended = model.recommended
        self.vision = model.vision
        self._adapter = adapter
        self._active = 0

    async def with_adapter(self, name: str, adapter: str) -> Self:
        """Make an engine of the same model with a LoRA adapter (a directory, or a hub id), in the same processes.

        Raises:
            ValueError: vLLM does not load it; the message says why.
        """
        return type(self)(name, self.model, await self.model.add_adapter(name, adapter))

    @property
    def active(self) -> int:
        return self._active

    @property
    def alive(self) -> bool:
        return self.model.core.running is not None

    @property
    def restarts(self) -> int:
        """The number of times that the engine was started again."""
        return self.model.core.restarts

    def collect(self) -> Iterable[Metric]:
        """Collect vLLM's own metrics, where `disable_log_stats: false` is among the arguments; an adapter has those of
        its model, and gives none."""
        running = self.model.core.running
        return () if running is None or running.stats is None or self._adapter else running.stats.collect()

    def check(self, sampling: Sampling, begun: bool) -> None:
        self._running()
        self._check_pictures(sampling)
        self._check_sampled(sampling)
        self._check_supported(sampling, begun)

    @abstractmethod
    def _check_supported(self, sampling: Sampling, begun: bool) -> None:
        """Raise `Unsupported` for what this way of decoding cannot do."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        self._check_prompt(prompt_ids, room=1)
        self._check_pictures(sampling)
        if self.vision is not None:
            self.vision.check(prompt_ids[: sampling.answer_start], sampling.pictures)
        self._check_sampled(sampling)
        await self._prepare(prompt_ids, sampling)
        with self._counted():
            async with self.model.room, aclosing(self._decode(self._running(), list(prompt_ids), sampling)) as steps:
                async for step in steps:
                    yield step

    def _check_pictures(self, sampling: Sampling) -> None:
        """Refuse pictures where the model takes none, and that some of their tokens be dropped.

        Raises:
            Unsupported: there are such.
        """
        without_pictures(self.name, replace(sampling, pictures=()) if self.vision is not None else sampling)

    @abstractmethod
    async def _prepare(self, ids: Sequence[int], sampling: Sampling) -> None:
        """Raise `Unsupported`, before the request is sent, for what would fail in vLLM's worker."""

    @abstractmethod
    def _decode(self, running: Running, ids: list[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        """Yield the steps of an answer, or of a segment of one."""

    async def warm_up(self, running: Running) -> None:
        """Let an engine that was started again compile what its first request would wait for."""
        sampling = Sampling(max_tokens=2, top_logprobs=1)
        ids = self.tokens.encode("Hello")[:16]
        async with self.model.room, aclosing(self._decode(running, ids, sampling)) as steps:
            async for _ in steps:
                pass

    async def score(self, ids: Sequence[int], top_logprobs: int = 0) -> list[Step]:
        """Measure given tokens, as `Engine.score`.

        Raises:
            EngineError: the engine is dead. Unsupported: the ids are none of this model's.
        """
        self._check_prompt(ids)
        return await self._score(self._running(), ids, top_logprobs) if len(ids) > 1 else []

    async def _score(self, running: Running, ids: Sequence[int], top_logprobs: int) -> list[Step]:
        """Measure a text with bounded entropies, from vLLM's own log-probabilities of a prompt. The first such request
        compiles for a while."""
        from vllm import SamplingParams

        # vLLM has to generate one token, too.
        room = len(ids) < self.context_length
        given = list(ids) if room else list(ids[:-1])
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=TOP, detokenize=False, skip_clone=True)
        with self._counted():
            async with self.model.room:
                outputs = [output async for output in self._outputs(running, given, params)]
        known = outputs[-1].prompt_logprobs
        return [self._bounded(token, at, top_logprobs) for token, at in zip(given[1:], known[1:], strict=True)]

    def _bounded(self, token: int, known: Any, top: int) -> Step:
        """Make a step from vLLM's own log-probabilities, its entropy bounded by the likeliest tokens."""
        if math.isnan(known[token].logprob):
            raise not_a_number(self.name)
        best = sorted(((i, each.logprob) for i, each in known.items()), key=lambda pair: -pair[1])[:TOP]
        low, high = entropy_bounds(torch.tensor([value for _, value in best]), self.model.known)
        bounds = float(low), float(high)
        return Step(token, known[token].logprob, sum(bounds) / 2, self.name, tuple(best[:top]), entropy_bounds=bounds)

    async def _outputs(
        self, running: Running, ids: list[int], params: Any, begun: bool = False, pictures: Sequence[Picture] = ()
    ) -> AsyncGenerator[Any, None]:
        """Yield vLLM's outputs for a request; closing the generator aborts it.

        Raises:
            EngineError: the engine died. Unsupported: vLLM refuses the request, or reads its pictures as other tokens.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self.model.core.attach()
        priority = NEXT if begun and running.llm.scheduler_config.policy == "priority" else FIRST
        name = f"{self.name}-{self.model.next_number()}"
        prompt = await self._prompt(running, ids, pictures)
        answer = running.llm.generate(prompt, params, name, lora_request=self._adapter, priority=priority)
        try:
            async with aclosing(answer) as outputs:
                async for output in outputs:
                    if pictures and list(output.prompt_token_ids or ids) != ids:
                        raise Unsupported(
                            f"vLLM reads the pictures as other tokens than {self.name!r} does", "messages"
                        )
                    pictures = ()
                    yield output
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineError(f"engine {self.name!r} died while it was at work; it is being started again") from error
        except VLLMClientError as error:
            raise Unsupported(f"vLLM refuses the request: {error}") from error

    async def _prompt(self, running: Running, ids: list[int], pictures: Sequence[Picture]) -> Any:
        """Make a prompt for vLLM, which puts the tokens of pictures in their places itself, in a thread of its own.

        Raises:
            Unsupported: it refuses a picture.
        """
        from vllm.inputs import TokensPrompt, tokens_input

        if not pictures or self.vision is None:
            return tokens_input(ids, cache_salt=current_salt() or None)
        images = [image(picture) for picture in pictures]
        placeholders = self.vision.collapse(ids, pictures)
        given = TokensPrompt(prompt_token_ids=placeholders, multi_modal_data={"image": images})
        if salt := current_salt():
            given["cache_salt"] = salt
        try:
            (made,) = await running.llm.renderer.render_cmpl_async([given])
        except ValueError as error:
            raise Unsupported(f"vLLM refuses a picture: {reason(error)}", "messages") from error
        return made

    @property
    def exposes(self) -> frozenset[Inside]:
        return frozenset()

    @abstractmethod
    async def hidden_state(self, ids: Sequence[int], depth: float | None = None) -> torch.Tensor:
        """Compute the hidden state at the last token, as `Engine.hidden_state`."""

    async def attention(self, ids: Sequence[int], start: int) -> torch.Tensor:
        """Refuse: vLLM's kernels never materialise attention weights.

        Raises:
            Unsupported: always.
        """
        raise Unsupported(f"engine {self.name!r} runs under vLLM, which does not hand out attention weights", "policy")

    def embedding_matrix(self) -> torch.Tensor:
        return input_embeddings(self.model.config.model, self.model.revision)

    async def aclose(self) -> None:
        if self._adapter is None:  # an adapter goes with its model
            await asyncio.to_thread(self.model.core.close)

    def _running(self) -> Running:
        return self.model.running(self.name)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1

    def _ends(self, sampling: Sampling) -> tuple[int, ...]:
        """Collect the tokens that end the answer."""
        return (*(() if sampling.ignore_eos else self.tokens.eos_ids), *sampling.stop_token_ids)

    def _limit(self, sampling: Sampling, length: int, start: int) -> int:
        """Compute the most tokens to generate behind `length` ids, of which those from `start` on are the answer's."""
        return min(sampling.max_tokens - (length - start), self.context_length - length)

    def _check_prompt(self, ids: Sequence[int], room: int = 0) -> None:
        if not ids:
            raise Unsupported("the prompt is empty", "prompt")
        if len(ids) + room > self.context_length:
            raise ContextExceeded(self.context_length, f"the prompt has {len(ids)} tokens")
        self._check_known(ids, "prompt")

    def _check_sampled(self, sampling: Sampling) -> None:
        self._check_known(tuple(sampling.logit_bias), "logit_bias")
        self._check_known(sampling.stop_token_ids, "stop_token_ids")
        self._check_known(sampling.allowed_token_ids, "allowed_token_ids")

    def _check_known(self, ids: Sequence[int], param: str) -> None:
        known = self.model.known
        if ids and not 0 <= min(ids) <= max(ids) < known:
            wrong = next(i for i in ids if not 0 <= i < known)
            raise Unsupported(f"there is no token {wrong}: {self.name!r} knows 0 to {known - 1}", param)
