"""Patterns of users: found as `re` finds them, and bounded in time all together."""

from __future__ import annotations

import time

import pytest

from waver import timed_patterns
from waver.timed_patterns import searcher


def test_patterns_are_found() -> None:
    assert searcher([r"\bcat\b", r"^dog", r"[0-9]+$"])("A cat is not a dog, 42") == [True, False, True]


def test_slow_patterns_share_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_patterns, "SECONDS", 0.2)
    slow = searcher([r"(a|a|b)*(a|b|a)*(b|a|a)*c$"] * 30)
    began = time.monotonic()
    assert slow("ab" * 5000) == [False] * 30
    assert time.monotonic() - began < 3  # and not 30 times the limit


def test_what_is_no_pattern_is_said() -> None:
    with pytest.raises(ValueError, match=r"missing"):
        searcher(["a", "(b"])
