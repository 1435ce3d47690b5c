"""Adapters of vLLM's two logits-processor interfaces to the `Decoder`, one for each of its model runners.

What they see: in the V1 runner the logits after vLLM's bias and before its penalties and temperature, in the V2 runner
after its penalties too. Waver's engine leaves bias and penalties to the `Decoder`, so the raw logits are the same in
both; a client of a stock server that asks for penalties has them in its entropies under V2, and not under V1.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from vllm import SamplingParams
from vllm.logger import init_logger
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor import LogitsProcessor as V1Processor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2Processor

from waver.engines.grammar import Grammar
from waver.engines.vllm.admission import ELSEWHERE, SHARDED, admit, load_tokens
from waver.engines.vllm.decoder import Decoder
from waver.engines.vllm.frames import hidden_states, request_id
from waver.engines.vllm.params import KEY, RequestParams
from waver.engines.vllm.ring import ring_path
from waver.engines.vllm.state import BatchRow, RequestState
from waver.engines.weights import input_embeddings
from waver.entropy.geometry import whiten

log = init_logger("vllm.waver")


def make_decoder(vllm_config: Any, capacity: int, device: torch.device) -> Decoder | None:
    """Make the decoder of a worker; None where the model has no usable tokenizer: requests that need the decoder are
    refused at admission then.

    Raises:
        ValueError: this worker could not report to Waver's own engine.
    """
    from vllm.distributed import get_tensor_model_parallel_rank

    model = vllm_config.model_config
    ring = ring_path(vllm_config)
    if ring is not None and vllm_config.parallel_config.enable_batch_sharded_sampling:
        raise ValueError(SHARDED)
    if get_tensor_model_parallel_rank() != 0:
        ring = None  # every rank of a group computes the same
    if ring is not None and not ring.exists():
        raise ValueError(ELSEWHERE)
    vocabulary = model.get_vocab_size()

    try:
        tokens = load_tokens(model, model.try_get_generation_config())
    except ValueError as error:
        log.warning("Waver refuses gates and transforms: %s", error)
        return None
    return Decoder(
        capacity,
        vocabulary,
        tokens.vocab_size,
        device,
        ring,
        partial(Grammar, tokens, vocabulary),
        lambda: whiten_on(input_embeddings(model.model, model.revision)[:vocabulary], device),
    )


def whiten_on(matrix: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Whiten embeddings on the device where it has room for them, else in the host's memory, which is slower."""
    try:
        return whiten(matrix.to(device))
    except torch.OutOfMemoryError:
        return whiten(matrix)


def _decoded(params: SamplingParams) -> RequestParams | None:
    """Decode the parameters of a request; None where it asks for nothing."""
    given = (params.extra_args or {}).get(KEY)
    return None if given is None else RequestParams.decode(given)


class V1Adapter(V1Processor):  # type: ignore[misc]
    """Adapts the legacy runner (on a CPU the only one): requests have indices in a batch, which is compacted as it
    changes."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._decoder = make_decoder(vllm_config, vllm_config.scheduler_config.max_num_seqs, device)
        self._batch: dict[int, tuple[RequestState, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None or self._decoder is None:
            return
        # A request that comes back in this very step may have had any index, so all leave before any joins. (A request
        # that was removed and whose index was filled again is not among the removed.)
        filled = [added[0] for added in batch_update.added]
        filled += [target for _, target, kind in batch_update.moved if kind == MoveDirectionality.UNIDIRECTIONAL]
        for index in (*batch_update.removed, *filled):
            if (found := self._batch.pop(index, None)) is not None:
                self._decoder.leave(found[0])
        for index, params, prompt, written in batch_update.added:
            if (wanted := _decoded(params)) is not None:
                ids = prompt or []
                given = partial(_tokens, ids, written, len(written))
                state = self._decoder.join(wanted, len(ids), len(written), given, params)
                self._batch[index] = (state, written)
        for source, target, _ in batch_update.moved:
            moving, displaced = self._batch.pop(source, None), self._batch.pop(target, None)
            if displaced is not None:
                self._batch[source] = displaced
            if moving is not None:
                self._batch[target] = moving

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self._decoder is None or not self._batch:
            return logits
        rows = sorted(self._batch.items())
        self._decoder.apply(
            logits, [BatchRow(row, state, len(written)) for row, (state, written) in rows], hidden_states
        )
        return logits


def _tokens(prompt: list[int], written: list[int], count: int) -> list[int]:
    """Join the prompt and the first tokens that were written."""
    return [*prompt, *written[:count]]


class V2Adapter(V2Processor):  # type: ignore[misc]
    """Adapts Model Runner V2 (the default on a GPU): requests have slots, and each step says which slot a row belongs
    to."""

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:
        if vllm_config.speculative_config is not None:
            self._decoder = None  # requests that ask are refused at admission
            return
        self._decoder = make_decoder(vllm_config, req_states.max_num_reqs, req_states.device)
        self._states = req_states
        self._slots: dict[int, RequestState] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        admit(sampling_params)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        if self._decoder is None:
            return False
        origin = request_id()
        # vLLM does not say which requests leave: that of this slot has left, and one that comes back has left another.
        stale = [s for s, state in self._slots.items() if s == req_idx or (origin and state.origin is origin)]
        for slot in stale:
            self._decoder.leave(self._slots.pop(slot))
        params = _decoded(sampling_params)
        if params is None:
            return False
        length, given = int(self._states.prompt_len.np[req_idx]), int(self._states.prefill_len.np[req_idx])
        prompt = partial(self._ids, req_idx, given)
        self._slots[req_idx] = self._decoder.join(params, length, given - length, prompt, origin)
        return True

    def _ids(self, slot: int, length: int) -> list[int]:
        ids: list[int] = self._states.all_token_ids.gpu[slot, :length].tolist()
        return ids

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        if self._decoder is None or not self._slots:
            return logits
        batch = []
        for row, slot in enumerate(ctx.idx_mapping_np.tolist()):
            state, length = self._slots.get(slot), int(ctx.seq_lens_upper_bound_np[row])
            # In the middle of a prompt, or of what was written before a preemption, there is nothing to draw.
            if state is not None and length >= self._states.prefill_len.np[slot]:
                batch.append(BatchRow(row, state, length - state.prompt_length))
        self._decoder.apply(logits, batch, hidden_states)
        return logits
