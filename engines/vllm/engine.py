"""A model under vLLM: vLLM schedules, batches and caches; the `Decoder` in its worker measures, decides and draws."""

from __future__ import annotations

import asyncio
import copy
import math
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import chain, count, pairwise
from typing import TYPE_CHECKING, Any

import structlog
import torch
from prometheus_client.core import Metric

from waver.engines.base import NO_TOKEN, EngineError, Finish, Gate, Inside, Sampling, Step, Unsupported, reason
from waver.engines.config import VllmConfig
from waver.engines.grammar import Grammar
from waver.engines.tokens import TokenText
from waver.engines.transforms import needs_geometry
from waver.engines.vllm.ask import KEY, LONGEST_WINDOW, Ask
from waver.engines.vllm.board import COMPLETE, EAGER, LAGGED, ROWS, TOP, Entry
from waver.engines.vllm.core import Core, Running
from waver.engines.weights import embedding, embedding_flaw, size
from waver.entropy import entropy_bounds

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

FIRST, NEXT = 0, -1
"""Priorities (lower goes first): a new answer, and one that has begun."""
SPAN, ABREAST = 32, 64
"""Tokens of a text that one request scores at least (whole blocks of vLLM's cache), and most such requests at once."""
ATTEMPTS = 3
"""How often in a row an answer is asked for without a token's coming of it."""

log = structlog.get_logger("waver")


