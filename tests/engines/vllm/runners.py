"""vLLM's two model runners without a model: its own classes keep the batch, and say what a processor is told of it.

What only a GPU can do is done on the host: the one Triton kernel that writes staged values, and pinned memory. Where
vLLM cannot be had, the test modules that import this one are skipped with its reason.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.engines.vllm_here import needs_vllm

if needs_vllm.args[0]:
    pytest.skip(needs_vllm.kwargs["reason"], allow_module_level=True)

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor, LogitsProcessors
from vllm.v1.sample.sampler import Sampler as SamplerV1
from vllm.v1.worker.gpu import buffer_utils
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcRequestState
from vllm.v1.worker.gpu.sample.sampler import Sampler as SamplerV2
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from waver.engines.vllm.plugin import WaverProcessor

KINDS = ("V1", "V1 asynchronous", "V2")
CAPACITY = 16
LONGEST = 96
CPU = torch.device("cpu")


@dataclass
class Sent:
    """A request as the scheduler knows it. `lengths` are those that its next chunks of prefill reach, the last one
    all; `output` are the tokens that were delivered."""

    name: str
    params: SamplingParams
    prompt: list[int] | None
    output: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        return EMBEDDED if self.prompt is None else len(self.prompt)

    @property
    def partial(self) -> bool:
        """Return whether the token of the coming step is thrown away."""
        return bool(self.lengths) and self.lengths[0] < self.size + len(self.output)


EMBEDDED = 3
"""Positions of a prompt that is given as embeddings."""


class _Spy(LogitsProcessor):
    """Comes after the plugin and keeps what it left."""

    def __init__(self) -> None:
        self.seen = torch.empty(0)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        pass

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        self.seen = logits.clone()
        return logits


class V1:
    """The legacy runner: `gpu_model_runner._update_states`, around vLLM's own `InputBatch` and `Sampler`.

    asynchronous: the output tokens are placeholders, and a request that comes back has a new list of them.
    """

    def __init__(self, config: Any, asynchronous: bool = False) -> None:
        self.adapter = WaverProcessor(config, CPU, False)
        self._asynchronous, self._spy, self._sampler = asynchronous, _Spy(), SamplerV1()
        self._batch = InputBatch(
            CAPACITY, LONGEST, LONGEST, CPU, config.model_config.get_vocab_size(), [16], [LONGEST // 16],
            logitsprocs=LogitsProcessors([self.adapter, self._spy]),
        )  # fmt: skip
        self._cached: dict[str, CachedRequestState] = {}

    def update(self, leaving: Sequence[str], joining: Sequence[Sent], swaps: Sequence[tuple[int, int]] = ()) -> None:
        """One step's changes: who leaves, who joins (again), and rows that change places."""
        for name in leaving:
            self._batch.remove_request(name)
        for sent in joining:
            if sent.name not in self._cached:
                self._cached[sent.name] = CachedRequestState(
                    req_id=sent.name, prompt_token_ids=sent.prompt, mm_features=[], generator=None, block_ids=([],),
                    sampling_params=pickle.loads(pickle.dumps(sent.params)), num_computed_tokens=0, output_token_ids=[],
                    prompt_embeds=None if sent.prompt is not None else torch.zeros(EMBEDDED, 4),
                )  # fmt: skip
            cached = self._cached[sent.name]
            if self._asynchronous and sent.output:
                cached.output_token_ids = list(sent.output)
            del cached.output_token_ids[len(sent.output) :]
            self._batch.add_request(cached)
        self._batch.condense()
        for one, other in swaps:
            self._batch.swap_states(one % self._batch.num_reqs, other % self._batch.num_reqs)
        self._batch.refresh_metadata()

    @property
    def rows(self) -> list[str]:
        return list(self._batch.req_ids)

    def step(self, logits: torch.Tensor, sent: Sequence[Sent]) -> tuple[torch.Tensor, list[int]]:
        """Run the plugin on `[rows, vocab]` logits; return the logits, and the tokens that vLLM's sampler then
        takes."""
        sampled = self._sampler(logits, self._batch.sampling_metadata).sampled_token_ids[:, 0].tolist()
        return self._spy.seen, sampled

    def keep(self, sent: Sent, token: int) -> None:
        """The token of a row is kept."""
        self._cached[sent.name].output_token_ids.append(-1 if self._asynchronous else token)
        self._batch.num_tokens_no_spec[self._batch.req_id_to_index[sent.name]] += 1


