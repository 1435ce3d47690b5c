"""The rolling entropies of all requests with a gate, on the device, and where their gates fire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from waver.devices import array_namespace, as_array, make_array
from waver.engines.base import Gate
from waver.engines.vllm.params import LONGEST_WINDOW
from waver.engines.vllm.ring import EAGER, LAGGED
from waver.engines.vllm.state import BatchRow
from waver.entropy import BatchedRollingEntropy


class GateWindows:
    """Keeps a window for each of `count` requests."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._device = device
        self._entropies = BatchedRollingEntropy(count, LONGEST_WINDOW, device)
        # Where lagged gates fired, by parity of the position: measuring one again must not forget the one before it.
        self._fired = as_array(torch.full((count, 2), -2, dtype=torch.long, device=device))

    @property
    def nbytes(self) -> int:
        """Memory on the device, in bytes."""
        return int(self._entropies.nbytes + self._fired.nbytes)

    def begin(self, window: int, gate: Gate, written: int) -> None:
        """Start a window for a request for which `written` tokens were generated already."""
        self._entropies.begin(window, () if written else gate.history, written)
        self._fired[window] = -2

    def observe(self, rows: Sequence[BatchRow], entropy: Any) -> tuple[Any, Any]:
        """Take in the entropy of each row, `[n]` nats; the rows have gates.

        An eager gate ends the request at the position where it fires. A lagged one lets the token stand, and ends the
        request at the next position, unless the reader has closed it by then.

        Returns:
            Whether the request ends here, `[n]` bool, and the flags for its entry in the ring, `[n]` integers.
        """
        where = array_namespace(self._device).where
        gates = [row.state.params.gate or Gate(1, 0.0) for row in rows]
        numbers = [(r.state.window, r.position, g.window, g.min_tokens) for r, g in zip(rows, gates, strict=True)]
        windows, positions, lengths, minimum = make_array(numbers, self._device).T
        rules = [(gate.threshold, gate.above, gate.timing == "eager") for gate in gates]
        threshold, above, eager = make_array(rules, self._device, "float64").T
        means = self._entropies.observe(windows, positions, lengths, entropy, max(gate.window for gate in gates))
        crossed = where(above > 0, means >= threshold, means < threshold)
        standing = positions + (eager == 0)
        fires = crossed & (standing >= minimum)
        before = self._fired[windows, (positions - 1) % 2] == positions - 1
        self._fired[windows, positions % 2] = where(fires & (eager == 0), positions, -2)
        ends = where(eager > 0, fires, before)
        return ends, where(fires, where(eager > 0, EAGER, LAGGED), 0)
