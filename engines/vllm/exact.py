"""The vLLM engine with exact entropies: vLLM schedules, batches and caches; the `Decoder` in its worker draws."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import cached_property
from itertools import chain, pairwise

import structlog
import torch

from waver.engines.base import NO_TOKEN, EngineError, Finish, Gate, Inside, Sampling, Step, Unsupported, not_a_number
from waver.engines.grammar import Grammar
from waver.engines.pictures import Picture
from waver.engines.transforms import needs_geometry
from waver.engines.vllm.core import Running
from waver.engines.vllm.engine import VllmEngine
from waver.engines.vllm.params import KEY, LONGEST_WINDOW, RequestParams
from waver.engines.vllm.ring import BROKEN, COMPLETE, EAGER, LAGGED, TOP, Entry
from waver.engines.weights import embedding_flaw

SPAN, PARALLEL = 32, 64
"""Tokens of a text that one request scores at least (whole blocks of vLLM's cache), and most such requests at once."""
ATTEMPTS = 3
"""Most requests in a row for the rest of an answer that bring no token."""

log = structlog.get_logger("waver")


class ExactVllmEngine(VllmEngine):
    """Serves gates, transforms, seeded draws and hidden states; entropies come through the ring buffer."""

    def _check_supported(self, sampling: Sampling, begun: bool) -> None:
        self._try((), replace(sampling, answer_start=0))
        if sampling.gate is not None:
            self._stop_token(sampling, self._ends(sampling))

    async def _prepare(self, ids: Sequence[int], sampling: Sampling) -> None:
        if sampling.grammar is not None or needs_geometry(sampling.transforms):
            await asyncio.to_thread(self._try, ids, sampling)

    def _try(self, ids: Sequence[int], sampling: Sampling) -> None:
        """Try here what would fail in the worker, where it would end every request.

        Raises:
            Unsupported: the grammar cannot be followed, or there are no embeddings for a transform.
        """
        if sampling.grammar is not None:
            start = len(ids) if sampling.answer_start is None else sampling.answer_start
            self._grammar.matcher(sampling.grammar, ids[start:])
        if needs_geometry(sampling.transforms):
            flaw = embedding_flaw(self.model.config.model, self.model.revision, self.vocabulary)
            if flaw:
                raise Unsupported(f"{self.name!r} cannot truncate by geometry: {flaw}", "policy")

    @cached_property
    def _grammar(self) -> Grammar:
        return Grammar(self.tokens, self.vocabulary)

    def _decode(self, running: Running, ids: list[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        return self._exactly(running, ids, sampling)

    async def _exactly(
        self, running: Running, ids: list[int], sampling: Sampling, given: Sequence[int] = ()
    ) -> AsyncGenerator[Step, None]:
        """Yield steps with their entries from the ring buffer, of `given` tokens or of drawn ones. Where the reader
        falls so far behind that an entry was overwritten, the rest of the answer is requested again: it comes out the
        same."""
        start = len(ids) if sampling.answer_start is None else sampling.answer_start
        sampling = replace(sampling, answer_start=start)
        fruitless = 0
        while fruitless < ATTEMPTS:
            tokens, entropies = list[int](), list[float]()
            async with aclosing(self._until_overrun(running, ids, start, sampling, given)) as steps:
                async for step in steps:
                    yield step
                    if step.finish:
                        return
                    tokens.append(step.token)
                    entropies.append(step.entropy)
            log.warning("a reader fell behind, and asks for the rest anew", engine=self.name, tokens=len(tokens))
            fruitless = 0 if tokens else fruitless + 1
            ids, given = ids + tokens, given[len(tokens) :]
            sampling = replace(sampling, gate=_gate_after(sampling.gate, entropies))
        raise EngineError(f"engine {self.name!r} lost an entropy: its reader fell too far behind")

    async def _until_overrun(
        self, running: Running, ids: list[int], start: int, sampling: Sampling, given: Sequence[int]
    ) -> AsyncGenerator[Step, None]:
        """Yield the steps up to the end, or to an entry that was overwritten. `start` is where the answer begins."""
        ends = self._ends(sampling)
        stop = None if sampling.gate is None else self._stop_token(sampling, ends)
        limit = self._limit(sampling, len(ids), start)
        position, state_at = 0, sampling.state_at(ids)
        alternatives = min(sampling.top_logprobs, TOP)
        with self.model.slot() as (slot, tag):
            params = RequestParams(
                sampling.gate, replace(sampling, pictures=()), ends=ends, stop=stop, slot=slot, tag=tag,
                given=tuple(given),
                hidden=None if state_at is None else len(ids) - 1 - state_at,
            )  # fmt: skip
            tokens_of = self._tokens_of(running, ids, limit, ends, params, start, sampling.pictures)
            async with aclosing(tokens_of) as arriving:
                async for tokens in arriving:
                    positions = range(position, position + len(tokens))
                    entries = [running.ring.read(slot, tag, at, alternatives) for at in positions]
                    for token, entry in zip(tokens, entries, strict=True):
                        if entry is None:
                            return
                        position += 1
                        if entry.flags & BROKEN:
                            raise EngineError(f"engine {self.name!r} could not follow the grammar any further")
                        if entry.flags & EAGER:
                            yield Step(NO_TOKEN, 0.0, entry.entropy, self.name, finish="gate")
                            return
                        finish = _finish(token, entry, ends, position == limit)
                        step = self._step(token, entry, finish)
                        if state_at is not None and position == 1:
                            step = replace(step, state=running.ring.state(slot, tag))
                        yield step
                        if finish:
                            return
        raise EngineError(f"engine {self.name!r} ended an answer without a reason")

    def _step(self, token: int, entry: Entry, finish: Finish | None) -> Step:
        if math.isnan(entry.entropy):
            raise not_a_number(self.name)
        return Step(
            token, entry.logprob, entry.entropy, self.name, entry.top, finish,
            kept=entry.kept, crop_entropy=entry.crop_entropy,
        )  # fmt: skip

    def _stop_token(self, sampling: Sampling, ends: Sequence[int]) -> int:
        """Choose the token that ends the request when its gate fires; the entry's flags tell that from the answer's
        end. Where nothing ends the answer, one is reserved that then cannot be drawn.

        Raises:
            Unsupported: the gate's window is too long, or no token can be reserved.
        """
        from waver.engines.vllm.admission import reserved_token

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
        self,
        running: Running,
        ids: list[int],
        limit: int,
        ends: Sequence[int],
        params: RequestParams,
        start: int,
        pictures: Sequence[Picture] = (),
    ) -> AsyncGenerator[Sequence[int], None]:
        """Yield the tokens that vLLM's worker takes, each time all that have come."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling_params = SamplingParams(
            temperature=0.0,  # the worker has drawn already: vLLM takes the token that it forced
            max_tokens=limit,
            stop_token_ids=sorted({*ends, *(() if params.stop is None else (params.stop,))}),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={KEY: params.encode()},
            skip_clone=True,
        )
        begun = len(ids) > start
        async with aclosing(self._outputs(running, ids, sampling_params, begun, pictures)) as outputs:
            async for output in outputs:
                yield output.outputs[0].token_ids

    async def _score(self, running: Running, ids: Sequence[int], top_logprobs: int) -> list[Step]:
        """Measure a text with exact entropies, by requests whose tokens are given and that share vLLM's prefix cache.
        Without that cache each of them would compute the text again, and vLLM's own log-probabilities are used."""
        if not running.llm.vllm_config.cache_config.enable_prefix_caching:
            return await super()._score(running, ids, top_logprobs)
        with self._counted():
            # The first request reads the text, and leaves it in vLLM's cache for the others.
            last = len(ids) - 1
            end = await self._score_span(running, ids, last, len(ids), top_logprobs)
            stride = SPAN * math.ceil(last / (SPAN * PARALLEL))
            spans = pairwise([1, *range(stride, last, stride), last])
            steps = await asyncio.gather(
                *(self._score_span(running, ids, *span, top_logprobs) for span in spans if span[0] < last)
            )
        return [*chain(*steps), *end]

    async def _score_span(
        self, running: Running, ids: Sequence[int], start: int, end: int, top_logprobs: int
    ) -> list[Step]:
        """Measure the tokens of a text from `start` to `end`: the worker takes them instead of drawing."""
        sampling = Sampling(temperature=0.0, max_tokens=end - start, ignore_eos=True, top_logprobs=top_logprobs)
        steps_of_span = self._exactly(running, list(ids[:start]), sampling, ids[start:end])
        async with self.model.room, aclosing(steps_of_span) as steps:
            return [replace(step, finish=None) async for step in steps]

    @property
    def exposes(self) -> frozenset[Inside]:
        return frozenset(("hidden_state",))

    async def hidden_state(self, ids: Sequence[int], depth: float | None = None) -> torch.Tensor:
        """Compute the state that vLLM makes the next token's logits of, in the type that the model runs in. It costs a
        request for one token, whose prompt stays in vLLM's cache.

        Raises:
            EngineError: the engine is dead. Unsupported: a layer within the model is asked for.
        """
        if depth is not None:
            raise Unsupported(
                f"engine {self.name!r} runs under vLLM, which hands out the last hidden state only", "policy"
            )
        self._check_prompt(ids, room=1)
        sampling = Sampling(temperature=0.0, max_tokens=1, logprobs=False)
        with self._counted():
            async with self.model.room:
                running = self._running()
                with self.model.slot() as (slot, tag):
                    params = RequestParams(sampling=sampling, slot=slot, tag=tag, hidden=0)
                    async with aclosing(self._tokens_of(running, list(ids), 1, (), params, len(ids))) as tokens:
                        async for _ in tokens:
                            pass
                    state = running.ring.state(slot, tag)
        if state is None:
            raise Unsupported(
                f"engine {self.name!r}: this version of vLLM, or this model, keeps its hidden states where the plugin "
                "does not find them",
                "policy",
            )
        return state


def _gate_after(gate: Gate | None, entropies: Sequence[float]) -> Gate | None:
    """Make the gate for the rest of a segment, behind tokens of these entropies."""
    if gate is None:
        return None
    history = (*gate.history, *entropies)[-gate.window :]
    return replace(gate, history=history, min_tokens=max(gate.min_tokens - len(entropies), 0))


def _finish(token: int, entry: Entry, ends: Sequence[int], full: bool) -> Finish | None:
    """Decide why an answer or a segment ends with a token, in the order of `waver.engines.sequence`."""
    if token in ends or entry.flags & COMPLETE:
        return "stop"
    if full:
        return "length"
    return "gate" if entry.flags & LAGGED else None
