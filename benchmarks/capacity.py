"""Simulate a deployment at 10, 1,000 and 100,000 requests a second, by measured times, and say what breaks first.

Three resources are simulated: replicas of an engine (continuous batching, a step as long as measured for its batch),
processes of Waver (one thread of CPU time for each token that is streamed, as measured), and the database of keys
(three transactions for each request of a key with limits, as measured by this command). Requests arrive at random, with
answers of exponential length; a balancer gives each replica and process an equal part of them.
"""

from __future__ import annotations

import heapq
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from waver.benchmarks import report
from waver.benchmarks.postgres import Missing, Postgres

RATES = (10, 1_000, 100_000)
"""Requests a second."""
TOKENS = 200
"""Mean length of an answer."""
WAIT = 1.0
"""Seconds in the queue that a tenth of the requests may exceed."""
LAG = 0.05
"""Seconds by which a token may be late because Waver's thread is busy, in a hundredth of all cases."""
SIMULATED = 3_000
"""Requests of one simulation of a replica; the first fifth warms it up."""
STREAMED = 400_000
"""Tokens of one simulation of a process, of which the first half warms it up: answers last some seconds."""
app = report.command()


@dataclass(frozen=True)
class Steps:
    """Seconds of an engine's step by its batch: measured points, straight lines between, and the last one's slope."""

    batches: tuple[int, ...]
    seconds: tuple[float, ...]

    def of(self, batch: int) -> float:
        """Return the seconds of a step with so many sequences."""
        place = min(max(bisect_left(self.batches, batch), 1), len(self.batches) - 1)
        (low, high), (least, most) = self.batches[place - 1 : place + 1], self.seconds[place - 1 : place + 1]
        return least + (most - least) * (batch - low) / (high - low)


