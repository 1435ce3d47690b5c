"""The simulation of capacity: queues as theory has them, and resources that break in the order of their limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from waver.benchmarks.capacity import Steps, front, measured, most_rate, page, replica, simulate

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
LINE = Steps((1, 11), (0.01, 0.02))


def test_steps_between_and_beyond_what_was_measured() -> None:
    assert [LINE.of(batch) for batch in (1, 6, 11, 21)] == pytest.approx([0.01, 0.015, 0.02, 0.03])


def test_a_replica_waits_where_it_is_asked_for_more_than_it_can() -> None:
    full = 10 / LINE.of(10) / 50  # requests a second with every slot taken
    assert replica(LINE, 0.3 * full, 10, tokens=50, count=800) < 0.1
    assert replica(LINE, 2 * full, 10, tokens=50, count=800) > 5


def test_a_process_is_late_where_its_thread_is_full() -> None:
    assert front(0.001, 0.2 * 1000 / 50, 0.02, tokens=50, most=5000) < 0.01
    assert front(0.001, 1.5 * 1000 / 50, 0.02, tokens=50, most=5000) > 0.5


def test_the_highest_rate_is_found() -> None:
    assert most_rate(lambda rate: rate <= 7, 1, 100) == pytest.approx(7, rel=0.02)


def test_what_breaks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waver.benchmarks.capacity.SIMULATED", 300)
    monkeypatch.setattr("waver.benchmarks.capacity.STREAMED", 5000)
    steps, token_seconds, told = measured(RESULTS)
    assert (steps.batches, 0 < token_seconds < 0.01) == ((1, 8, 32), True)
    found = simulate(steps, token_seconds, 64, {"SQLite": {"1": 100.0}, "PostgreSQL": {"1000": 5000.0}})
    few, many, most = found["rates"]
    assert few["breaks"] == ["one replica"], "10 a second are more than this engine has room for, and nothing else"
    assert many["breaks"] == ["one replica", "one process", "SQLite, 1 key"]
    assert most["breaks"][-1] == "PostgreSQL, 1000 keys"
    text = "\n".join(page({"measured": told, "simulated": found, "settings": {"slots": 64}}))
    assert "| 100,000 |" in text
