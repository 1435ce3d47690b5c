"""One decoding step of a vLLM batch: measure the rows' entropies, run their gates, draw, truncate and report.

Arrays are those of `waver.devices.array_namespace`: NumPy's beside a CPU's logits, torch's on a device. Nothing here
waits for the device, and what no row asks for is left out: a step of a few rows takes as long as the number of its
kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from waver.devices import array_namespace, as_array, make_array, to_device
from waver.engines.grammar import Grammar
from waver.engines.sampling import draw
from waver.engines.temperature import adapted_temperatures
from waver.engines.transforms import truncate
from waver.engines.vllm.gate_windows import GateWindows
from waver.engines.vllm.ring import BROKEN, COMPLETE, TOP, RingWriter
from waver.engines.vllm.state import BatchRow, HiddenStates

NO_REQUEST = -1
"""The tag of a hidden state that belongs to no request, as its token was read in an earlier step."""
FORCED = 1e30
"""The logit of a token that must be taken: beyond any other, and finite after any temperature."""


@dataclass(frozen=True, slots=True)
class Resources:
    """The objects that all steps of a worker share.

    `known` is the number of tokens that the tokenizer knows; `measure` gives entropy, log-partition and peak of rows of
    logits (`waver.entropy.fused`). `ring` is None in a worker that does not report. `grammar` and `geometry` give the
    compiler of JSON schemas and the whitened embeddings.
    """

    device: torch.device
    known: int
    measure: Callable[[Any], tuple[Any, ...]]
    windows: GateWindows
    ring: RingWriter | None
    grammar: Callable[[], Grammar] | None
    geometry: Callable[[], torch.Tensor] | None


class Pass:
    """Acts, in place, on the logits of a step: `[rows, vocab]` float32.

    `batch` are the rows whose requests ask for something, at least one, in ascending order. They are counted from 0 in
    what follows; `_logit_rows` gives their places among all rows of the logits.
    """

    __slots__ = (
        "_batch", "_crop", "_device", "_entropy", "_flags", "_gated", "_index", "_log_partition", "_logits",
        "_logprobs", "_mine", "_peak", "_resources", "_top", "_values",
    )  # fmt: skip

    def __init__(self, resources: Resources, logits: torch.Tensor, batch: Sequence[BatchRow]) -> None:
        self._resources, self._device = resources, resources.device
        self._logits, self._batch = logits, batch
        self._values = as_array(logits)
        # Most often every row asks, and then no row has to be picked or copied.
        whole = len(batch) == logits.shape[0]
        self._index: Any = None if whole else make_array([row.row for row in batch], self._device)
        self._gated = [i for i, row in enumerate(batch) if row.state.window >= 0]
        self._flags: Any = None
        self._crop: tuple[Any, Any] | None = None
        for row in batch:
            row.state.position = row.position

    def run(self, states: Callable[[], HiddenStates | None]) -> None:
        """Do all steps, in their order. `states` finds the hidden states behind the logits."""
        self.mask()
        self.measure()
        ends = self.gate() if self._gated else None
        self.draw()
        self.force_given()
        self.correct_argmax()
        self.cut()
        self.end_requests(ends)
        self.report()
        self.report_hidden_states(states)

    def mask(self) -> None:
        """Bar the output layer's padding, and what the requests' grammars do not allow next."""
        if self._resources.known < self._logits.shape[1]:
            every = slice(None) if self._index is None else self._index
            self._values[every, self._resources.known :] = -torch.inf
        guided = [(row, schema) for row in self._batch if (schema := row.state.schema) is not None]
        if not guided:
            return
        if self._resources.grammar is None:
            raise RuntimeError("this worker was given no tokenizer")
        grammar = self._resources.grammar()
        matchers = [row.state.matcher(grammar, schema, row.position) for row, schema in guided]
        grammar.mask(self._logits, [row.row for row, _ in guided], matchers)

    def measure(self) -> None:
        """Measure the raw distributions: entropy (nats), log-partition and peak of each row, and the alternatives."""
        self._mine = self._values if self._index is None else self._values[self._index]
        self._entropy, self._log_partition, self._peak = self._resources.measure(self._mine)
        self._logprobs = -self._log_partition  # of the likeliest token
        self._top = self._alternatives()
        if self._gated or any(row.state.params.needs_tokens for row in self._batch):
            self._flags = make_array([0] * len(self._batch), self._device)

    def gate(self) -> Any:
        """Bar the tokens that are reserved for ending requests, and run the gates. Returns which of the rows with a
        gate end here, `[n]` bool."""
        self._bar_reserved()
        which = slice(None) if len(self._gated) == len(self._batch) else make_array(self._gated, self._device)
        rows = [self._batch[i] for i in self._gated]
        ends, self._flags[which] = self._resources.windows.observe(rows, self._entropy[which])
        return ends

    def draw(self) -> None:
        """Draw the tokens of the rows that are drawn here, and leave vLLM no other to take."""
        batch, drawn = self._batch, [i for i, row in enumerate(self._batch) if row.draws]
        if not drawn:
            return
        which = make_array(drawn, self._device)
        own = self._mine if len(drawn) == len(batch) else self._mine[which]
        entropy = torch.as_tensor(self._entropy[which])
        rows = [batch[i].sampling_row for i in drawn]
        result = draw(torch.as_tensor(own), rows, self._resources.geometry, entropy)
        tokens = as_array(result.tokens)
        if result.kept is not None and result.crop_entropy is not None:
            kept, left = (make_array([0] * len(batch), self._device, kind) for kind in ("int64", "float32"))
            kept[which], left[which] = as_array(result.kept), as_array(result.crop_entropy)
            self._crop = kept, left
        self._logprobs[which] = self._logprob(which, self._mine[which, tokens])
        if any(row.state.params.needs_tokens for row in batch):
            self._record(drawn, tokens)
        self._values[self._logit_rows(which), tokens] = FORCED

    def force_given(self) -> None:
        """Have the tokens taken that requests prescribe (a text that is scored)."""
        given = [(i, token) for i, row in enumerate(self._batch) if (token := row.given) is not None]
        if given:
            which, tokens = make_array(given, self._device).T
            self._logprobs[which] = self._logprob(which, self._mine[which, tokens])
            self._values[self._logit_rows(which), tokens] = FORCED

    def correct_argmax(self) -> None:
        """Correct the log-probability of rows whose likeliest token vLLM takes: the likeliest of all may have been the
        reserved one, which is barred."""
        rows = [
            i
            for i, row in enumerate(self._batch)
            if row.state.reserves_stop and not row.draws and row.state.wants_logprobs
        ]
        if rows:
            which = make_array(rows, self._device)
            self._logprobs[which] = self._logprob(which, array_namespace(self._device).amax(self._mine[which], -1))

    def cut(self) -> None:
        """Bar what the transforms of rows that vLLM draws for take away. Transforms see the tempered distribution; vLLM
        will divide the remaining logits by its own temperature, so the ratio of an adaptive one to it is applied
        here."""
        cut = [i for i, row in enumerate(self._batch) if row.state.truncates]
        if not cut:
            return
        which = to_device(cut, self._device)
        params = [self._batch[i].state.params for i in cut]
        transforms = [each.transforms for each in params]
        base = to_device([each.temperature for each in params], self._device)
        temperatures = adapted_temperatures(base, transforms, torch.as_tensor(self._entropy)[which])
        tempered = torch.as_tensor(self._mine)[which] / temperatures[:, None]
        left = truncate(tempered, transforms, self._resources.geometry, temperatures).logits
        at = torch.as_tensor(self._logit_rows(which))
        kept = self._logits[at] if temperatures is base else self._logits[at] * (base / temperatures)[:, None]
        self._logits[at] = kept.masked_fill(left == -torch.inf, -torch.inf)

    def end_requests(self, ends: Any) -> None:
        """Force the stop token of requests whose gates end them: `ends` is what `gate` gave, None without gates."""
        # Only a CPU's values are known here without waiting; on a device the token is always written.
        if ends is None or not (array_namespace(self._device) is torch or ends.any()):
            return
        rows = self._logit_rows(make_array(self._gated, self._device))
        stops = make_array([self._batch[i].state.params.stop for i in self._gated], self._device)
        old = self._values[rows, stops]
        self._values[rows, stops] = array_namespace(self._device).where(ends, 10 * FORCED, old)

    def report(self) -> None:
        """Write an entry for each row with a slot in the ring, and its alternatives."""
        ring, batch = self._resources.ring, self._batch
        read = [i for i, row in enumerate(batch) if row.state.params.slot >= 0]
        if ring is None or not read:
            return
        if self._top is not None:
            rows, ids, logprobs = self._top
            ring.write_top(*_addresses(rows), ids, logprobs)
        entropy, logprob, flags, crop = self._entropy, self._logprobs, self._flags, self._crop
        if len(read) < len(batch):
            which = make_array(read, self._device)
            entropy, logprob, batch = entropy[which], logprob[which], [batch[i] for i in read]
            flags = None if flags is None else flags[which]
            crop = None if crop is None else (crop[0][which], crop[1][which])
        ring.write(*_addresses(batch), entropy, logprob, flags, crop)

    def report_hidden_states(self, find: Callable[[], HiddenStates | None]) -> None:
        """Write the hidden states that requests ask for, with their first token. The reader notices a missing one;
        states of another width than the ring's are not written, as that would fail every request."""
        ring = self._resources.ring
        asked = [row for row in self._batch if row.state.params.hidden is not None and row.position == 0]
        if not asked or ring is None or (states := find()) is None:
            return
        if states.sampled.shape != (len(self._logits), ring.hidden):
            return
        own, found = states.of(asked)
        tags = torch.where(found, to_device([row.state.params.tag for row in asked], found.device), NO_REQUEST)
        ring.write_states([row.state.params.slot for row in asked], tags, own)

    def _logit_rows(self, which: Any) -> Any:
        """Map rows of the batch to rows of the logits, `[n]`."""
        return which if self._index is None else self._index[which]

    def _logprob(self, which: Any, logits: Any) -> Any:
        """Compute the log-probabilities (nats) of raw logits, one in each of these rows, `[n]`."""
        return logits - self._peak[which] - self._log_partition[which]

    def _alternatives(self) -> tuple[list[BatchRow], torch.Tensor, torch.Tensor] | None:
        """Find the rows that want alternatives, and their `[n, k]` likeliest ids and log-probabilities."""
        wanted = [
            i
            for i, row in enumerate(self._batch)
            if (how := row.state.params.sampling) and how.top_logprobs and row.state.params.slot >= 0
        ]
        if not wanted or self._resources.ring is None:
            return None
        which = make_array(wanted, self._device)
        values, ids = torch.as_tensor(self._mine[which]).topk(min(TOP, self._mine.shape[1]), dim=-1)
        logprobs = as_array(values) - self._peak[which, None] - self._log_partition[which, None]
        return [self._batch[i] for i in wanted], ids, torch.as_tensor(logprobs)

    def _bar_reserved(self) -> None:
        """Bar tokens that are reserved for ending a request, unless they end its answer anyway."""
        barred = [(i, row.state.params.stop) for i, row in enumerate(self._batch) if row.state.reserves_stop]
        if barred:
            which, stops = make_array(barred, self._device).T
            self._mine[which, stops] = -torch.inf
            if self._mine is not self._values:
                self._values[self._logit_rows(which), stops] = -torch.inf

    def _record(self, drawn: Sequence[int], tokens: Any) -> None:
        """Store the drawn tokens of requests whose penalties or grammar need them, and flag grammars that are
        complete."""
        for i, token in zip(drawn, tokens.tolist(), strict=True):
            row = self._batch[i]
            row.state.record(row.position, token)
            if row.state.grammar_failed:
                self._flags[i] |= BROKEN
            elif row.state.completes_grammar(token):
                self._flags[i] |= COMPLETE


def _addresses(rows: Sequence[BatchRow]) -> tuple[list[int], list[int], list[int]]:
    """Collect the slots in the ring, tags and positions of rows."""
    params = [row.state.params for row in rows]
    return [each.slot for each in params], [each.tag for each in params], [row.position for row in rows]