class VllmEngine:
    """Implements `waver.engines.base.Engine`. With speculative decoding vLLM draws by itself, gates are refused, and
    the entropies are bounded by the most likely tokens instead of exact."""

    def __init__(self, name: str, config: VllmConfig) -> None:
        self.name = name
        self._config = config
        self._rows = deque(range(ROWS))
        self._room = asyncio.Semaphore(ROWS)
        self._tags = count(1)
        self._adapter: LoRARequest | None = None
        self._adapters: list[LoRARequest] = []
        self._active = 0
        self._core = Core(name, config.model, config.args, self._warm)
        try:
            self._describe(self._running().llm)
        except Exception as error:  # a tokenizer may fail in as many ways as a model
            self._core.close()
            raise ValueError(f"engine {name!r}: {error}") from error

    def _describe(self, llm: AsyncLLM) -> None:
        """What is to be known of the model.

        Raises:
            ValueError: nothing tells how large it is.
        """
        model = llm.model_config
        options = {"revision": model.tokenizer_revision, "trust_remote_code": model.trust_remote_code}
        ends = (model.try_get_generation_config() or {}).get("eos_token_id")
        self.tokens = TokenText.load(model.tokenizer, ends, **options)
        self.vocabulary: int = model.get_vocab_size()
        self.context_length: int = model.max_model_len
        self.parameters = self._config.parameters or size(self._config.model, model.revision)
        self._speculates = llm.vllm_config.speculative_config is not None
        self._known = min(self.vocabulary, self.tokens.vocab_size)

    async def adapted(self, name: str, adapter: str) -> VllmEngine:
        """The same model with a LoRA adapter, as another engine: it shares the processes, the board and its rows.

        Args:
            adapter: a directory, or a hub id.

        Raises:
            ValueError: vLLM does not load it; the message says why.
        """
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform

        llm, number = self._running().llm, len(self._adapters) + 1
        room = llm.vllm_config.lora_config
        if room is not None and current_platform.is_cpu() and number >= room.max_loras:
            raise ValueError(
                f"engine {name!r}: on a CPU vLLM gives sequences without an adapter the weights in the last of its "
                f"max_loras places, which has to stay empty: {self.name!r} needs max_loras: {number + 1} among its args"
            )
        found = copy.copy(self)
        found.name, found._active = name, 0
        found._adapter = LoRARequest(name, number, adapter)
        self._core.attach()
        try:  # in a request's first step what is wrong with it would be the end of the engine
            await llm.add_lora(found._adapter)
        except Exception as error:  # vLLM, peft and safetensors each raise their own kinds
            raise ValueError(f"engine {name!r}: vLLM cannot load the adapter {adapter!r}: {reason(error)}") from error
        self._adapters.append(found._adapter)
        return found

    @property
    def active(self) -> int:
        return self._active

    @property
    def alive(self) -> bool:
        return self._core.running is not None

    @property
    def restarts(self) -> int:
        """How often the engine had to be started again."""
        return self._core.restarts

    def collect(self) -> Iterable[Metric]:
        """vLLM's own metrics, where `disable_log_stats: false` is among the arguments; an adapter's are its model's."""
        running = self._core.running
        return () if running is None or running.stats is None or self._adapter else running.stats.collect()

    def check(self, sampling: Sampling, begun: bool) -> None:
        self._running()
        self._check_known(tuple(sampling.logit_bias), "logit_bias")
        self._check_known(sampling.stop_token_ids, "stop_token_ids")
        if self._speculates:
            self._refuse_speculating(sampling, begun)
        else:
            self._try((), replace(sampling, answer_start=0))
            if sampling.gate is not None:
                self._stop(sampling, self._ends(sampling))

    def _ends(self, sampling: Sampling) -> tuple[int, ...]:
        return (*(() if sampling.ignore_eos else self.tokens.eos_ids), *sampling.stop_token_ids)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        self._check(prompt_ids, room=1)
        self._check_known(tuple(sampling.logit_bias), "logit_bias")
        self._check_known(sampling.stop_token_ids, "stop_token_ids")
        if sampling.grammar is not None or needs_geometry(sampling.transforms):
            await asyncio.to_thread(self._try, prompt_ids, sampling)
        with self._counted():
            async with self._room, aclosing(self._decode(self._running(), list(prompt_ids), sampling)) as steps:
                async for step in steps:
                    yield step

    def _decode(self, running: Running, ids: list[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        return (self._plainly if self._speculates else self._exactly)(running, ids, sampling)

    async def _warm(self, running: Running) -> None:
        """Let an engine that was started again compile what its first request would wait for."""
        how = Sampling(max_tokens=2, top_logprobs=1)
        async with self._room, aclosing(self._decode(running, self.tokens.encode("Hello")[:16], how)) as steps:
            async for _ in steps:
                pass

    def _try(self, ids: Sequence[int], sampling: Sampling) -> None:
        """Do here what would fail in the worker: there it would be the end of every request.

        Raises:
            Unsupported: the grammar cannot be followed, or there are no embeddings for a transform.
        """
        if sampling.grammar is not None:
            start = len(ids) if sampling.answer_start is None else sampling.answer_start
            self._grammar.matcher(sampling.grammar, ids[start:])
        if needs_geometry(sampling.transforms):
            flaw = embedding_flaw(self._config.model, self._config.args.get("revision"), self.vocabulary)
            if flaw:
                raise Unsupported(f"{self.name!r} cannot truncate by geometry: {flaw}", "policy")

    @cached_property
    def _grammar(self) -> Grammar:
        return Grammar(self.tokens, self.vocabulary)

    async def _exactly(
        self, running: Running, ids: list[int], sampling: Sampling, given: Sequence[int] = ()
    ) -> AsyncGenerator[Step, None]:
        """Steps with their entries from the board; of `given` tokens, or of drawn ones. Where their reader falls so far
        behind that an entry is gone, the rest of the answer is asked for anew: it comes out the same."""
        start = len(ids) if sampling.answer_start is None else sampling.answer_start
        sampling = replace(sampling, answer_start=start)
        fruitless = 0
        while fruitless < ATTEMPTS:
            tokens, entropies = list[int](), list[float]()
            async with aclosing(self._as_read(running, ids, start, sampling, given)) as steps:
                async for step in steps:
                    yield step
                    if step.finish:
                        return
                    tokens.append(step.token)
                    entropies.append(step.entropy)
            log.warning("a reader fell behind, and asks for the rest anew", engine=self.name, tokens=len(tokens))
            fruitless = 0 if tokens else fruitless + 1
            ids, given = ids + tokens, given[len(tokens) :]
            sampling = replace(sampling, gate=_after(sampling.gate, entropies))
        raise EngineError(f"engine {self.name!r} lost an entropy: its reader fell too far behind")

    async def _as_read(
        self, running: Running, ids: list[int], start: int, sampling: Sampling, given: Sequence[int]
    ) -> AsyncGenerator[Step, None]:
        """The steps up to the end, or to an entry that is gone. `start` is where the answer begins."""
        ends = self._ends(sampling)
        stop = None if sampling.gate is None else self._stop(sampling, ends)
        limit = min(sampling.max_tokens - (len(ids) - start), self.context_length - len(ids))
        position, read = 0, sampling.state_at(ids)
        alternatives = min(sampling.top_logprobs, TOP)
        with self._row() as (row, tag):
            ask = Ask(
                sampling.gate, sampling, ends=ends, stop=stop, slot=row, tag=tag, given=tuple(given),
                hidden=None if read is None else len(ids) - 1 - read,
            )  # fmt: skip
            async with aclosing(self._tokens_of(running, ids, limit, ends, ask, start)) as arriving:
                async for tokens in arriving:
                    places = range(position, position + len(tokens))
                    entries = [running.board.read(row, tag, place, alternatives) for place in places]
                    for token, entry in zip(tokens, entries, strict=True):
                        if entry is None:
                            return
                        position += 1
                        if entry.flags & EAGER:
                            yield Step(NO_TOKEN, 0.0, entry.entropy, self.name, finish="gate")
                            return
                        finish = _finish(token, entry, ends, position == limit)
                        step = self._step(token, entry, finish)
                        if read is not None and position == 1:
                            step = replace(step, state=running.board.state(row, tag))
                        yield step
                        if finish:
                            return
        raise EngineError(f"engine {self.name!r} ended an answer without a reason")

    def _step(self, token: int, entry: Entry, finish: Finish | None) -> Step:
        return Step(
            token, entry.logprob, entry.entropy, self.name, entry.top, finish,
            kept=entry.kept, crop_entropy=entry.crop_entropy,
        )  # fmt: skip

    def _stop(self, sampling: Sampling, ends: Sequence[int]) -> int:
        """The token that ends the request when its gate fires: the board tells that from the answer's end. Where
        nothing ends the answer, one is reserved that then cannot be drawn."""
        from waver.engines.vllm.plugin import reserved_token

        gate = sampling.gate
        if gate is not None and gate.window > LONGEST_WINDOW:
            raise Unsupported(f"a gate's window can have {LONGEST_WINDOW} tokens at most under vLLM", "policy")
        if ends:
            return ends[0]
        try:
            return reserved_token(self.tokens, self.vocabulary)
        except ValueError as error:
            raise Unsupported(str(error), "policy") from error

    async def _tokens_of(
        self, running: Running, ids: list[int], limit: int, ends: Sequence[int], ask: Ask, start: int
    ) -> AsyncGenerator[Sequence[int], None]:
        """The tokens that vLLM's worker settles on: each time all that have come."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0,  # the worker has drawn already: vLLM takes what it left
            max_tokens=limit,
            stop_token_ids=sorted({*ends, *(() if ask.stop is None else (ask.stop,))}),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={KEY: ask.settled()},
            skip_clone=True,
        )
        async with aclosing(self._outputs(running, ids, params, begun=len(ids) > start)) as outputs:
            async for output in outputs:
                yield output.outputs[0].token_ids

    async def _outputs(
        self, running: Running, ids: list[int], params: Any, begun: bool = False
    ) -> AsyncGenerator[Any, None]:
        """vLLM's outputs for a request; closing the generator aborts it.

        Raises:
            EngineError: the engine died. Unsupported: vLLM refuses the request.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._core.attach()
        priority = NEXT if begun and running.llm.scheduler_config.policy == "priority" else FIRST
        name = f"{self.name}-{next(self._tags)}"
        answer = running.llm.generate(tokens_input(ids), params, name, lora_request=self._adapter, priority=priority)
        try:
            async with aclosing(answer) as outputs:
                async for output in outputs:
                    yield output
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineError(f"engine {self.name!r} died while it was at work; it is being started again") from error
        except VLLMClientError as error:
            raise Unsupported(f"vLLM refuses the request: {error}") from error

    def _refuse_speculating(self, sampling: Sampling, begun: bool) -> None:
        """Raises:
        Unsupported: what vLLM does not do, or not as it should, where it speculates."""
        asked = {
            "policy": (
                sampling.gate is not None or bool(sampling.transforms),
                "a gate or a policy that shapes the draw",
            ),
            "logit_bias": (bool(sampling.logit_bias), "logit_bias"),
            "min_p": (sampling.min_p > 0, "min_p"),
            "response_format": (sampling.grammar is not None, "a response format"),
            "presence_penalty": (
                begun and bool(sampling.presence_penalty or sampling.frequency_penalty),
                "a penalty that counts what another engine wrote",
            ),
        }
        for param, (wanted, what) in asked.items():
            if wanted:
                raise Unsupported(f"engine {self.name!r} decodes speculatively, which does not allow {what}", param)

    async def _plainly(self, running: Running, ids: list[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        """Steps as vLLM draws them, for an engine that speculates: its processors see no single positions."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        start = len(ids) if sampling.answer_start is None else sampling.answer_start
        begun = len(ids) > start
        self._refuse_speculating(sampling, begun)
        ends = self._ends(sampling)
        limit = min(sampling.max_tokens - (len(ids) - start), self.context_length - len(ids))
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=(sampling.seed + len(ids) - start) % 2**63,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=limit,
            min_tokens=min(max(sampling.min_tokens - (len(ids) - start), 0), limit),
            stop_token_ids=sorted(set(ends)),
            ignore_eos=True,
            logprobs=TOP,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,
        )
        made = 0
        async with aclosing(self._outputs(running, ids, params, begun)) as outputs:
            async for output in outputs:
                completion = output.outputs[0]
                for token, known in zip(completion.token_ids, completion.logprobs, strict=True):
                    made += 1
                    step = self._bounded(token, known, sampling.top_logprobs)
                    finish: Finish | None = "stop" if token in ends else "length" if made == limit else None
                    yield replace(step, finish=finish)
                    if finish:
                        return
        raise EngineError(f"engine {self.name!r} ended an answer without a reason")

    def _bounded(self, token: int, known: Any, top: int) -> Step:
        """A step from vLLM's own log-probabilities."""
        best = sorted(((i, each.logprob) for i, each in known.items()), key=lambda pair: -pair[1])[:TOP]
        low, high = entropy_bounds(torch.tensor([value for _, value in best]), self._known)
        bounds = float(low), float(high)
        return Step(token, known[token].logprob, sum(bounds) / 2, self.name, tuple(best[:top]), entropy_bounds=bounds)

    async def score(self, ids: Sequence[int], top_logprobs: int = 0) -> list[Step]:
        """Raises:
        EngineError: the engine is dead. Unsupported: the ids are none of this model's."""
        self._check(ids)
        if len(ids) < 2:
            return []
        running = self._running()
        if self._speculates or not running.llm.vllm_config.cache_config.enable_prefix_caching:
            return await self._read(running, ids, top_logprobs)
        with self._counted():
            # The first request reads the text, and leaves it in vLLM's cache for the others.
            last = len(ids) - 1
            end = await self._along(running, ids, last, len(ids), top_logprobs)
            stride = SPAN * math.ceil(last / (SPAN * ABREAST))
            parts = pairwise([1, *range(stride, last, stride), last])
            steps = await asyncio.gather(
                *(self._along(running, ids, *part, top_logprobs) for part in parts if part[0] < last)
            )
        return [*chain(*steps), *end]

    async def _along(self, running: Running, ids: Sequence[int], start: int, end: int, top_logprobs: int) -> list[Step]:
        """Steps of the tokens of a text from `start` to `end`: the worker takes them instead of drawing, and measures
        as ever."""
        how = Sampling(temperature=0.0, max_tokens=end - start, ignore_eos=True, top_logprobs=top_logprobs)
        async with self._room, aclosing(self._exactly(running, list(ids[:start]), how, ids[start:end])) as steps:
            return [replace(step, finish=None) async for step in steps]

    async def _read(self, running: Running, ids: Sequence[int], top_logprobs: int) -> list[Step]:
        """Steps from vLLM's own log-probabilities of a prompt, whose first request compiles for a while."""
        from vllm import SamplingParams

        # vLLM has to be asked for a token, too.
        room = len(ids) < self.context_length
        given = list(ids) if room else list(ids[:-1])
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=TOP, detokenize=False, skip_clone=True)
        with self._counted():
            async with self._room:
                outputs = [output async for output in self._outputs(running, given, params)]
        known = outputs[-1].prompt_logprobs
        return [self._bounded(token, at, top_logprobs) for token, at in zip(given[1:], known[1:], strict=True)]

    @property
    def exposes(self) -> frozenset[Inside]:
        return frozenset() if self._speculates else frozenset(("hidden_state",))

    async def hidden_state(self, ids: Sequence[int], depth: float | None = None) -> torch.Tensor:
        """The state that vLLM makes the next token's logits of, in the type that the model runs in. It costs a request
        for one token, whose prompt stays in vLLM's cache.

        Raises:
            EngineError: the engine is dead. Unsupported: a layer within the model is asked for, or vLLM speculates.
        """
        if depth is not None:
            raise Unsupported(
                f"engine {self.name!r} runs under vLLM, which hands out the last hidden state only", "policy"
            )
        if self._speculates:
            raise Unsupported(
                f"engine {self.name!r} decodes speculatively, which does not allow hidden states", "policy"
            )
        self._check(ids, room=1)
        how = Sampling(temperature=0.0, max_tokens=1, logprobs=False)
        with self._counted():
            async with self._room:
                running = self._running()
                with self._row() as (row, tag):
                    ask = Ask(sampling=how, slot=row, tag=tag, hidden=0)
                    async with aclosing(self._tokens_of(running, list(ids), 1, (), ask, len(ids))) as tokens:
                        async for _ in tokens:
                            pass
                    state = running.board.state(row, tag)
        if state is None:
            raise Unsupported(
                f"engine {self.name!r}: this version of vLLM, or this model, keeps its hidden states where the plugin "
                "does not find them",
                "policy",
            )
        return state

    async def attention(self, ids: Sequence[int], start: int) -> torch.Tensor:
        """Raises:
        Unsupported: vLLM's kernels never write attention weights down."""
        raise Unsupported(f"engine {self.name!r} runs under vLLM, which does not hand out attention weights", "policy")

    def embedding_matrix(self) -> torch.Tensor:
        return embedding(self._config.model, self._config.args.get("revision"))

    async def aclose(self) -> None:
        if self._adapter is None:  # an adapter goes with its model
            await asyncio.to_thread(self._core.close)

    def _running(self) -> Running:
        running = self._core.running
        if running is None:
            raise EngineError(f"engine {self.name!r} died and is being started again")
        return running

    @contextmanager
    def _row(self) -> Iterator[tuple[int, int]]:
        """A row of the board, and the tag of its owner, for one request."""
        row = self._rows.popleft()
        try:
            yield row, next(self._tags) % 2**31
        finally:
            self._rows.append(row)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1

    def _check(self, ids: Sequence[int], room: int = 0) -> None:
        if not ids:
            raise Unsupported("the prompt is empty", "prompt")
        if len(ids) + room > self.context_length:
            raise Unsupported(
                f"the prompt has {len(ids)} tokens, and {self.name!r} has a context of {self.context_length}", "prompt"
            )
        self._check_known(ids, "prompt")

    def _check_known(self, ids: Sequence[int], param: str) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < self._known:
            wrong = next(i for i in ids if not 0 <= i < self._known)
            raise Unsupported(f"there is no token {wrong}: {self.name!r} knows 0 to {self._known - 1}", param)


def _after(gate: Gate | None, entropies: Sequence[float]) -> Gate | None:
    """The gate of what comes after tokens of these entropies."""
    if gate is None:
        return None
    history = (*gate.history, *entropies)[-gate.window :]
    return replace(gate, history=history, min_tokens=max(gate.min_tokens - len(entropies), 0))


def _finish(token: int, entry: Entry, ends: Sequence[int], full: bool) -> Finish | None:
    """Why an answer or a segment ends with a token, in the order of `waver.engines.sequence`."""
    if token in ends or entry.flags & COMPLETE:
        return "stop"
    if full:
        return "length"
    return "gate" if entry.flags & LAGGED else None
