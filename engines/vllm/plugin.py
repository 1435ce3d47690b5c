"""vLLM's two logits-processor interfaces, in front of one `Decoder`. A stock `vllm serve` finds `WaverProcessor` by the
entry-point group `vllm.logits_processors`, as Waver's own engine does.

What it sees: in the V1 runner the logits after vLLM's bias and before its penalties and temperature, in the V2 runner
after its penalties too. Waver's engine leaves bias and penalties to the `Decoder`, so the raw logits are the same in
both; a client of a stock server that asks for penalties has them in its entropies under V2, and not under V1.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from types import FrameType
from typing import Any

import torch
from vllm import SamplingParams
from vllm.logger import init_logger
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor import LogitsProcessor as V1Processor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2Processor

from waver.engines.base import reason
from waver.engines.grammar import Grammar
from waver.engines.tokens import TokenText
from waver.engines.transforms import needs_geometry
from waver.engines.vllm.ask import KEY, Ask, Settled
from waver.engines.vllm.board import posted
from waver.engines.vllm.decoder import Decoder, Live, Place, States
from waver.engines.weights import embedding, embedding_flaw
from waver.entropy.geometry import whiten

log = init_logger("vllm.waver")

SHARDED = "batch-sharded sampling gives each worker other requests from step to step, so none can follow one of them"

ELSEWHERE = (
    "entropies have no way to Waver from a worker on another machine; for a model across machines "
    "run `vllm serve` with Waver's plugin, and name it in Waver's configuration with `backend: openai`"
)


class WaverProcessor(V1Processor, V2Processor):  # type: ignore[misc]
    """What vLLM loads. One entry point serves both runners: made with V1's arguments it becomes V1's adapter, made with
    V2's arguments V2's."""

    def __new__(cls, vllm_config: Any, *where: Any) -> Any:
        return V1Adapter(vllm_config, *where) if len(where) == 2 else V2Adapter(vllm_config, *where)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Check what a request asks of us, and settle what it leaves open. vLLM calls this at admission.

        Raises:
            ValueError: the request cannot be served; vLLM answers 400 with the message.
        """
        extra = sampling_params.extra_args or {}
        if KEY not in extra or isinstance(extra[KEY], Settled):
            return
        ask = Ask.from_client(extra[KEY])
        front = _input_processor()
        if front.speculative_config is not None:
            raise ValueError(
                f"{KEY}: gates and transforms do not work with speculative decoding, which reads several positions at "
                "once; start the server without --speculative-config"
            )
        if front.vllm_config.parallel_config.enable_batch_sharded_sampling:
            raise ValueError(f"{KEY}: {SHARDED}")
        if ask.gate is not None and sampling_params.structured_outputs is not None:
            raise ValueError(
                f"{KEY}: a gate and structured outputs do not go together: the token that ends a request when its gate "
                "fires is none that the grammar allows"
            )
        try:
            text = _text(front.model_config, front.generation_config_fields)
        except ValueError as error:
            raise ValueError(f"{KEY}: {error}") from error
        if ask.gate is not None:
            stop = reserved_token(text, front.model_config.get_vocab_size())
            sampling_params.stop_token_ids = [*(sampling_params.stop_token_ids or []), stop]
            sampling_params._all_stop_token_ids.add(stop)
            floor = max(ask.gate.min_tokens, sampling_params.min_tokens)
            ask = replace(ask, stop=stop, gate=replace(ask.gate, min_tokens=floor))
        if needs_geometry(ask.transforms):
            model = front.model_config
            # In the worker it would be the end of every request.
            if flaw := embedding_flaw(model.model, model.revision, model.get_vocab_size()):
                raise ValueError(f"{KEY}.transforms: top_w needs the model's embeddings, and {flaw}")
        ask = replace(ask, temperature=sampling_params.temperature)
        extra[KEY] = replace(ask, tag=secrets.randbits(31)).settled()


