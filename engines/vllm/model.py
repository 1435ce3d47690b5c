"""A model under vLLM, shared by the engine on it and the engines on its adapters."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

from waver.engines.base import EngineError, reason
from waver.engines.config import VllmConfig
from waver.engines.defaults import NONE, taken_over
from waver.engines.tokens import TokenText
from waver.engines.vision import Vision, takes_pictures
from waver.engines.vllm.core import Core, Running
from waver.engines.vllm.ring import SLOTS
from waver.engines.vllm.unsupported import refuse_adapter
from waver.engines.weights import parameter_count

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM


class VllmModel:
    """The processes that run the model, its tokenizer, its adapters, and the slots of its ring buffer.

    Raises:
        ValueError: vLLM cannot start the model, its tokenizer cannot be loaded, or nothing tells its parameter count.
    """

    def __init__(self, name: str, config: VllmConfig) -> None:
        self.name, self.config = name, config
        self.room = asyncio.Semaphore(SLOTS)
        """Held by each request for as long as it needs a slot."""
        self.adapters: list[LoRARequest] = []
        self._slots = deque(range(SLOTS))
        self._numbers = count(1)
        self.core = Core(name, config)
        try:
            self._describe(self.running(name).llm)
        except Exception as error:  # a tokenizer may fail in as many ways as a model
            self.core.close()
            raise ValueError(f"engine {name!r}: {error}") from error

    def _describe(self, llm: AsyncLLM) -> None:
        """Find out tokenizer, sizes and mode.

        Raises:
            ValueError: nothing tells how many parameters the model has.
        """
        model = llm.model_config
        options = {"revision": model.tokenizer_revision, "trust_remote_code": model.trust_remote_code}
        settings = model.try_get_generation_config() or {}
        ends = settings.get("eos_token_id")
        wanted = self.config.generation_config == "auto" and model.generation_config != "vllm"
        self.recommended = taken_over(settings) if wanted else NONE
        self.tokens = TokenText.load(model.tokenizer, ends, **options)
        sees = model.is_multimodal_model and takes_pictures(self.config.model, **options)
        self.vision = Vision.load(self.config.model, self.tokens, **options) if sees else None
        self.vocabulary: int = model.get_vocab_size()
        self.context_length: int = model.max_model_len
        self.parameters = self.config.parameters or parameter_count(self.config.model, model.revision)
        self.speculates = llm.vllm_config.speculative_config is not None
        self.known = min(self.vocabulary, self.tokens.vocab_size)
        """Tokens that may be used: ids from there on are padding."""

    @property
    def revision(self) -> str | None:
        return self.config.args.get("revision")

    def running(self, engine: str) -> Running:
        """Return the processes as they run now. `engine` is the caller's name, for the error.

        Raises:
            EngineError: they died, and are being started again.
        """
        running = self.core.running
        if running is None:
            raise EngineError(f"engine {engine!r} died and is being started again")
        return running

    def next_number(self) -> int:
        """Return a number that no other request of this model has."""
        return next(self._numbers)

    @contextmanager
    def slot(self) -> Iterator[tuple[int, int]]:
        """Reserve a slot of the ring buffer, with a tag, for one request that holds `room`."""
        slot = self._slots.popleft()
        try:
            yield slot, self.next_number() % 2**31
        finally:
            self._slots.append(slot)

    async def add_adapter(self, name: str, path: str) -> LoRARequest:
        """Load a LoRA adapter (a directory, or a hub id) beside the model, for an engine called `name`.

        Raises:
            ValueError: vLLM does not load it; the message says why.
        """
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform

        refuse_adapter(name, path)
        llm, number = self.running(name).llm, len(self.adapters) + 1
        room = llm.vllm_config.lora_config
        if room is not None and current_platform.is_cpu() and number >= room.max_loras:
            raise ValueError(
                f"engine {name!r}: on a CPU vLLM gives sequences without an adapter the weights in the last of its "
                f"max_loras places, which has to stay empty: {self.name!r} needs max_loras: {number + 1} among its args"
            )
        adapter = LoRARequest(name, number, path)
        self.core.attach()
        try:  # a request would meet its flaws in the worker, and end the engine
            await llm.add_lora(adapter)
        except Exception as error:  # vLLM, peft and safetensors each raise their own kinds
            raise ValueError(f"engine {name!r}: vLLM cannot load the adapter {path!r}: {reason(error)}") from error
        self.adapters.append(adapter)
        return adapter
