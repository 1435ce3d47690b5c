"""Rolling means of entropies: of one token stream, and of a batch of streams on its device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from waver.devices import array_namespace, as_array, make_array


class RollingEntropy:
    """Keeps the mean over the last `window` entropies of one stream. A window that is not full averages what is there.

    Args:
        window: number of tokens, at least 1.
        history: entropies of tokens that came before, oldest first; only the last `window` matter.

    Raises:
        ValueError: the window is smaller than 1.
    """

    def __init__(self, window: int, history: Iterable[float] = ()) -> None:
        if window < 1:
            raise ValueError(f"a window needs at least 1 token, got {window}")
        self._values: deque[float] = deque(history, maxlen=window)

    @property
    def values(self) -> tuple[float, ...]:
        """The entropies in the window, oldest first."""
        return tuple(self._values)

    @property
    def mean(self) -> float:
        """The rolling mean; 0 before the first value."""
        return sum(self._values) / max(len(self._values), 1)

    def push(self, value: float) -> float:
        """Take in one entropy and return the new mean."""
        self._values.append(value)
        return self.mean

    def peek(self, value: float) -> float:
        """Return the mean that `push(value)` would return, without taking it in."""
        return RollingEntropy(self._values.maxlen or 1, (*self._values, value)).mean


class BatchedRollingEntropy:
    """Keeps the rolling means of many streams on one device, without a host sync. Arrays are those of
    `waver.devices.array_namespace`.

    An entropy is stored under its position in the stream, so that measuring a position again (a step whose token was
    thrown away) replaces the earlier value. `reach` is the longest window; memory: `rows * reach` float64.
    """

    def __init__(self, rows: int, reach: int, device: torch.device) -> None:
        self.reach = reach
        self._device, self._namespace = device, array_namespace(device)
        self._values = as_array(torch.zeros(rows, reach, dtype=torch.float64, device=device))
        self._known = as_array(torch.zeros(rows, dtype=torch.long, device=device))
        self._back = as_array(torch.arange(reach, device=device))

    @property
    def nbytes(self) -> int:
        """Memory of the table, in bytes."""
        return int(self._values.nbytes + self._known.nbytes + self._back.nbytes)

    def begin(self, row: int, history: Sequence[float] = (), position: int = 0) -> None:
        """Start a stream in a row at a position, after `history` (oldest first; only the last `reach` matter)."""
        kept = list(history)[-self.reach :]
        self._known[row] = len(kept) - position
        if kept:
            before = [at % self.reach for at in range(position - len(kept), position)]
            self._values[row, make_array(before, self._device)] = make_array(kept, self._device, "float64")

    def observe(self, rows: Any, positions: Any, windows: Any, entropies: Any, widest: int) -> Any:
        """Take in one entropy for each row, and return the rolling means with it: `[n]` float64.

        Args:
            rows, positions, windows: `[n]` integers; positions count from 0, windows lie between 1 and `widest`.
            entropies: `[n]`, nats. widest: the longest of the windows, known on the host, at most `reach`.
        """
        exact = self._namespace.asarray(entropies, dtype=self._namespace.float64)
        self._values[rows, positions % self.reach] = exact
        back = self._back[:widest]
        seen = self._values[rows[:, None], (positions[:, None] - back) % self.reach]
        counts = self._namespace.minimum(windows, positions + 1 + self._known[rows]).clip(min=1)
        return (seen * (back < counts[:, None])).sum(-1) / counts