def reserved_token(tokens: TokenText, vocabulary: int) -> int:
    """The token that ends a request whose gate fired: one that no text needs. An id that pads the output layer where
    there is one, else a control token that ends nothing and that the output layer has.

    Raises:
        ValueError: every id of this model has a use.
    """
    if vocabulary > tokens.vocab_size:
        return tokens.vocab_size
    spare = [tokens.tokenizer.pad_token_id, tokens.tokenizer.unk_token_id, tokens.tokenizer.bos_token_id]
    for token in (*spare, *sorted(tokens.tokenizer.added_tokens_decoder)):
        if token is not None and token < vocabulary and token not in tokens.eos_ids and tokens.is_special(token):
            return int(token)
    raise ValueError("this model's tokenizer has no spare control token to end a request with, so gates cannot be used")


def _input_processor() -> Any:
    """The object of vLLM's that is checking a request. The hook gets the request alone, and what can be asked depends
    on how the server was started, so the caller's frame is asked."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        found = frame.f_locals.get("self")
        if hasattr(found, "speculative_config") and hasattr(found, "get_tokenizer"):
            return found
    raise ValueError(f"{KEY}: this version of vLLM checks requests in a way that the plugin does not know")


def _text(model: Any, generation: Mapping[str, Any] | None) -> TokenText:
    """The tokenizer of a model, from vLLM's configurations of it.

    Raises:
        ValueError: there is none that could be used, and so no gates or transforms.
    """
    ends = (generation or {}).get("eos_token_id")
    ends = tuple(ends) if isinstance(ends, list) else ends
    try:
        return _loaded(model.tokenizer, ends, model.tokenizer_revision, model.trust_remote_code)
    except Exception as error:  # transformers and the tokenizers each raise their own kinds
        raise ValueError(f"gates and transforms need the model's tokenizer: {reason(error)}") from error


@lru_cache(maxsize=4)
def _loaded(source: str, ends: int | tuple[int, ...] | None, revision: str | None, trusted: bool) -> TokenText:
    return TokenText.load(source, ends, revision=revision, trust_remote_code=trusted)


def _decoder(vllm_config: Any, capacity: int, device: torch.device) -> Decoder | None:
    """None where the model has no tokenizer to be used: requests that ask are refused at admission, and no other needs
    one.

    Raises:
        ValueError: Waver's own engine could not be told of what happens here.
    """
    from vllm.distributed import get_tensor_model_parallel_rank

    model = vllm_config.model_config
    board = posted(vllm_config)
    if board is not None and vllm_config.parallel_config.enable_batch_sharded_sampling:
        raise ValueError(SHARDED)
    if get_tensor_model_parallel_rank() != 0:
        board = None  # every rank of a group computes the same
    if board is not None and not board.exists():
        raise ValueError(ELSEWHERE)
    vocabulary = model.get_vocab_size()

    try:
        tokens = _text(model, model.try_get_generation_config())
    except ValueError as error:
        log.warning("Waver refuses gates and transforms: %s", error)
        return None
    return Decoder(
        capacity,
        vocabulary,
        tokens.vocab_size,
        device,
        board,
        partial(Grammar, tokens, vocabulary),
        lambda: _geometry(embedding(model.model, model.revision)[:vocabulary], device),
    )


def _geometry(matrix: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The embeddings whitened: on the device where it has room for them, else in the host's memory, which is slower."""
    try:
        return whiten(matrix.to(device))
    except torch.OutOfMemoryError:
        return whiten(matrix)


def _request_id() -> str | None:
    """The request that Model Runner V2 is adding: it passes on a slot, which another request may have had before, and
    a copy of the parameters, which several choices share. Only its frame knows the name."""
    frame = sys._getframe(2).f_back
    name = None if frame is None else frame.f_locals.get("req_id")
    return sys.intern(str(name)) if name is not None else None


