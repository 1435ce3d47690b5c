"""The embedded engine: runs any causal language model that transformers loads, in one continuous batch.

The scheduler runs on the event loop and hands one forward pass at a time to the engine's own thread. Between two passes
sequences join, leave and are aborted, so a client that leaves costs at most the pass that is running.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from llguidance import LLMatcher
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from waver.engines import activations, tuners
from waver.engines.attention import last_attention
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
from waver.engines.config import TransformersConfig
from waver.engines.defaults import NONE, recommended_sampling
from waver.engines.grammar import Grammar
from waver.engines.grouped import group
from waver.engines.inverse_cdf import warm_up
from waver.engines.packed import pack
from waver.engines.passes import most_tokens, own_cost, share_out
from waver.engines.picture_runner import PictureRunner, View
from waver.engines.runner import Runner, make_runner
from waver.engines.sampling import draw
from waver.engines.sequence import HiddenStateRequest, SequenceState
from waver.engines.slot_allocator import SCRATCH, SlotAllocator
from waver.engines.temperature import adapts
from waver.engines.tokens import TokenText
from waver.engines.transforms import needs_geometry
from waver.engines.vision import Vision, model_class, takes_pictures
from waver.engines.visual_pruning import check_pruning
from waver.entropy import shannon_entropy
from waver.entropy.geometry import whiten

if TYPE_CHECKING:
    from waver.engines.tuners.routing import Decision, RoutedTuner

CATCH_UP = 16
"""Most missing tokens of a row that joins the pass of the decoding rows."""

LOGITS = 1 << 26
"""Most logits held at once while a text is scored."""

SMALL = 100_000_000
"""Parameters below which a CPU pass is fastest on one thread, as synchronising threads costs more than they save."""

Result = TypeVar("Result")


def copy_weights(model: PreTrainedModel) -> None:
    """Copy weights that are pages of a file into memory of their own: who writes over that file would end the
    process, or change what it computes."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