def replica(
    steps: Steps, rate: float, slots: int, tokens: int = TOKENS, count: int = SIMULATED, seed: int = 1
) -> float:
    """Simulate one replica of an engine at `rate` requests a second; return the 90th percentile of the wait for a slot,
    in seconds."""
    draw, count = random.Random(seed), count or SIMULATED
    now, arrival = 0.0, draw.expovariate(rate)
    arrived, waiting, running = 0, deque[float](), list[int]()
    waits: list[float] = []
    while len(waits) < count:
        if not running and not waiting:
            now = max(now, arrival)
        while arrived < count and arrival <= now:
            waiting.append(arrival)
            arrived += 1
            arrival += draw.expovariate(rate)
        while waiting and len(running) < slots:
            waits.append(now - waiting.popleft())
            running.append(max(round(draw.expovariate(1 / tokens)), 1))
        if running:
            now += steps.of(len(running))
            running = [left - 1 for left in running if left > 1]
    return statistics.quantiles(waits[count // 5 :], n=10)[-1]


def front(
    seconds: float, rate: float, pace: float, tokens: int = TOKENS, seed: int = 1, most: int | None = None
) -> float:
    """Simulate one process of Waver that streams `rate` answers a second, each a token every `pace` seconds, with
    `seconds` of its thread for each token; return the 99th percentile of a token's delay, in seconds."""
    draw, most = random.Random(seed), most or STREAMED
    answers: list[tuple[float, int]] = []
    arrival, free, late = draw.expovariate(rate), 0.0, list[float]()
    while len(late) < most:
        if not answers or arrival < answers[0][0]:
            heapq.heappush(answers, (arrival, max(round(draw.expovariate(1 / tokens)), 1)))
            arrival += draw.expovariate(rate)
        due, left = heapq.heappop(answers)
        free = max(free, due) + seconds
        late.append(free - due)
        if left > 1:
            heapq.heappush(answers, (due + pace, left - 1))
    return statistics.quantiles(late[most // 2 :], n=100)[-1]


def most_rate(holds: Callable[[float], bool], least: float, most: float) -> float:
    """Return the highest rate at which something holds, within 2 %, by bisection."""
    while most / least > 1.02:
        middle = math.sqrt(least * most)
        least, most = (middle, most) if holds(middle) else (least, middle)
    return least


def databases() -> dict[str, dict[str, float]]:
    """Measure what this machine's databases take, with one key and with a thousand."""
    found: dict[str, dict[str, float]] = {}

    def measure(name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "waver.server.tenants.speed", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout)

    with tempfile.TemporaryDirectory(prefix="waver-capacity-") as home:
        measure("SQLite", home)
    try:
        with tempfile.TemporaryDirectory(prefix="waver-capacity-") as home:
            server = Postgres(Path(home))
            server.create()
            try:
                measure("PostgreSQL", home, server.url)
            finally:
                server.stop()
    except Missing as error:
        report.console.print(f"PostgreSQL is left out: {error}.")
    return found


def measured(folder: Path) -> tuple[Steps, float, dict[str, Any]]:
    """Read the steps of an engine and the CPU time of Waver for each token, from committed results."""
    steps = json.loads((folder / "vllm_steps.json").read_text(encoding="utf-8"))
    vocabulary = min(steps["vocabularies"], key=int)
    by_batch = steps["vocabularies"][vocabulary]["steps"]
    batches = tuple(sorted(map(int, by_batch)))
    way = "exact entropy and gate, greedy"
    seconds = tuple(by_batch[str(batch)][way]["step_ms"]["median"] / 1000 for batch in batches)
    serving = json.loads((folder / "vllm_serving.json").read_text(encoding="utf-8"))
    loads = serving["models"]["random"]["loads"]
    starts = loads["32 at a time, temperature 0"]["starts"]
    times = [run["waver"]["cpu_ms_per_token"]["python"] / 1000 for start in starts for run in start]
    told = {
        "engine": f"{steps['vocabularies'][vocabulary]['parameters'] / 1e6:.0f}M parameters under vLLM on "
        f"{steps['machine']['cores']} cores",
        "step_ms": {str(b): 1000 * s for b, s in zip(batches, seconds, strict=True)},
        "front_ms_per_token": 1000 * statistics.median(times),
    }
    return Steps(batches, seconds), statistics.median(times), told


def simulate(
    steps: Steps, token_seconds: float, slots: int, found: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Return what one replica, one process and each database take, and how many of each the rates need."""
    full = slots / steps.of(slots) / TOKENS
    one_replica = most_rate(lambda rate: replica(steps, rate, slots) <= WAIT, full / 50, full)
    pace, ceiling = steps.of(slots), 1 / (token_seconds * TOKENS)
    one_process = most_rate(lambda rate: front(token_seconds, rate, pace) <= LAG, ceiling / 50, ceiling)
    kept = {f"{name}, {keys} key{'s' * (keys != '1')}": rate for name, by in found.items() for keys, rate in by.items()}
    rows = []
    for rate in RATES:
        load = {"one replica": rate / one_replica, "one process": rate / one_process}
        load |= {name: rate / most for name, most in kept.items()}
        broken = sorted((name for name in load if load[name] > 1), key=lambda name: -load[name])
        rows.append({
            "rate": rate, "replicas": math.ceil(rate / one_replica), "processes": math.ceil(rate / one_process),
            "database": {name: rate / most for name, most in kept.items()}, "breaks": broken,
        })  # fmt: skip
    return {"replica": one_replica, "process": one_process, "databases": kept, "rates": rows}


def page(numbers: Mapping[str, Any]) -> Sequence[str]:
    """Return the page of results."""
    told, found = numbers["measured"], numbers["simulated"]
    limits = [
        ["a replica of the engine", f"{found['replica']:.2f}", f"a tenth of the requests wait {WAIT:g} s for a slot"],
        ["a process of Waver", f"{found['process']:.1f}", f"a hundredth of the tokens is {1000 * LAG:.0f} ms late"],
        *([name, f"{rate:.0f}", "the transactions take all of it"] for name, rate in found["databases"].items()),
    ]
    rows = [
        [f"{each['rate']:,}", f"{each['replicas']:,}", f"{each['processes']:,}",
         ", ".join(f"{name}: {part:.2g}" for name, part in each["database"].items()), ", then ".join(each["breaks"])]
        for each in found["rates"]
    ]  # fmt: skip
    steps = ", ".join(f"{ms:.1f} ms at {batch}" for batch, ms in told["step_ms"].items())
    return [
        "# Capacity: what breaks first",
        f"A simulation by measured times: an engine of {told['engine']} with {numbers['settings']['slots']} sequences "
        f"at a time (a step takes {steps}), {told['front_ms_per_token']:.3f} ms of Waver's thread for each token that "
        f"is streamed, and the databases of this machine. Answers have {TOKENS} tokens in the mean.",
        report.table(["resource", "requests a second", "until"], limits),
        report.table(
            ["requests a second", "replicas", "processes of Waver", "load of the database", "breaks, one of each"], rows
        ),
        "A load above 1 is more than it takes. Replicas scale with a GPU's own steps: give `--steps` what yours takes. "
        "Reading prompts is left out, as is the network; the databases were measured with eight threads on the machine "
        "that also ran them.",
    ]


@app.command()
def main(
    context: typer.Context,
    slots: Annotated[int, typer.Option(min=2, help="Sequences at a time in a replica.")] = 64,
    steps: Annotated[
        Path | None, typer.Option(help='JSON with the seconds of a step by batch, `{"1": 0.01, "64": 0.02}`.')
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder with vllm_steps.json and vllm_serving.json.")] = Path(
        "benchmarks/results"
    ),
    out: report.Out = report.RESULTS,
) -> None:
    """Simulate 10, 1,000 and 100,000 requests a second by measured times.

    Writes capacity.json and .md. Less than a minute on one core.
    """
    numbers = report.conditions("capacity", dict(context.params))
    taken, token_seconds, told = measured(results)
    if steps is not None:
        given = {int(batch): float(s) for batch, s in json.loads(steps.read_text(encoding="utf-8")).items()}
        if len(given) < 2:
            raise typer.BadParameter("--steps needs the times of two batches at least.")
        taken = Steps(tuple(sorted(given)), tuple(given[batch] for batch in sorted(given)))
        told |= {"engine": f"the steps of {steps.name}", "step_ms": {str(b): 1000 * given[b] for b in sorted(given)}}
    numbers |= {"measured": told, "simulated": simulate(taken, token_seconds, slots, databases())}
    report.write(out, "capacity", numbers, page(numbers))


if __name__ == "__main__":
    app()
