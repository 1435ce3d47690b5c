"""Allocate KV slots to sequences: each gets the slot that saves it the most prefill.

A slot keeps its contents when its sequence ends, for a later segment of the same answer or a prompt with the same
prefix and the same salt (`waver.engines.salt`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from waver.engines.runner import Runner
from waver.engines.sequence import HiddenStateRequest, SequenceState

SCRATCH = 0
"""The slot for scoring texts, which no sequence is given."""
WORTH_COPYING = 32
"""Fewest tokens of a shared prefix that is copied from another slot rather than computed again."""


class SlotAllocator:
    """Allocates slots 1 to `count`, each to one sequence. Only the engine's thread may call `allocate`."""

    def __init__(self, count: int, runner: Runner) -> None:
        self._runner = runner
        self.held: list[list[int]] = [[] for _ in range(1 + count)]
        """The tokens that each slot holds."""
        self._salts = [""] * (1 + count)
        """The salts of the sequences that left them there."""
        self.reused = 0
        """Tokens that sequences found in their slots, and that were not computed again."""
        self._owner: list[SequenceState | HiddenStateRequest | None] = [None] * (1 + count)
        self._views: list[Any] = [None] * (1 + count)
        """The keys of the views of the prompts in the slots."""
        self._used = [0] * (1 + count)
        self._clock = 0
        self._state_slots: set[int] = set()
        """Slots that a `HiddenStateRequest` had last: no sequence continues from its end."""

    def allocate(self, sequences: Sequence[SequenceState | HiddenStateRequest]) -> None:
        """Free the slots of sequences that ended or were aborted, and allocate slots to those that wait, answers that
        have begun first."""
        self._owner = [owner if owner in sequences else None for owner in self._owner]
        for sequence in sorted((s for s in sequences if s.slot is None), key=lambda s: not s.begun):
            if not self._allocate_one(sequence):
                break

    def count_missing(self, sequence: SequenceState | HiddenStateRequest) -> int:
        """Count the tokens of a sequence that its slot does not hold yet."""
        return len(sequence.ids) - len(self.held[sequence.slot or SCRATCH])

    def _allocate_one(self, sequence: SequenceState | HiddenStateRequest) -> bool:
        """Allocate the slot that saves the most prefill: an idle one whose tokens the sequence continues, else the one
        unused longest, with the longest prefix that any slot shares copied into it. False: all slots are taken."""
        idle = [slot for slot, owner in enumerate(self._owner) if owner is None and slot != SCRATCH]
        if not idle:
            return False
        usable = sequence.ids[:-1]  # at least one token has to be computed to get logits
        view = None if sequence.view is None else sequence.view.key
        common = [
            0 if salt != sequence.salt or (view is not None and view != shown) else _common_prefix(held, usable)
            for held, shown, salt in zip(self.held, self._views, self._salts, strict=True)
        ]
        own = [s for s in idle if 0 < common[s] >= self._min_common(s)]
        slot = max(own, key=lambda s: (common[s], -len(self.held[s])), default=-1)
        source = max(range(len(common)), key=lambda s: common[s])
        if slot >= 0 and common[source] - common[slot] < WORTH_COPYING:
            source = slot
        else:
            slot = min(idle, key=lambda s: (bool(self.held[s]), self._used[s], s))
        kept = common[source] if source == slot or common[source] >= WORTH_COPYING else 0
        self.held[slot] = usable[: self._runner.copy(source, slot, kept)] if kept else []
        self.reused += len(self.held[slot])
        self._clock += 1
        self._used[slot] = self._clock
        self._owner[slot], self._views[slot] = sequence, view
        self._salts[slot] = sequence.salt
        (self._state_slots.add if isinstance(sequence, HiddenStateRequest) else self._state_slots.discard)(slot)
        sequence.slot = slot
        return True

    def _min_common(self, slot: int) -> int:
        """Count how many of an idle slot's tokens a sequence has to share to take the slot as it is: all but the last,
        which may have to be computed again. For what a `HiddenStateRequest` left half of them: the tokens behind its
        question are of no further use."""
        held = len(self.held[slot])
        return held // 2 if slot in self._state_slots else held - 1


def _common_prefix(a: list[int], b: list[int]) -> int:
    """Compute the length of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:  # slices compare in C, so a binary search beats a loop
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low
