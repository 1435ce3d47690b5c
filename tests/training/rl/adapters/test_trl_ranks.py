"""Fields that data-parallel processes show each other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("trl")

from waver.training.rl.adapters.trl_ranks import Ranks


def test_chosen_rows_are_enough_for_every_process() -> None:
    """Groups of three over two processes: an odd number of groups is filled up with the first."""
    ranks = Ranks(SimpleNamespace(num_processes=2, process_index=1))
    assert ranks.spread([3, 4, 5], 3) == [3, 4, 5, 3, 4, 5]
    assert ranks.spread([0, 1, 2, 6, 7, 8], 3) == [0, 1, 2, 6, 7, 8]
    assert ranks.mine([3, 4, 5, 3, 4, 5]) == [3, 4, 5]
