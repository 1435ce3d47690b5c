"""Gates against a replay in plain Python on the entropies of the same answer without a gate."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engines.driving import prompts, steps
from waver.engines.base import NO_TOKEN, Gate, Step
from waver.engines.transformers import TransformersEngine

LENGTH = 30
HOW = {"temperature": 1.0, "seed": 21, "max_tokens": LENGTH, "ignore_eos": True}
PROMPT = prompts(1, seed=20)[0]


@pytest.fixture(scope="module")
def ungated(wild: TransformersEngine) -> list[Step]:
    return asyncio.run(steps(wild, PROMPT, **HOW))


def replay(entropies: list[float], gate: Gate) -> int | None:
    """The position of the token whose entropy makes the gate fire."""
    seen = list(gate.history)
    for position, entropy in enumerate(entropies):
        seen.append(entropy)
        mean = sum(seen[-gate.window :]) / len(seen[-gate.window :])
        standing = position + (gate.timing == "lagged")
        if standing >= gate.min_tokens and (mean >= gate.threshold if gate.above else mean < gate.threshold):
            return position
    return None


gates = st.builds(
    Gate,
    window=st.integers(1, 8),
    threshold=st.floats(3.0, 6.5),
    above=st.booleans(),
    min_tokens=st.integers(0, 12),
    timing=st.sampled_from(["eager", "lagged"]),
    history=st.lists(st.floats(0.0, 7.0), max_size=10).map(tuple),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gate=gates)
def test_replay(wild: TransformersEngine, ungated: list[Step], gate: Gate) -> None:
    out = asyncio.run(steps(wild, PROMPT, gate=gate, **HOW))
    entropies = [step.entropy for step in ungated]
    means = [abs(sum(w) / len(w) - gate.threshold) for w in windows(entropies, gate)]
    if min(means) < 1e-4:
        return  # too close to call in float32
    fired = replay(entropies, gate)
    eager = gate.timing == "eager"
    stands = LENGTH if fired is None else fired + (not eager)
    said = [step.token for step in out if step.token != NO_TOKEN]
    assert said == [step.token for step in ungated[:stands]]
    if fired is None or (not eager and stands == LENGTH):
        assert out[-1].finish == "length"
    else:
        assert out[-1].finish == "gate"
        assert (out[-1].token == NO_TOKEN) == eager
        assert out[-1].entropy == pytest.approx(entropies[fired], abs=1e-4)


def windows(entropies: list[float], gate: Gate) -> list[list[float]]:
    seen = [*gate.history, *entropies]
    return [seen[max(0, end - gate.window) : end] for end in range(len(gate.history) + 1, len(seen) + 1)]


@pytest.mark.parametrize("timing", ["eager", "lagged"])
async def test_going_on_after_a_gate(wild: TransformersEngine, ungated: list[Step], timing: str) -> None:
    """Segment by segment the answer comes out as without a gate, and nothing but the last token is read anew."""
    gate = Gate(window=2, threshold=4.5, timing=timing)  # type: ignore[arg-type]
    said: list[int] = []
    entropies: list[float] = []
    for segment in itertools.count():
        # A gate that has just fired would fire again on the very same position: at least one token goes between.
        active = replace(gate, min_tokens=1 if segment else 0, history=tuple(entropies))
        before = wild.read_tokens
        part = await steps(wild, [*PROMPT, *said], gate=active, answer_start=len(PROMPT), **HOW)
        written = [step for step in part if step.token != NO_TOKEN]
        assert not segment or wild.read_tokens - before == len(part)
        said += [step.token for step in written]
        entropies += [step.entropy for step in written]
        if part[-1].finish != "gate":
            break
    assert segment > 3
    assert said == [step.token for step in ungated]


async def test_min_tokens_of_the_segment(wild: TransformersEngine) -> None:
    for timing in ("eager", "lagged"):
        gate = Gate(window=1, threshold=0.0, min_tokens=4, timing=timing)
        out = await steps(wild, PROMPT, gate=gate, **HOW)
        assert sum(step.token != NO_TOKEN for step in out) == 4
        # The answer so far does not count towards the segment.
        ids = [*PROMPT, *(step.token for step in out if step.token != NO_TOKEN)]
        out = await steps(wild, ids, gate=gate, answer_start=len(PROMPT), **HOW)
        assert sum(step.token != NO_TOKEN for step in out) == 4


async def test_the_end_wins_over_a_lagged_gate(wild: TransformersEngine) -> None:
    gate = Gate(window=1, threshold=0.0, timing="lagged")
    assert (await steps(wild, PROMPT, gate=gate, logit_bias={2: 100.0}))[-1].finish == "stop"
    assert (await steps(wild, PROMPT, gate=gate, max_tokens=1))[-1].finish == "length"


@pytest.mark.parametrize("bad", [{"window": 0}, {"window": 1, "min_tokens": -1}])
def test_impossible_gates(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="window >= 1"):
        Gate(threshold=1.0, **bad)
