"""EAD against reference traces of its paper's rule (arXiv 2502.06833): cost, ledger, behaviour. Thresholds in bits."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import AsyncGenerator
from itertools import pairwise

import pytest

from tests.policies.scripted import play, writers
from waver.engines.base import Sampling, Step
from waver.entropy import bits_to_nats
from waver.policies.job import Job
from waver.policies.report import Report
from waver.policies.services import Services
from waver.policies.switch.ead import EntropyAdaptiveDecoding

S = [0.2, 0.1, 1.5, 2, 1.8, 1.6, 0.3, 0.2, 0.1, 0.1, 0.2, 0.1]
L = [0.1, 0.1, 0.6, 0.7, 0.5, 0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]


def ead(threshold_bits: float, window: int, min_tokens: int, **options: object) -> EntropyAdaptiveDecoding:
    threshold = float(bits_to_nats(threshold_bits))
    options = {"timing": "lagged", "threshold_down": None, **options}
    return EntropyAdaptiveDecoding(threshold=threshold, window=window, min_tokens=min_tokens, **options)  # type: ignore[arg-type]


def nats(bits: list[float]) -> list[float]:
    return [float(bits_to_nats(b)) for b in bits]


@pytest.mark.parametrize(
    ("threshold", "window", "min_tokens", "monitor", "expected"),
    [
        (1, 3, 2, "active", "SSSSLLSSSSSS"),
        (1, 3, 4, "active", "SSSSLLLLSSSS"),
        (0.5, 3, 2, "active", "SSSLLLLSSSSS"),
        (0.5, 5, 10, "active", "SSSSSSSSSSSS"),
        (1, 3, 2, "small", "SSSSLLLLSSSS"),
        (0.5, 3, 2, "small", "SSSLLLLLLSSS"),
    ],
)
async def test_latch_traces_of_the_card(
    threshold: float, window: int, min_tokens: int, monitor: str, expected: str
) -> None:
    steps, report = await play(ead(threshold, window, min_tokens, monitor=monitor), nats(S), nats(L))
    assert writers(steps) == expected
    assert [step.token for step in steps] == list(range(12))
    assert report.tokens.get("large", 0) == expected.count("L")
    assert report.switches == sum(a != b for a, b in pairwise(expected))
    assert [step.finish for step in steps] == [None] * 11 + ["length"]


def test_cost_of_the_card() -> None:
    for small, large, share, saving in ((3, 11, 43, 0.4145455), (1500, 14000, 25, 0.6696429)):
        report = Report(parameters={"small": small, "large": large})
        for i in range(100):
            report.observe(Step(0, 0.0, 0.0, "large" if i < share else "small"))
        assert 1 - report.relative_cost == pytest.approx(saving, abs=5e-8)


def test_ledger_of_the_card() -> None:
    report = Report(parameters={"small": 1, "large": 1})
    for writer in "SSSSLLLSSSLL":
        report.observe(Step(0, 0.0, 0.0, "small" if writer == "S" else "large"))
    assert report.tokens == {"small": 7, "large": 5}
    assert report.catch_up == {"small": 3, "large": 6}


def replay(small: list[float], large: list[float], policy: EntropyAdaptiveDecoding) -> str:
    """The rule token by token, written from its definition and apart from the production code."""
    window: deque[float] = deque(maxlen=policy.window)
    on_large, since, out = policy.start == "large", 0, ""

    def wants_large(values: list[float]) -> bool:
        mean = sum(values[-policy.window :]) / len(values[-policy.window :])
        down = policy.threshold if policy.threshold_down is None else policy.threshold_down
        return mean >= (down if on_large else policy.threshold)

    for t in range(len(small)):
        seen = small[t] if policy.monitor == "small" or not on_large else large[t]
        if policy.timing == "eager" and since >= policy.min_tokens and wants_large([*window, seen]) != on_large:
            on_large, since = not on_large, 0
            seen = small[t] if policy.monitor == "small" or not on_large else large[t]
        out += "L" if on_large else "S"
        since += 1
        window.append(seen)
        if policy.timing == "lagged" and since >= policy.min_tokens and wants_large(list(window)) != on_large:
            on_large, since = not on_large, 0
    return out


@pytest.mark.parametrize("timing", ["eager", "lagged"])
@pytest.mark.parametrize("monitor", ["active", "small"])
async def test_hundred_random_traces_equal_the_rule(timing: str, monitor: str) -> None:
    rng = random.Random(5)
    switched = 0
    for _ in range(100):
        small = [rng.choice([0.0, 0.1, 0.5, 2.0]) * rng.random() for _ in range(60)]
        large = [entropy * rng.random() for entropy in small]
        threshold = rng.choice([0.05, 0.2, 0.5])
        policy = EntropyAdaptiveDecoding(
            threshold=threshold,
            threshold_down=rng.choice([None, threshold / 2]),
            window=rng.randint(1, 6),
            min_tokens=rng.randint(1, 8),
            monitor=monitor,  # type: ignore[arg-type]
            timing=timing,  # type: ignore[arg-type]
            start=rng.choice(["small", "large"]),
        )
        steps, report = await play(policy, small, large)
        assert writers(steps) == replay(small, large, policy)
        switched += report.switches
    assert switched > 500


async def test_at_equality_the_large_engine_writes() -> None:
    for timing, expected in (("lagged", "SLLL"), ("eager", "SLLL")):
        policy = EntropyAdaptiveDecoding(threshold=0.5, threshold_down=None, window=1, min_tokens=1, timing=timing)  # type: ignore[arg-type]
        steps, _ = await play(policy, [0.5] * 4, [0.5] * 4)
        assert writers(steps) == expected


async def test_behaviour_of_the_card() -> None:
    """Part (b): hard runs hidden between easy ones; EAD must find them, a blind policy of the same share cannot."""
    rng = random.Random(1)
    easy, hard_small, hard_large = (float(bits_to_nats(b)) for b in (0.181, 3.093, 0.706))
    problems = []
    for _ in range(300):
        hard: list[bool] = []
        critical: list[int] = []
        for _ in range(3):
            hard += [False] * rng.randint(20, 39)
            run = rng.randint(12, 23)
            critical += rng.sample(range(len(hard), len(hard) + run), 2)
            hard += [True] * run
        noise = [rng.uniform(0.6, 1.4) for _ in hard]
        small = [(hard_small if h else easy) * n for h, n in zip(hard, noise, strict=True)]
        large = [(hard_large if h else easy) * n for h, n in zip(hard, noise, strict=True)]
        problems.append((small, large, critical))

    async def solved(policy: EntropyAdaptiveDecoding) -> tuple[float, float, float]:
        right = blind = 0.0
        traces = [writers((await play(policy, small, large))[0]) for small, large, _ in problems]
        for i, (_, _, critical) in enumerate(problems):
            other = traces[(i + 1) % len(traces)]
            cut = rng.randrange(len(other))
            shifted = (other[cut:] + other[:cut]) * 3
            right += math.prod(0.9 if traces[i][t] == "L" else 0.45 for t in critical)
            blind += math.prod(0.9 if shifted[t] == "L" else 0.45 for t in critical)
        share = sum(t.count("L") for t in traces) / sum(map(len, traces))
        return right / len(problems), blind / len(problems), share

    alone = 0.9**6
    at_half, blind, share = await solved(ead(0.5, 5, 10))
    assert at_half >= 0.75 * alone
    assert at_half >= 3 * blind
    assert share == pytest.approx(0.385, abs=0.03)
    assert at_half > (await solved(ead(0.5, 1, 10)))[0]
    collapsed, _, _ = await solved(ead(1.0, 5, 10))
    watched, _, _ = await solved(ead(1.0, 5, 10, monitor="small"))
    assert collapsed < 0.5 * at_half
    assert watched > 0.8 * at_half


@pytest.mark.parametrize("monitor", ["active", "small"])
async def test_a_loop_is_handed_over(monitor: str) -> None:
    """A small model that goes round in circles, as sure as can be, is taken over, and again when it goes on so."""
    quiet = [0.01] * 100
    guarded = EntropyAdaptiveDecoding(monitor=monitor)  # type: ignore[arg-type]
    steps, report = await play(guarded, quiet, quiet, lambda t: t % 3)
    assert writers(steps) == ("S" * 16 + "L" * 16) * 3 + "S" * 4
    assert report.extra["repetitions"] == 3
    told = [t for t, step in enumerate(steps) if any(each.then == "repetition" for each in step.decisions)]
    assert told == [16, 48, 80]
    longer, _ = await play(guarded, quiet, quiet, lambda t: t % 10)
    assert writers(longer)[:41] == "S" * 40 + "L", "four times ten tokens"
    for policy, spell in ((EntropyAdaptiveDecoding(repetition=0), 3), (guarded, 33)):
        free, report = await play(policy, quiet, quiet, lambda t, spell=spell: t % spell)  # type: ignore[misc]
        assert writers(free) == "S" * 100
        assert "repetitions" not in report.extra


def test_the_lower_threshold_follows_one_that_is_given_alone() -> None:
    assert EntropyAdaptiveDecoding(threshold=0.05).threshold_down == 0.05
    assert EntropyAdaptiveDecoding(threshold=3.0).threshold_down == EntropyAdaptiveDecoding().threshold_down
    assert EntropyAdaptiveDecoding(threshold=3.0, threshold_down=None).threshold_down is None
    with pytest.raises(ValueError, match="at least 2"):
        EntropyAdaptiveDecoding(repetition=1)


async def test_closing_early_closes_the_engine() -> None:
    closed = []

    async def endless(job: Job) -> AsyncGenerator[Step, None]:
        try:
            while True:
                yield Step(1, 0.0, 0.0, "small")
        finally:
            closed.append(True)

    policy = EntropyAdaptiveDecoding()
    job = Job((1,), Sampling(max_tokens=1000), "small", Services({}), Report())
    steps = policy.decode(job, endless)
    await anext(steps)
    await steps.aclose()
    assert closed == [True]


@pytest.mark.parametrize("timing", ["eager", "lagged"])
@pytest.mark.parametrize("monitor", ["active", "small"])
async def test_every_token_tells_what_was_compared(timing: str, monitor: str) -> None:
    rng = random.Random(8)
    said = set()
    for _ in range(20):
        small = [rng.choice([0.0, 0.1, 0.5, 2.0]) * rng.random() for _ in range(60)]
        large = [entropy * rng.random() for entropy in small]
        policy = EntropyAdaptiveDecoding(
            threshold=0.2, threshold_down=0.1, window=3, min_tokens=2, monitor=monitor, timing=timing  # type: ignore[arg-type]
        )  # fmt: skip
        steps, _ = await play(policy, small, large)
        values: list[float] = []
        for t, (before, step) in enumerate(pairwise([None, *steps])):
            assert step is not None
            on_large = before is not None and before.engine == "large"  # at the time of the decision
            if timing == "eager":
                watched = small[t] if monitor == "small" or not on_large else large[t]
                mean = sum([*values, watched][-3:]) / min(len(values) + 1, 3)
            elif t == 0:
                assert step.decisions == ()
                values.append(small[0])
                continue
            else:
                watched = values[-1]
                mean = sum(values[-3:]) / min(len(values), 3)
            (decision,) = step.decisions
            said.add(decision.then)
            assert decision.value == pytest.approx(mean)
            assert decision.entropy == pytest.approx(watched)
            assert decision.of == ("large" if on_large and monitor == "active" else "small")
            assert decision.threshold == (0.1 if on_large else 0.2)
            assert (decision.then == "switch") == (before is not None and before.engine != step.engine) or t == 0
            crosses = decision.value < 0.1 if on_large else decision.value >= 0.2
            assert crosses == (decision.then in ("switch", "hold"))
            values.append(small[t] if monitor == "small" or step.engine == "small" else large[t])
    assert said == {"stay", "switch", "hold"}