def _states() -> States | None:
    """The hidden states of a step: vLLM hands on the logits alone, and both of its runners hold by these names what
    they made them of. None where they are not to be found so."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        here = frame.f_locals
        if isinstance(found := here.get("sample_hidden_states"), torch.Tensor):
            starts = getattr(here.get("input_batch"), "query_start_loc_np", None)  # V2
            if starts is None:
                starts = getattr(getattr(here.get("self"), "query_start_loc", None), "np", None)
            every = here.get("hidden_states")
            return States(found, every if isinstance(every, torch.Tensor) else None, starts)
        frame = frame.f_back
    return None


def _ask(params: SamplingParams) -> Ask | None:
    given = (params.extra_args or {}).get(KEY)
    return None if given is None else Ask.from_settled(given)


class V1Adapter(V1Processor):  # type: ignore[misc]
    """The legacy runner (on a CPU the only one): requests have indices in a batch, which is compacted as it changes."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._decoder = _decoder(vllm_config, vllm_config.scheduler_config.max_num_seqs, device)
        self._batch: dict[int, tuple[Live, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None or self._decoder is None:
            return
        # Who comes back in this very step may have been anywhere, so all leave before anyone joins. (A request that was
        # removed and whose place was filled again is not among the removed.)
        filled = [added[0] for added in batch_update.added]
        filled += [target for _, target, kind in batch_update.moved if kind == MoveDirectionality.UNIDIRECTIONAL]
        for index in (*batch_update.removed, *filled):
            if (found := self._batch.pop(index, None)) is not None:
                self._decoder.leave(found[0])
        for index, params, prompt, written in batch_update.added:
            if (ask := _ask(params)) is not None:
                ids = prompt or []
                given = partial(_tokens, ids, written, len(written))
                live = self._decoder.join(ask, len(ids), len(written), given, params)
                self._batch[index] = (live, written)
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
        self._decoder.apply(logits, [Place(row, live, len(written)) for row, (live, written) in rows], _states)
        return logits


def _tokens(prompt: list[int], written: list[int], count: int) -> list[int]:
    return [*prompt, *written[:count]]


class V2Adapter(V2Processor):  # type: ignore[misc]
    """Model Runner V2 (the default on a GPU): requests have slots, and each step says which slot a row belongs to."""

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:
        if vllm_config.speculative_config is not None:
            self._decoder = None  # requests that ask are refused at admission
            return
        self._decoder = _decoder(vllm_config, req_states.max_num_reqs, req_states.device)
        self._states = req_states
        self._slots: dict[int, Live] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        WaverProcessor.validate_params(sampling_params)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        if self._decoder is None:
            return False
        origin = _request_id()
        # Nobody says who leaves: whoever was in this slot has left, and who comes back has left another one.
        stale = [s for s, live in self._slots.items() if s == req_idx or (origin and live.origin is origin)]
        for slot in stale:
            self._decoder.leave(self._slots.pop(slot))
        ask = _ask(sampling_params)
        if ask is None:
            return False
        length, given = int(self._states.prompt_len.np[req_idx]), int(self._states.prefill_len.np[req_idx])
        prompt = partial(self._ids, req_idx, given)
        self._slots[req_idx] = self._decoder.join(ask, length, given - length, prompt, origin)
        return True

    def _ids(self, slot: int, length: int) -> list[int]:
        ids: list[int] = self._states.all_token_ids.gpu[slot, :length].tolist()
        return ids

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        if self._decoder is None or not self._slots:
            return logits
        batch = []
        for row, slot in enumerate(ctx.idx_mapping_np.tolist()):
            live, length = self._slots.get(slot), int(ctx.seq_lens_upper_bound_np[row])
            # In the middle of a prompt, or of what was written before a preemption, there is nothing to draw.
            if live is not None and length >= self._states.prefill_len.np[slot]:
                batch.append(Place(row, live, length - live.length))
        self._decoder.apply(logits, batch, _states)
        return logits
