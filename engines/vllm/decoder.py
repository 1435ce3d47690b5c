"""Keep the requests of one vLLM worker, for both of vLLM's logits-processor interfaces.

An adapter (`waver.engines.vllm.adapters`) says which requests join and leave the batch, and which rows of a step's
logits belong to them at which positions; `waver.engines.vllm.batch_pass` acts on these rows. A position may be
measured more than once (a chunk of a prompt that is not the last yields logits whose token is thrown away, and a
preempted request comes back), so whatever is stored is stored by position, and the last time counts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from waver.engines.grammar import Grammar
from waver.engines.inverse_cdf import warm_up
from waver.engines.vllm.batch_pass import Pass, Resources
from waver.engines.vllm.gate_windows import GateWindows
from waver.engines.vllm.params import RequestParams
from waver.engines.vllm.ring import RingWriter
from waver.engines.vllm.state import BatchRow, HiddenStates, RequestState
from waver.entropy import fastest_measure


class Decoder:
    """Keeps the state of each request, also for a while after it was preempted.

    Args:
        capacity: most requests in a batch. vocabulary: width of the logits. known: tokens that the tokenizer knows;
            ids from there on are padding.
        ring: file of the ring buffer to report to; None for a worker that does not report (another rank of its
            tensor-parallel group does).
        grammar, geometry: make the compiler of JSON schemas, and the whitened embeddings (`[vocab, dim]`), when a
            row first needs them.
    """

    def __init__(
        self,
        capacity: int,
        vocabulary: int,
        known: int,
        device: torch.device,
        ring: Path | None = None,
        grammar: Callable[[], Grammar] | None = None,
        geometry: Callable[[], torch.Tensor] | None = None,
    ) -> None:
        warm_up(device)
        # Twice the batch: a request that was preempted keeps its window until others need it.
        self._windows = GateWindows(2 * capacity, device)
        self._free = list(range(2 * capacity))
        self._left: OrderedDict[int, RequestState] = OrderedDict()
        self._most_left = capacity
        self._resources = Resources(
            device=device,
            known=known,
            measure=fastest_measure(vocabulary, device, capacity),
            windows=self._windows,
            ring=RingWriter(ring, device) if ring else None,
            grammar=None if grammar is None else cache(grammar),
            geometry=None if geometry is None else cache(geometry),
        )

    @property
    def nbytes(self) -> int:
        """Memory of the state on the device, in bytes."""
        return self._windows.nbytes

    def join(
        self,
        params: RequestParams,
        length: int,
        written: int,
        prompt: Callable[[], Sequence[int]],
        origin: object = None,
    ) -> RequestState:
        """Add a request to the batch, for the first time or again after a preemption.

        Args:
            length: tokens of its prompt. written: tokens that vLLM has generated for it.
            prompt, origin: see `RequestState`.
        """
        state = self._find_left(params, written, origin)
        if state is None:
            state = RequestState(params, length, prompt, origin)
            if params.gate is not None:
                state.window = self._free.pop() if self._free else self._take_oldest_window()
                self._windows.begin(state.window, params.gate, written)
        return state

    def leave(self, state: RequestState) -> None:
        """Remove a request that is finished or preempted; vLLM does not say which."""
        self._left[id(state)] = state
        while len(self._left) > self._most_left:
            self._forget(next(iter(self._left.values())))

    def _forget(self, state: RequestState) -> None:
        del self._left[id(state)]
        if state.window >= 0:
            self._free.append(state.window)

    def _take_oldest_window(self) -> int:
        self._forget(next(state for state in self._left.values() if state.window >= 0))
        return self._free.pop()

    def _find_left(self, params: RequestParams, written: int, origin: object) -> RequestState | None:
        """Find the state of a request that left with this origin, or with this tag where no origin is known. Of several
        (choices of one request) the one with as many tokens, else the one that left last."""
        same = [
            state
            for state in reversed(self._left.values())
            if (state.origin is origin if origin is not None else state.params.tag == params.tag)
        ]
        if not written:  # it starts anew, and what it left behind must not be found later
            for state in same:
                if origin is not None and state.position <= 0:
                    self._forget(state)
            return None
        found = next((state for state in same if state.position == written - 1), same[0] if same else None)
        if found is not None:
            del self._left[id(found)]
        return found

    def apply(
        self, logits: torch.Tensor, batch: Sequence[BatchRow], states: Callable[[], HiddenStates | None] = lambda: None
    ) -> None:
        """Act on the logits of a step, in place.

        Args:
            logits: `[rows, vocab]` float32, the model's own; a grammar's mask and a bias of vLLM's are in them.
            batch: the rows whose requests ask for something, in ascending order.
            states: finds the hidden states behind the logits; called where a request asks for its own.
        """
        if batch:
            Pass(self._resources, logits, batch).run(states)