class TransformersEngine:
    """Runs one model in this process. Implements `waver.engines.base.Engine`."""

    def __init__(self, name: str, config: TransformersConfig) -> None:
        self.name = name
        device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        options = {
            "revision": config.revision,
            "trust_remote_code": config.trust_remote_code,
            "local_files_only": Path(config.model).is_dir(),
        }
        disable_progress_bar()
        activations.register()
        try:
            model = model_class(config.model, **options).from_pretrained(
                config.model, dtype=config.dtype, use_safetensors=True, **options
            )
            self.model: PreTrainedModel = model.eval().to(torch.device(device))
            copy_weights(self.model)
            if self.model.device.type == "cpu":
                group(self.model)
            self._routed: RoutedTuner | None = None
            if config.adapter is not None:
                self.model, self._routed = tuners.load_adapter(self.model, config.adapter)
            self.tokens = TokenText.load(config.model, self.model.generation_config.eos_token_id, **options)
            sees = takes_pictures(config.model, **options)
            self.vision = Vision.load(config.model, self.tokens, **options) if sees else None
        except Exception as error:  # transformers, safetensors and the tokenizers each raise their own kinds
            what = config.model if config.adapter is None else f"{config.model} with {config.adapter}"
            raise ValueError(f"engine {name!r}: cannot load {what!r} on {device}: {reason(error)}") from error
        wanted = config.generation_config == "auto"
        self.recommended = recommended_sampling(config.model, revision=config.revision) if wanted else NONE
        text_config = self.model.config.get_text_config()
        self.vocabulary: int = self.model.get_output_embeddings().weight.shape[0]
        longest: int = getattr(text_config, "max_position_embeddings", None) or config.max_model_len or 4096
        self.context_length = min(longest, config.max_model_len or longest)
        self.parameters = int(self.model.num_parameters())
        self._runner: Runner = make_runner(self.model, self.context_length)
        self._pictures: PictureRunner | None = None
        if self.vision is not None:
            self._runner = self._pictures = PictureRunner(self._runner, self.model, self.vision.image_token)
        if config.adapter is None:  # adapters may read the matrices of their layers
            pack(self.model)
        warm_up(self.model.device)
        self._grammar: Grammar | None = None
        self._geometry: torch.Tensor | None = None
        self._slots = SlotAllocator(config.max_sequences, self._runner)
        self._sequences: list[SequenceState | HiddenStateRequest] = []
        threads = config.threads or (1 if self.parameters < SMALL else torch.get_num_threads())
        self._own_cost = own_cost(device, self.parameters, getattr(text_config, "num_hidden_layers", 1))
        self._pass_tokens = most_tokens(device, self.parameters)
        self._thread = ThreadPoolExecutor(1, f"engine-{name}", torch.set_num_threads, (threads,))
        self._scheduler: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._closed = False
        self.passes = 0
        """Forward passes so far."""
        self.read_tokens = 0
        """Tokens that these passes computed."""

    @property
    def reused_tokens(self) -> int:
        """Tokens that were not computed again, as a slot held them already."""
        return self._slots.reused

    @property
    def active(self) -> int:
        return len(self._sequences)

    @property
    def alive(self) -> bool:
        return not self._closed

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        self._check(prompt_ids, room=1)
        self._check_known(sampling.logit_bias, "logit_bias")
        self._check_known(sampling.stop_token_ids, "stop_token_ids")
        if needs_geometry(sampling.transforms) and self._geometry is None:
            await self._in_thread(self._whiten)
        view = None
        if self.vision is None:
            without_pictures(self.name, sampling)
        else:
            view = await asyncio.to_thread(self._view, self.vision, prompt_ids, sampling)
        sequence = SequenceState(prompt_ids, sampling, self.tokens.eos_ids, view)
        if sampling.grammar is not None:
            sequence.matcher = await asyncio.to_thread(self._matcher, sampling.grammar, sequence.answer)
        self._sequences.append(sequence)
        self._start()
        try:
            while True:
                item = await sequence.inbox.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish:
                    return
        finally:
            self._leave(sequence)

    def _view(self, vision: Vision, ids: Sequence[int], sampling: Sampling) -> View | None:
        """Make what a prompt shows; blocks.

        Raises:
            Unsupported: the prompt has other pictures.
        """
        vision.check(ids[: sampling.answer_start], sampling.pictures)
        if not sampling.pictures:
            return None
        key = (tuple(picture.digest for picture in sampling.pictures), sampling.pruning)
        return View(key, vision.inputs(ids, sampling.pictures), sampling.pruning)

    def _leave(self, sequence: SequenceState | HiddenStateRequest) -> None:
        if sequence in self._sequences:
            self._sequences.remove(sequence)

    def check(self, sampling: Sampling, begun: bool) -> None:
        if self._closed:
            raise EngineError(f"engine {self.name!r} is closed")
        self._check_known(sampling.logit_bias, "logit_bias")
        self._check_known(sampling.stop_token_ids, "stop_token_ids")
        if self.vision is None:
            without_pictures(self.name, sampling)
        elif sampling.pruning is not None:
            check_pruning(self.model, sampling.pruning)
        if needs_geometry(sampling.transforms) and self._geometry is None:
            self._thread.submit(self._whiten).result()
        if sampling.grammar is not None:
            self._matcher(sampling.grammar, [])

    def _matcher(self, schema: str, answer: list[int]) -> LLMatcher:
        if self._grammar is None:
            self._grammar = Grammar(self.tokens, self.vocabulary)
        return self._grammar.matcher(schema, answer)

    @torch.inference_mode()
    def _whiten(self) -> None:
        """Whiten the embeddings once, for all requests: 4 bytes for each of their numbers."""
        if self._geometry is not None:
            return
        matrix = self.embedding_matrix()
        try:
            whitened = whiten(matrix)
        except ValueError as error:
            raise Unsupported(f"{self.name!r} cannot truncate by geometry: {error}", "policy") from None
        if len(matrix) < self.vocabulary:
            reason = f"it has {len(matrix)} input embeddings for {self.vocabulary} tokens"
            raise Unsupported(f"{self.name!r} cannot truncate by geometry: {reason}", "policy")
        self._geometry = whitened

    def _check(self, ids: Sequence[int], room: int = 0) -> None:
        """Refuse ids that would fail a pass, and so the other sequences in it."""
        if self._closed:
            raise EngineError(f"engine {self.name!r} is closed")
        if not ids:
            raise Unsupported("the prompt is empty", "prompt")
        if len(ids) + room > self.context_length:
            raise ContextExceeded(self.context_length, f"the prompt has {len(ids)} tokens")
        self._check_known(ids, "prompt")

    def _check_known(self, ids: Collection[int], param: str) -> None:
        known = min(self.vocabulary, self.tokens.vocab_size)
        if not ids or (min(ids) >= 0 and max(ids) < known):  # the quickest way to look at a whole context
            return
        unknown = next((i for i in ids if not 0 <= i < known), None)
        if unknown is not None:
            raise Unsupported(f"there is no token {unknown}: {self.name!r} knows 0 to {known - 1}", param)

    def _start(self) -> None:
        """Wake the scheduler, or start it on this event loop."""
        if (
            self._scheduler is None
            or self._scheduler.done()
            or self._scheduler.get_loop() != asyncio.get_running_loop()
        ):
            self._wake = asyncio.Event()
            self._scheduler = asyncio.create_task(self._schedule(), name=f"scheduler-{self.name}")
        self._wake.set()

    async def _schedule(self) -> None:
        """Run passes while there are sequences; sleep while there are none."""
        while True:
            if not self._sequences:
                self._wake.clear()
                await self._wake.wait()
            live = list(self._sequences)
            try:
                steps = await self._in_thread(partial(self._run_passes, live))
            except Exception as error:  # of any kind: the requests of this pass must end
                self._fail(live, error)
                continue
            for sequence, step in steps:
                sequence.inbox.put_nowait(step)
                if isinstance(step, EngineError) or step.finish:
                    self._leave(sequence)
            readings = [each for each in live if isinstance(each, HiddenStateRequest)]
            if not readings:
                continue
            try:
                states = await self._in_thread(partial(self._read, readings))
            except Exception as error:  # the answers are not affected
                self._fail(readings, error)
                continue
            for reading, state in states:
                reading.inbox.put_nowait(state)
                self._leave(reading)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _fail(self, sequences: Sequence[SequenceState | HiddenStateRequest], error: Exception) -> None:
        """Report to sequences that their pass failed, and clear their slots."""
        failure = EngineError(f"engine {self.name!r} failed: {type(error).__name__}")
        failure.__cause__ = error
        for sequence in list(sequences):
            if sequence.slot is not None:
                self._slots.held[sequence.slot] = []
            self._leave(sequence)
            sequence.inbox.put_nowait(failure)

    @torch.inference_mode()
    def _run_passes(
        self, live: list[SequenceState | HiddenStateRequest]
    ) -> list[tuple[SequenceState, Step | EngineError]]:
        """Allocate slots, then run forward passes over the rows with few missing tokens and over a share of the long
        prompts. Runs in the engine's thread, the only one that touches slots."""
        self._slots.allocate(live)
        if self._pictures is not None:
            for each in live:
                if each.slot is not None:
                    self._pictures.show(each.slot, each.view)
        near, far, room = [], [], self._pass_tokens
        for sequence in live:
            if sequence.slot is None or isinstance(sequence, HiddenStateRequest):
                continue
            missing = self._slots.count_missing(sequence)
            if missing <= CATCH_UP:
                near.append((sequence, missing))
            elif room > 0:  # pictures are read in one pass, with all of their prompt
                far.append((sequence, missing if sequence.view else min(missing, room)))
                room -= missing
        passes = [
            [work[row] for row in rows]
            for work in (near, far)
            for rows in share_out([count for _, count in work], self._own_cost)
        ]
        produced: list[tuple[SequenceState, Step | EngineError]] = []
        for number, taken in enumerate(passes):
            # A client that left during an earlier pass does not pay for a later one.
            produced += self._decode([each for each in taken if each[0] in self._sequences] if number else taken)
        return produced

    @torch.inference_mode()
    def _read(self, readings: list[HiddenStateRequest]) -> list[tuple[HiddenStateRequest, torch.Tensor]]:
        """Run one pass over a share of the prompts whose hidden states are asked for; return those that are
        complete."""
        work, room = [], self._pass_tokens
        for reading in readings:
            if reading.slot is not None and reading in self._sequences and room > 0:
                missing = self._slots.count_missing(reading)
                work.append((reading, min(missing, room)))
                room -= missing
        if not work:
            return []
        slots, starts, tokens = self._parts(work)
        states = self._runner.states(slots, starts, tokens, [reading.depth for reading, _ in work]).float().cpu()
        self._record_pass(slots, tokens)
        return [
            (reading, state.clone())
            for (reading, _), state in zip(work, states, strict=True)
            if not self._slots.count_missing(reading)
        ]

    def _parts(
        self, work: Sequence[tuple[SequenceState | HiddenStateRequest, int]]
    ) -> tuple[list[int], list[int], list[list[int]]]:
        """Collect the slots, how many tokens they hold, and the tokens that come next."""
        slots = [sequence.slot or SCRATCH for sequence, _ in work]
        starts = [len(self._slots.held[slot]) for slot in slots]
        return slots, starts, [s.ids[start : start + count] for (s, count), start in zip(work, starts, strict=True)]

    def _record_pass(self, slots: list[int], tokens: list[list[int]]) -> None:
        """Note the tokens that a pass added to slots."""
        self.passes += 1
        for slot, row in zip(slots, tokens, strict=True):
            self._slots.held[slot] += row
            self.read_tokens += len(row)

    def _decode(self, work: list[tuple[SequenceState, int]]) -> list[tuple[SequenceState, Step | EngineError]]:
        """Run one pass that adds so many tokens to each sequence, and draw for those that are complete."""
        if not work:
            return []
        slots, starts, tokens = self._parts(work)
        places = {
            i: sequence.read_at - start
            for i, ((sequence, count), start) in enumerate(zip(work, starts, strict=True))
            if sequence.read_at is not None and start <= sequence.read_at < start + count
        }
        recording: AbstractContextManager[list[Decision]] = (
            nullcontext([]) if self._routed is None else self._routed.recorder.recording()
        )
        with recording as decisions:
            if places:
                logits, states = self._runner.extend_and_read(slots, starts, tokens, places)
                for i, state in states.items():
                    work[i][0].state = state.float().cpu().clone()
            else:
                logits = self._runner.extend(slots, starts, tokens)
        if self._routed is not None:
            routing = self._routed.entropies(decisions, [len(row) - 1 for row in tokens])
            for (sequence, _), value in zip(work, routing, strict=True):
                sequence.routing = value
        self._record_pass(slots, tokens)
        ready = [i for i, (sequence, _) in enumerate(work) if not self._slots.count_missing(sequence)]
        if not ready:
            return []
        return self._draw([work[i][0] for i in ready], logits if len(ready) == len(work) else logits[ready])

    def _draw(
        self, sequences: list[SequenceState], logits: torch.Tensor
    ) -> list[tuple[SequenceState, Step | EngineError]]:
        """Draw a token for each sequence from its row of logits, and measure the raw distribution."""
        logits = self._raw(logits)
        self._mask(logits, sequences)
        rows = [sequence.row for sequence in sequences]
        entropy = shannon_entropy(logits) if any(adapts(row.sampling.transforms) for row in rows) else None
        drawn = draw(logits, rows, self._geometry, entropy)
        steps = self._measure(logits, drawn.tokens, [s.sampling.top_logprobs for s in sequences], entropy)
        if drawn.kept is not None and drawn.crop_entropy is not None:
            crops = zip(steps, drawn.kept.tolist(), drawn.crop_entropy.tolist(), strict=True)
            steps = [replace(step, kept=kept, crop_entropy=h) if kept else step for step, kept, h in crops]
        return [(sequence, self._advance(sequence, step)) for sequence, step in zip(sequences, steps, strict=True)]

    def _mask(self, logits: torch.Tensor, sequences: list[SequenceState]) -> None:
        """Bar, in place, what the grammars of sequences do not allow next."""
        guided = [(i, matcher) for i, each in enumerate(sequences) if (matcher := each.matcher) is not None]
        if guided and self._grammar is not None:
            self._grammar.mask(logits, *zip(*guided, strict=True))

    def _advance(self, sequence: SequenceState, step: Step) -> Step | EngineError:
        """Append a step's token to its sequence, unless an eager gate fires; the step with why the segment ends."""
        if math.isnan(step.entropy):
            return not_a_number(self.name)
        if sequence.matcher is not None and sequence.matcher.is_error():
            return EngineError(f"engine {self.name!r} could not follow the grammar any further")
        if sequence.state is not None:
            step, sequence.state = replace(step, state=sequence.state), None
        if sequence.routing is not None:
            step = replace(step, routing=sequence.routing)
        if self._pictures is not None and sequence.view is not None and not sequence.told:
            sequence.told = True
            step = replace(step, pruned=self._pictures.pruned(sequence.slot or SCRATCH))
        if sequence.fires_before(step.entropy):
            return sequence.gate_step(step.entropy, self.name)
        finish = sequence.accept(step.token, step.entropy, self.context_length)
        return replace(step, finish=finish) if finish else step

    def _raw(self, logits: torch.Tensor) -> torch.Tensor:
        """Convert logits to float32 and mask the output layer's padding, whose ids the tokenizer does not have."""
        logits = logits.float()
        if self.tokens.vocab_size < logits.shape[-1]:
            logits[..., self.tokens.vocab_size :] = -torch.inf
        if self.vision is not None:  # a token that stands for a picture means nothing in an answer
            logits[..., list(self.vision.marks)] = -torch.inf
        return logits

    def _measure(
        self, logits: torch.Tensor, drawn: torch.Tensor, top: Sequence[int], entropy: torch.Tensor | None = None
    ) -> list[Step]:
        """Make steps for drawn tokens, with entropies and log-probabilities of `[rows, vocab]` raw logits. `entropy`:
        `[rows]`, where it was computed already."""
        entropies = shannon_entropy(logits) if entropy is None else entropy
        logits = logits - logits.amax(-1, keepdim=True)  # likely tokens are near 0 now, where float32 is finest
        norm = logits.logsumexp(-1, keepdim=True)
        chosen = (logits.gather(-1, drawn[:, None]) - norm)[:, 0]
        columns = torch.stack([drawn.double(), chosen.double(), entropies.double()]).tolist()  # one copy to the host
        best: list[tuple[tuple[int, float], ...]] = [()] * len(top)
        if widest := min(max(top, default=0), logits.shape[-1]):
            values, indices = (logits - norm).topk(widest, dim=-1)
            rows = zip(indices.tolist(), values.tolist(), top, strict=True)
            best = [tuple(p for p in zip(i[:k], v[:k], strict=True) if p[1] > -math.inf) for i, v, k in rows]
        return [
            Step(int(token), logprob, max(entropy, 0.0), self.name, alternatives)
            for token, logprob, entropy, alternatives in zip(*columns, best, strict=True)
        ]

    def _check_text(self, ids: Sequence[int]) -> None:
        """Refuse ids as `_check`, and those that stand for pictures, as only `generate` takes these."""
        self._check(ids)
        if self.vision is not None:
            self.vision.check(ids, ())

    async def score(self, ids: Sequence[int], top_logprobs: int = 0) -> list[Step]:
        self._check_text(ids)

        @torch.inference_mode()
        def work() -> list[Step]:
            steps: list[Step] = []
            scratch, stride = SCRATCH, max(1, LOGITS // self.vocabulary)
            for start in range(0, len(ids) - 1, stride):
                read, scored = ids[start : start + stride], ids[start + 1 : start + 1 + stride]
                logits = self._raw(self._runner.read(scratch, start, list(read))[: len(scored)])
                steps += self._measure(logits, torch.tensor(scored, device=logits.device), [top_logprobs] * len(scored))
            if any(math.isnan(step.entropy) for step in steps):
                raise not_a_number(self.name)
            return steps

        return await self._in_thread(work)

    @property
    def exposes(self) -> frozenset[Inside]:
        return frozenset(("hidden_state", "hidden_states", "attention"))

    async def hidden_state(self, ids: Sequence[int], depth: float | None = None) -> torch.Tensor:
        self._check_text(ids)
        reading = HiddenStateRequest(ids, depth)
        self._sequences.append(reading)
        self._start()
        try:
            item = await reading.inbox.get()
        finally:
            self._leave(reading)
        if isinstance(item, Exception):
            raise item
        return item

    async def attention(self, ids: Sequence[int], start: int) -> torch.Tensor:
        self._check_text(ids)

        @torch.inference_mode()
        def work() -> torch.Tensor:
            inputs = torch.tensor([list(ids)], device=self.model.device)
            with last_attention(self.model) as seen:
                self.model.base_model(input_ids=inputs, use_cache=False)
            if not seen:
                raise Unsupported(f"{self.name!r} has no attention weights that could be read", "policy")
            return seen[-1][0, :, start:].float().cpu().clone()

        return await self._in_thread(work)

    def embedding_matrix(self) -> torch.Tensor:
        weight = cast(torch.Tensor, self.model.get_input_embeddings().weight)
        return weight.detach()

    async def aclose(self) -> None:
        self._closed = True
        if self._scheduler is not None:
            self._scheduler.cancel()
        for sequence in self._sequences:
            sequence.inbox.put_nowait(EngineError(f"engine {self.name!r} was closed"))
        self._sequences.clear()
        await asyncio.to_thread(self._thread.shutdown)
