"""The mean of the last few entropies of a token stream: for one stream, and for a whole batch on its device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import torch


class RollingEntropy:
    """The mean over the last `window` entropies of one stream. A window that is not full averages what is there.

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
        """What is in the window, oldest first."""
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
        """The mean that `push(value)` would return, without taking it in."""
        return RollingEntropy(self._values.maxlen or 1, (*self._values, value)).mean


class BatchedRollingEntropy:
    """One `RollingEntropy` for each row of a batch: ring buffers in one tensor, updated in place on its device.

    `push`, `peek`, `mean`, `move` and `swap` read nothing back to the host when `rows` are tensors on the device.
    Rows are numbered from 0; in one call they must differ from each other. Means are float32.

    Args:
        rows: number of rows.
        window: tokens per window, for all rows or one for each. Storage is for the largest; `reset` may set others.
        device: where the buffers live.

    Raises:
        ValueError: a window is smaller than 1, or the windows are not one for each row.
    """

    def __init__(self, rows: int, window: int | Sequence[int], device: torch.device | str = "cpu") -> None:
        windows = [window] * rows if isinstance(window, int) else list(window)
        if len(windows) != rows or min(windows, default=1) < 1:
            raise ValueError(f"one window of at least 1 token for each of the {rows} rows is needed, got {window}")
        self.device = torch.device(device)
        # Unused slots hold 0, so that a sum over a whole row is the sum over its window.
        self._values = torch.zeros(rows, max(windows, default=1), device=self.device)
        self._window = torch.tensor(windows, dtype=torch.long, device=self.device)
        self._count = torch.zeros(rows, dtype=torch.long, device=self.device)
        self._slot = torch.zeros(rows, dtype=torch.long, device=self.device)

    def mean(self, rows: torch.Tensor) -> torch.Tensor:
        """The rolling means, `[len(rows)]`; 0 for a row with no values yet."""
        return self._values[rows].sum(-1) / self._count[rows].clamp(min=1)

    def push(self, rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Take in one entropy for each of `rows` and return their new means. Both are `[len(rows)]`."""
        slot, window = self._slot[rows], self._window[rows]
        self._values[rows, slot] = values.to(self._values.dtype)
        self._slot[rows] = (slot + 1) % window
        self._count[rows] = torch.minimum(self._count[rows] + 1, window)
        return self.mean(rows)

    def peek(self, rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """The means that `push(rows, values)` would return, without taking the values in."""
        slots = self._slot[rows].unsqueeze(-1)
        ahead = self._values[rows].scatter(-1, slots, values.to(self._values.dtype).unsqueeze(-1))
        return ahead.sum(-1) / torch.minimum(self._count[rows] + 1, self._window[rows])

    def reset(
        self,
        rows: Sequence[int],
        history: Sequence[Sequence[float]] | None = None,
        window: Sequence[int] | None = None,
    ) -> None:
        """Start new streams in `rows`. Called from the host, once for each request.

        Args:
            rows: the rows to start anew.
            history: for each row, the entropies of the tokens before, oldest first.
            window: for each row, its new window; the storage grows if one is larger than all so far.

        Raises:
            ValueError: a window is smaller than 1, or there is not one history or window for each row.
        """
        index = torch.tensor(list(rows), dtype=torch.long, device=self.device)
        if window is not None:
            if len(window) != len(rows) or min(window, default=1) < 1:
                raise ValueError(f"one window of at least 1 token for each of {len(rows)} rows is needed, got {window}")
            self._grow(max(window, default=1))
            self._window[index] = torch.tensor(list(window), dtype=torch.long, device=self.device)
        self._values[index] = 0.0
        self._count[index] = 0
        self._slot[index] = 0
        if history is None:
            return
        if len(history) != len(rows):
            raise ValueError(f"one history for each of {len(rows)} rows is needed, got {len(history)}")
        longest = min(max(map(len, history), default=0), self._values.shape[-1])
        for age in range(longest, 0, -1):
            there = [(i, past[-age]) for i, past in enumerate(history) if len(past) >= age]
            chosen = index[[i for i, _ in there]]
            self.push(chosen, torch.tensor([value for _, value in there], device=self.device))

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Overwrite rows `target` with rows `source`, as an engine does when it closes gaps in its batch."""
        for state in (self._values, self._window, self._count, self._slot):
            state[target] = state[source]

    def swap(self, first: torch.Tensor, second: torch.Tensor) -> None:
        """Exchange rows `first` with rows `second`."""
        self.move(torch.cat([first, second]), torch.cat([second, first]))

    def _grow(self, width: int) -> None:
        missing = width - self._values.shape[-1]
        if missing > 0:
            self._values = torch.nn.functional.pad(self._values, (0, missing))
