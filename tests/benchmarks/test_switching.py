"""`waver bench switching`: the rule on stored entropies is the policy's, and the defaults are safe with any pair."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.policies.scripted import play, writers
from waver.benchmarks import figures, switching
from waver.benchmarks.switching import SETTINGS, least_dwell, on_large, row, simulated, time
from waver.benchmarks.traces import Trace, restored, stored
from waver.policies.switch.ead import EntropyAdaptiveDecoding as Ead


def noise(n: int, seed: int) -> Trace:
    rng = random.Random(seed)
    loud = rng.choice([0.05, 0.3, 1.0, 4.0])
    small = [rng.choice([0.0, 0.1, 0.5, 2.0]) * rng.random() * loud for _ in range(n)]
    return Trace(small, [each * rng.random() for each in small], [False] * n)


async def test_the_rule_is_the_policys() -> None:
    for seed, policy in enumerate([*SETTINGS.values(), Ead(start="large", threshold=0.2, window=2, min_tokens=3)] * 3):
        trace = noise(80, seed)
        steps, _ = await play(policy, trace.small, trace.large)
        assert "".join("L" if each else "S" for each in on_large(trace, policy)) == writers(steps)


@pytest.mark.parametrize("r", switching.RATIOS)
def test_defaults_are_never_slower_than_the_large_model_alone(r: float) -> None:
    """For any entropies: every run of the small model pays for the hand-overs around it."""
    default = Ead()
    assert default.min_tokens >= least_dwell(r)
    assert default.monitor == "active"
    traces = [simulated(scale, 5, 1) for scale in switching.SCALES] + [[noise(120, seed)] for seed in range(40)]
    for each in traces:
        assert row(each, default)["time"][str(r)] < 1
    before = max(row(each, Ead(threshold=0.1, window=1, min_tokens=1))["time"][str(r)] for each in traces)
    assert before > 1.1, "what the defaults were"


def test_the_time_of_a_token_by_hand() -> None:
    assert time(0.25, 0.0, 0.4, watched=False) == pytest.approx(0.25 + 0.75 * 0.4)
    assert time(1.0, 0.0, 0.4, watched=True) == pytest.approx(1.4)
    assert time(0.5, 0.1, 0.4, watched=False) == pytest.approx(0.7 + 0.1 * (2.7 + 4.7 * 0.4) / 2)


def test_critical_tokens_are_found(tmp_path: Path) -> None:
    kept = {label: row(simulated(1.0, 20, 1), policy)["critical"] for label, policy in SETTINGS.items()}
    assert kept["default"] > 0.9
    assert kept["before, for Qwen: 0.6, window 5, min_tokens 10"] < 0.75, "it hands back at once"
    file = tmp_path / "worked.jsonl"
    file.write_text(json.dumps({"question": "2 and 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}) + "\n")
    assert switching.worked(file, 3) == [("2 and 3?", "2 + 3 = 5\nThe answer is 5")]


def test_what_tells_critical_tokens_is_told(tmp_path: Path) -> None:
    traces = [stored(Trace([0.1, 0.2, 3.0], [0.1, 0.1, 0.1], [False, False, True]))]
    read = restored(traces)
    assert read == Trace([0.1, 0.2, 3.0], [0.1, 0.1, 0.1], [False, False, True])
    assert switching.quantiles(read)[-1] == "1.00"
    assert switching.quantiles(restored([{**traces[0], "critical": "000"}]))[-1] == "–"
    figures.switching({"a pair": read}, tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".png", ".svg"}
