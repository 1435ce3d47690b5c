"""The number and order of the memories that a question gets: numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from waver.policies.remember.recall import Plan, best, by_words, depth, score
from waver.retrieval.memory.index import Constraints, Index
from waver.retrieval.memory.unit import Memory, Unit

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("delta", "counts"), [(17 / 3, (3, 8, 11, 20)), (2.0, (3, 4, 6, 9))],
)  # fmt: skip
def test_depth_by_hand(delta: float, counts: Sequence[int]) -> None:
    assert tuple(depth(c, 3, delta) for c in (0.0, 0.3, 0.5, 1.0)) == counts


def test_depth_stays_in_its_range() -> None:
    assert depth(1.0, 30, 2.0) == 20
    assert depth(0.0, 1, 2.0) == 3


def test_score_by_hand() -> None:
    assert score(0.8, 0.6, True) == pytest.approx(1.4)
    assert score(0.8, 0.6, False) == pytest.approx(1.1)


def index(*units: Unit, archived: dict[int, int] | None = None, angles: Sequence[float] | None = None) -> Index:
    """Memories numbered from 1, at angles (radians) of the plane."""
    at = np.array(angles if angles is not None else np.linspace(0, 1, len(units)))
    vectors = np.stack([np.cos(at), np.sin(at)], axis=1).astype(np.float32)
    memories = [Memory(id=i, created=NOW, unit=u, archived_by=(archived or {}).get(i)) for i, u in enumerate(units, 1)]
    return Index(memories, vectors)


def fact(content: str, **fields: Any) -> Unit:
    return Unit(content=content, **fields)


STRAIGHT = np.array([1, 0], np.float32)


def ids(found: Sequence[Any]) -> list[int]:
    return [each.memory.id for each in found]


def test_each_view_counts() -> None:
    here = index(
        fact("Anna has a cat", persons=("Anna",)), fact("The weather is fine"), fact("A cat sleeps"), angles=[1, 1, 1]
    )
    plan = Plan(0.0, (), Constraints(("Anna",)))
    found = best(here, "cat", STRAIGHT, plan, 3)
    assert ids(found) == [3, 1, 2] or ids(found) == [1, 3, 2]
    assert found[0].memory.id == 1
    assert found[0].matched
    assert found[1].score == pytest.approx(found[1].dense + 0.5 * found[1].lexical)
    assert max(each.lexical for each in found) == 1.0


def test_archived_ones_are_reached_through_their_abstract_only() -> None:
    units = [fact("Anna ran on Monday"), fact("Anna ran on Tuesday"), fact("Anna runs daily", abstract=True, count=2),
             fact("Bob swims")]  # fmt: skip
    here = index(*units, archived={1: 3, 2: 3}, angles=[0.0, 0.1, 0.2, 1.5])
    assert ids(best(here, "when did she run", STRAIGHT, Plan(0.0), 4)) == [3, 4]
    assert set(ids(best(here, "when did she run", STRAIGHT, Plan(0.5), 4))) == {1, 2, 3, 4}


def test_conditions() -> None:
    unit = fact("x", persons=("Anna Keller",), entities=("starbucks",), location="Rome, Italy", time=NOW)
    late, early = datetime(2026, 2, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)
    assert Constraints(("anna",), "rome", early, late).hold(unit)
    assert not Constraints(("Anna", "Bob")).hold(unit)
    assert not Constraints(after=late).hold(unit)
    assert not Constraints(before=early).hold(unit)
    assert not Constraints(location="Paris").hold(unit)
    assert not Constraints().hold(unit)
    assert not Constraints(after=early).hold(fact("no time"))


def test_planning_by_words() -> None:
    simple, hard = (
        by_words("Where does Anna live?"),
        by_words("How many cities did Anna and Bob both visit before May?"),
    )
    assert simple.complexity < 0.5 <= hard.complexity
    assert simple.constraints.names == ("anna",)