class _Kernel:
    """`_apply_write_kernel` on the host."""

    def __getitem__(self, grid: Any) -> _Kernel:
        return self

    def __call__(
        self, out: Any, stride: int, rows: Any, starts: Any, contents: Any, ends: Any, group: Any, **_: Any
    ) -> None:
        begin = 0
        for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
            place = out[row : row + 1] if out.dim() == 1 else out[row, start : start + end - begin]
            place.copy_(contents[begin:end])
            begin = end


class V2:
    """Model Runner V2: `GPUModelRunner.add_requests` and `finish_requests`, and its `Sampler` up to the draw."""

    def __init__(self, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)
        monkeypatch.setattr(buffer_utils, "_apply_write_kernel", _Kernel())
        vocabulary = config.model_config.get_vocab_size()
        self._states = RequestState(CAPACITY, LONGEST, LONGEST, 0, vocabulary, CPU)
        self.adapter = WaverProcessor(config, LogitsProcRequestState.from_request_state(self._states))
        self._sampler = SamplerV2(
            config, CAPACITY, vocabulary, CPU, self._states, custom_logits_processors=[self.adapter]
        )
        aside = SimpleNamespace(
            add_request=lambda *_: None, remove_request=lambda *_: None, apply_staged_writes=lambda: None,
            append_block_ids=lambda *_, **__: None,
        )  # fmt: skip
        self._runner: Any = SimpleNamespace(
            req_states=self._states, sampler=self._sampler, is_last_pp_rank=True, model_state=aside, lora_state=aside,
            block_tables=aside, prompt_logprobs_worker=aside, pooling_runner=None, adaptive_verification=None,
            encoder_cache=None, pp_handler=None,
        )  # fmt: skip
        self._runner._remove_request = lambda name: GPUModelRunner._remove_request(self._runner, name)
        self._order: list[str] = []

    def update(self, leaving: Sequence[str], joining: Sequence[Sent], swaps: Sequence[tuple[int, int]] = ()) -> None:
        out = SimpleNamespace(finished_req_ids=set(leaving), preempted_req_ids=None, scheduled_new_reqs=[])
        GPUModelRunner.finish_requests(self._runner, out)
        for sent in joining:
            new = SimpleNamespace(
                req_id=sent.name, prompt_len=sent.size, num_computed_tokens=0, mm_features=[], block_ids=([],),
                prefill_token_ids=[*(sent.prompt or [0] * EMBEDDED), *sent.output],
                sampling_params=pickle.loads(pickle.dumps(sent.params)), pooling_params=None, lora_request=None,
            )  # fmt: skip
            out.scheduled_new_reqs.append(new)
        GPUModelRunner.add_requests(self._runner, out)
        self._order = list(self._states.req_id_to_index)
        for one, other in swaps:  # rows come in a new order in every step
            i, j = one % len(self._order), other % len(self._order)
            self._order[i], self._order[j] = self._order[j], self._order[i]

    def pause(self, names: set[str]) -> None:
        """These are not scheduled in the coming step, and keep their slots."""
        self._order = [name for name in self._order if name not in names]

    @property
    def rows(self) -> list[str]:
        return self._order

    def step(self, logits: torch.Tensor, sent: Sequence[Sent]) -> tuple[torch.Tensor, list[int]]:
        slots = np.array([self._states.req_id_to_index[name] for name in self._order], dtype=np.intp)
        reach = [s.lengths[0] if s.lengths else s.size + len(s.output) for s in sent]
        padded = np.zeros(CAPACITY, dtype=np.int32)
        padded[: len(reach)] = reach
        mapping = torch.from_numpy(slots).long()
        seen = self._sampler.apply_sampling_params(
            logits, mapping, mapping, slots, torch.tensor(reach) - 1, torch.zeros(len(reach), dtype=torch.int32),
            torch.zeros(len(reach), dtype=torch.int32), padded, skip_top_k_top_p=True,
        )  # fmt: skip
        return seen, seen.argmax(-1).tolist()

    def keep(self, sent: Sent, token: int) -> None:
        slot = self._states.req_id_to_index[sent.name]
        self._states.all_token_ids.gpu[slot, sent.size + len(sent.output)] = token
