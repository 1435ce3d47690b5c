"""Which slot a sequence gets: the one that saves it most reading.

What a slot holds stays when its sequence ends, for who comes back to it or shares a beginning with it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from waver.engines.runner import Runner
from waver.engines.sequence import Reading, Sequence

SCRATCH = 0
"""The slot for single readings, which no sequence is given."""
WORTH_COPYING = 32
"""A shared prefix shorter than this is computed again rather than copied from another slot."""


class SlotAllocator:
    """Slots 1 to `count`, each for one sequence. `give` is for the engine's thread alone."""

    def __init__(self, count: int, runner: Runner) -> None:
        self._runner = runner
        self.held: list[list[int]] = [[] for _ in range(1 + count)]
        """The tokens that each slot holds."""
        self.reused = 0
        """Tokens that sequences found in their slots, and did not have to read."""
        self._owner: list[Sequence | Reading | None] = [None] * (1 + count)
        self._used = [0] * (1 + count)
        self._clock = 0
        self._left: set[int] = set()
        """Slots that a reading had last: nobody goes on from its end."""

    def give(self, live: Seq[Sequence | Reading]) -> None:
        """Take slots back from who ended or was aborted, and give slots to those who wait, answers that have begun
        first."""
        self._owner = [owner if owner in live else None for owner in self._owner]
        for sequence in sorted((s for s in live if s.slot is None), key=lambda s: not s.begun):
            if not self._seat(sequence):
                break

    def missing(self, sequence: Sequence | Reading) -> int:
        """Tokens that a seated sequence has yet to read."""
        return len(sequence.ids) - len(self.held[sequence.slot or SCRATCH])

    def _seat(self, sequence: Sequence | Reading) -> bool:
        """Find the slot that saves most reading: an idle one whose tokens the sequence goes on from, or else the one
        unused longest, with the longest prefix that any slot shares copied into it. False: all slots are taken."""
        idle = [slot for slot, owner in enumerate(self._owner) if owner is None and slot != SCRATCH]
        if not idle:
            return False
        usable = sequence.ids[:-1]  # at least one token has to be read for something to come out
        shared = [_shared(held, usable) for held in self.held]
        own = [s for s in idle if 0 < shared[s] >= self._needed(s)]
        slot = max(own, key=lambda s: (shared[s], -len(self.held[s])), default=-1)
        source = max(range(len(shared)), key=lambda s: shared[s])
        if slot >= 0 and shared[source] - shared[slot] < WORTH_COPYING:
            source = slot
        else:
            slot = min(idle, key=lambda s: (bool(self.held[s]), self._used[s], s))
        kept = shared[source] if source == slot or shared[source] >= WORTH_COPYING else 0
        self.held[slot] = usable[: self._runner.copy(source, slot, kept)] if kept else []
        self.reused += len(self.held[slot])
        self._clock += 1
        self._used[slot] = self._clock
        self._owner[slot] = sequence
        (self._left.add if isinstance(sequence, Reading) else self._left.discard)(slot)
        sequence.slot = slot
        return True

    def _needed(self, slot: int) -> int:
        """How many of an idle slot's tokens a sequence has to share to take it as it is. The last one may have to be
        read again; of a reading's most will do, since what it had behind the question is of no further use."""
        held = len(self.held[slot])
        return held // 2 if slot in self._left else held - 1


def _shared(a: list[int], b: list[int]) -> int:
    """Length of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:  # slices compare in C, so a binary search beats a loop
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low
