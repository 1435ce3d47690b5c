"""A ring buffer in shared memory that carries exact entropies from vLLM's worker to the process that serves requests.

Both processes map one file. Each request owns a slot, which is a ring of entries: that of its token at position t lies
at `t % DEPTH`, its alternatives at `t % DEPTH_TOP`, and a hidden state beside them. They are written before the token
itself leaves the worker, so whoever has the token finds the entry. A slot has one writer: the first rank of a
tensor-parallel group, as every rank computes the same, in the data-parallel replica that has the request. An engine
that is restarted gets a new ring buffer.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from waver.devices import to_device
from waver.engines.vllm.carried import carried, carry
from waver.engines.vllm.claim import claim, reclaim

SLOTS = 1024
"""Requests at a time; more wait for a slot."""
DEPTH, DEPTH_TOP = 1024, 256
"""Tokens by which a reader may fall behind: one of entries, and one of alternatives."""
TOP = 20
"""Most alternatives of a token."""
WORDS = 8
"""An entry: tag, position, flags, kept; entropy, logprob, crop entropy, unused (float32)."""
ENTRY = struct.Struct("4i3f4x")
WORDS_TOP = 2 + 2 * TOP
"""Alternatives: tag, position; ids, log-probabilities (float32)."""
PREFIX = "waver-ring-"
BYTES = SLOTS * (DEPTH * WORDS + DEPTH_TOP * WORDS_TOP) * 4
"""Memory of a ring buffer, hidden states aside."""

Words = np.ndarray[Any, np.dtype[np.int32]]

EAGER, LAGGED, COMPLETE, BROKEN = 1, 2, 4, 8
"""Flags: a gate fired before this position was written, or on it; the token there completes the request's grammar; the
grammar could not be followed any further."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The measurements of one position. `entropy` and `logprob` are of the raw distribution (nats)."""

    entropy: float
    logprob: float
    flags: int
    kept: int | None = None
    crop_entropy: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class EntropyRing:
    """Three views of one file: `[SLOTS, DEPTH, WORDS]`, `[SLOTS, DEPTH_TOP, WORDS_TOP]` and, for hidden states, each
    behind its tag, `[SLOTS, 1 + hidden]`; int32 each.

    It takes 74 MiB and 4 KiB for each number of a hidden state, all of it when it is made: running out of memory later
    could not be told from a crash.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        words, top, states = np.split(np.frombuffer(self._map, np.int32), [SLOTS * DEPTH * WORDS, BYTES // 4])
        self.words = words.reshape(SLOTS, DEPTH, WORDS)
        self.top = top.reshape(SLOTS, DEPTH_TOP, WORDS_TOP)
        self.states = states.reshape(SLOTS, -1)

    @classmethod
    def create(cls, hidden: int) -> EntropyRing:
        """Make an empty ring buffer, in memory where there is room for it (a container may have little), else in a
        file on disk. Those of servers that died while they started are removed first.

        Args:
            hidden: numbers in a hidden state.

        Raises:
            OSError: there is room nowhere.
        """
        size = BYTES + SLOTS * (1 + hidden) * 4
        for folder in ("/dev/shm", tempfile.gettempdir()):
            with suppress(OSError):
                reclaim(Path(folder), PREFIX)
                path, lock = _new_file(Path(folder), size)
                ring = cls(path)
                ring._lock = lock
                return ring
        raise OSError(f"there is no room for {size >> 20} MiB in /dev/shm or {tempfile.gettempdir()}")

    def read(self, slot: int, tag: int, position: int, top: int = 0) -> Entry | None:
        """Read the entry of a position; None if it is not there (any more), or not with its alternatives."""
        words = self.words[slot, position % DEPTH]
        found, at, flags, kept, entropy, logprob, crop = ENTRY.unpack_from(words)
        pairs: tuple[tuple[int, float], ...] = ()
        if top:
            place = self.top[slot, position % DEPTH_TOP]
            both = place.copy()
            if not all(w[0] == tag and w[1] == position for w in (both, place)):
                return None
            values = both[2 + TOP :].view(np.float32)[:top].tolist()
            pairs = tuple(pair for pair in zip(both[2 : 2 + top].tolist(), values, strict=True) if pair[1] > -np.inf)
        # Checked again after all is read: a writer that is a whole turn ahead may have overwritten it meanwhile.
        if (found, at) != (tag, position) or ENTRY.unpack_from(words)[:2] != (tag, position):
            return None
        return Entry(max(entropy, 0.0), logprob, flags, kept or None, crop if kept else None, pairs)

    def state(self, slot: int, tag: int) -> torch.Tensor | None:
        """Read the hidden state that a request asked for, `[hidden]` float32; None if it is not there."""
        words = self.states[slot]
        both = words.copy()
        return torch.from_numpy(both[1:].view(np.float32)) if both[0] == words[0] == tag else None

    def close(self) -> None:
        """Remove the file; processes that have mapped it keep their mapping."""
        with suppress(FileNotFoundError):
            self.path.unlink()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class RingWriter:
    """Writes entries, in the worker."""

    def __init__(self, path: Path, device: torch.device) -> None:
        ring = EntropyRing(path)
        self._host = ring.words if device.type == "cpu" else None
        self._words, self._top, self._states = (map_on(device, view) for view in (ring.words, ring.top, ring.states))

    @property
    def hidden(self) -> int:
        """Width of a hidden state."""
        return self._states.shape[1] - 1

    def write(
        self, slots: list[int], tags: list[int], positions: list[int], entropy: Any, logprob: Any,
        flags: Any = None, crop: tuple[Any, Any] | None = None,
    ) -> None:  # fmt: skip
        """Write one entry for each of n requests. Arrays are those of `waver.devices.array_namespace`.

        Args:
            entropy, logprob: `[n]` float32. flags: `[n]` integers. crop: how many tokens a truncation left, integers,
            and their entropy, float32, `[n]` each.
        """
        if self._host is not None:  # a handful of numbers: numpy takes a fifth of the time of as many kernels
            entries = np.zeros((len(slots), WORDS), np.int32)
            floats = entries.view(np.float32)
            entries[:, 0], entries[:, 1] = tags, positions
            floats[:, 4], floats[:, 5] = entropy, logprob
            if flags is not None:
                entries[:, 2] = flags
            if crop is not None:
                entries[:, 3], floats[:, 6] = crop
            self._host[slots, [p % DEPTH for p in positions]] = entries
            return
        device = self._words.device
        where = to_device([slots, [p % DEPTH for p in positions], tags, positions], device)
        nothing = torch.zeros_like(entropy)
        kept, left = (nothing, nothing) if crop is None else crop
        ints = [*where[2:], *(each.to(device) for each in (nothing if flags is None else flags, kept))]
        values = torch.stack([entropy, logprob, left, nothing], dim=1).to(device).view(torch.int32)
        self._words[where[0], where[1]] = torch.cat([torch.stack([i.to(torch.int32) for i in ints], dim=1), values], 1)

    def write_top(
        self, slots: list[int], tags: list[int], positions: list[int], ids: torch.Tensor, logprobs: torch.Tensor
    ) -> None:
        """Write the alternatives: `[n, k]` ids and log-probabilities, most likely first, k at most `TOP`."""
        device, k = self._top.device, ids.shape[1]
        where = to_device([slots, [p % DEPTH_TOP for p in positions], tags, positions], device)
        self._top[where[0], where[1], :2] = where[2:].T.to(torch.int32)
        self._top[where[0], where[1], 2 : 2 + k] = ids.to(device, torch.int32)
        self._top[where[0], where[1], 2 + TOP : 2 + TOP + k] = logprobs.to(device, torch.float32).view(torch.int32)

    def write_states(self, slots: list[int], tags: torch.Tensor, states: torch.Tensor) -> None:
        """Write the hidden states of n requests, `[n, hidden]`, under their tags, `[n]` integers."""
        device = self._states.device
        words = states.to(device, torch.float32).view(torch.int32)
        self._states[to_device(slots, device)] = torch.cat([tags.to(device, torch.int32)[:, None], words], dim=1)


def map_on(device: torch.device, view: Words) -> torch.Tensor:
    """Map a view as a tensor of the device: registered with CUDA, a kernel writes it in stream order, ahead of the
    token. A device that cannot do that writes through the host, and waits for it."""
    shared = torch.from_numpy(view)
    if device.type == "cuda":
        status = torch.cuda.cudart().cudaHostRegister(view.ctypes.data, view.nbytes, 0)
        if int(status) == 0:
            from vllm.utils.torch_utils import get_accelerator_view_from_cpu_tensor

            mapped: torch.Tensor = get_accelerator_view_from_cpu_tensor(shared)
            return mapped
        with suppress(RuntimeError):  # CUDA would raise the error at the next kernel
            torch.ones(1, device=device)
    return shared


def _new_file(folder: Path, size: int) -> tuple[Path, int]:
    """Make a file of so many bytes, and lock it to say that it has an owner.

    Raises:
        OSError: there is no room.
    """
    while True:
        handle, name = tempfile.mkstemp(prefix=PREFIX, dir=folder)
        lock = claim(Path(name))
        try:
            if lock is not None:  # else another server that starts took it for a dead one's
                os.posix_fallocate(handle, 0, size)
                return Path(name), lock
        except OSError:
            os.unlink(name)
            if lock is not None:
                os.close(lock)
            raise
        finally:
            os.close(handle)


def set_ring_path(config: Any, path: Path) -> None:
    """Tell vLLM's workers where the ring buffer is."""
    carry(config, "ring", str(path))


def ring_path(config: Any) -> Path | None:
    """Return the path of the ring buffer that a worker was told of, if any."""
    path = carried(config, "ring")
    return None if path is None else Path(path)
