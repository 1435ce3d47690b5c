"""`waver bench speed`: answers are timed piece by piece, loads alternate and go on, ratios are taken within a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.conftest import Running
from waver.benchmarks import speed
from waver.benchmarks.quality_peers import Names, families
from waver.benchmarks.speed import LOADS, Plan, found_of, measure, ratio
from waver.benchmarks.speed_client import Figures, Load, OwnClient, Timed, VllmClient, figures
from waver.clients.questions import Refused
from waver.job import read_lines

PEERS = [family.peers[0] for family in families(["small", "large", "ead={threshold: 0.5}"], Names())]


def test_figures_by_hand() -> None:
    found = figures([Timed([0.5, 0.7, 1.1], 3), Timed([0.1, 0.2], 2)], 2.0)
    assert found["median_ttft_ms"] == pytest.approx(300)
    assert found["median_itl_ms"] == pytest.approx(200)  # of 200, 400 and 100
    assert found["median_tpot_ms"] == pytest.approx((300 + 100) / 2)
    assert found["median_e2el_ms"] == pytest.approx((1100 + 200) / 2)
    assert (found["output_throughput"], found["completed"]) == (2.5, 2)


def load(peer: int = 0, **more: Any) -> Load:
    return replace(Load(PEERS[peer], ["one", "two", "three"], 2, 5, 0.0, 3), **more)


def test_our_client_counts_what_the_server_says(running: Running) -> None:
    client = OwnClient(running.v1, None)
    for place in range(3):
        found = client.run(load(place))
        assert found["completed"] == 3
        assert 3 <= found["total_output_tokens"] <= 15
        assert 0 < found["median_ttft_ms"] <= found["median_e2el_ms"] <= 1000 * found["duration"]
    with pytest.raises(Refused, match=r"small: 400.*temperature"):
        client.run(load(temperature=-1.0))


def test_both_clients_ask_for_the_same(tmp_path: Path) -> None:
    class Sent:
        def send(self, args: list[str]) -> Figures:
            self.args = args
            return {"completed": 2.0}

    sent = Sent()
    client = VllmClient(sent, "http://x/v1", "k", "folder", tmp_path)  # type: ignore[arg-type]
    asked = load(2)
    with pytest.raises(Refused, match="1 of 3 requests failed"):
        client.run(asked)
    given = dict(zip(sent.args[::2], sent.args[1::2], strict=False))
    assert json.loads(given["--extra-body"]) == asked.fields
    assert asked.fields["policy"] == [{"name": "ead", "small": "small", "large": "large", "threshold": 0.5}]
    assert (given["--num-prompts"], given["--max-concurrency"], given["--base-url"]) == ("3", "2", "http://x")
    assert [json.loads(line)["prompt"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()] == [
        *asked.prompts
    ]


class Clock:
    """A client that takes as long as the peer says, on a machine that grows slower from run to run."""

    name = "made up"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []

    def run(self, load: Load) -> Figures:
        self.asked.append((load.peer.name, load.concurrency, load.seed))
        seconds = {"small": 1.0, "large": 4.0}.get(load.peer.name, 3.0) * (1 + load.seed)
        times = dict.fromkeys(speed.COLUMNS, 1000 * seconds)
        return {**times, "completed": float(len(load.prompts)), "duration": seconds, "output_throughput": 1 / seconds}


def test_peers_take_turns_and_ratios_are_within_runs(tmp_path: Path) -> None:
    settings = {"max_tokens": 5, "temperature": 0.0, "seed": 0}
    plan = Plan(PEERS, [str(i) for i in range(50)], (1, 4), 3, 2, settings)
    clock = Clock()
    measure(plan, clock, tmp_path)
    counted = [(name, run) for name, concurrency, run in clock.asked if concurrency == 4]
    assert {name for name, _ in counted} == {peer.name for peer in PEERS}
    firsts = {next(name for name, of in counted if of == run) for run in range(3)}
    assert len(firsts) == 3, "each goes first once"
    told = found_of(plan, read_lines(tmp_path / LOADS))
    assert told["4"]["runs"] == 3
    small = told["4"]["peers"]["small"]["ratios"]
    assert small["duration"]["ratio"] == pytest.approx(0.25)
    assert small["output_throughput"]["ratio"] == pytest.approx(4)
    assert told["4"]["peers"]["large"]["ratios"]["duration"] == {"ratio": 1.0, "interval": None}
    assert plan.load(PEERS[0], 4, 0).prompts == plan.load(PEERS[1], 4, 0).prompts != plan.load(PEERS[0], 4, 1).prompts
    before = len(clock.asked)
    measure(plan, clock, tmp_path)
    assert len(clock.asked) == before, "nothing is run twice"


def test_a_ratio_has_students_interval_of_its_logarithm() -> None:
    found = ratio([0.5, 2.0])
    assert found["ratio"] == pytest.approx(1)
    low, high = found["interval"]
    assert low * high == pytest.approx(1)
    assert high > 2
    assert ratio([0.5])["interval"] is None


def bench(*options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(speed.app, [*map(str, options)], env={"COLUMNS": "400"})
    assert result.exit_code == code, result.output
    return result.output


def test_on_a_server(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i}?", "answer": "x"}) + "\n" for i in range(8)))
    options = (file, "--base-url", running.v1, "--work", tmp_path / "work", "--out", tmp_path, "--concurrency", 2,
               "--rounds", 1, "--runs", 2, "--max-tokens", 4, "--client", "own", "--peer", "small")  # fmt: skip
    run: Callable[..., Figures] = OwnClient.run

    def stopped(self: OwnClient, load: Load) -> Figures:
        if load.peer.name == "small" and load.max_tokens == 4 and len(load.prompts) > 1:
            raise KeyboardInterrupt
        return run(self, load)

    with monkeypatch.context() as patch:
        patch.setattr(OwnClient, "run", stopped)
        assert "the same command goes on" in bench(*options, code=130)
    before = read_lines(tmp_path / "work" / LOADS)
    told = bench(*options)
    assert "a client of Waver's own" in told
    lines = read_lines(tmp_path / "work" / LOADS)
    assert len(lines) == 4
    assert lines[: len(before)] == before
    made = json.loads((tmp_path / "speed.json").read_text())
    assert list(made["loads"]["2"]["peers"]) == ["large", "small"]
    for wrong, words in (
        (("--peer", "ead={threshold: [1, 2]}"), "say which setting"),
        (("--peer", "random"), "say which setting"),
        (("--client", "vllm", "--work", tmp_path / "other"), "--tokenizer"),
        (("--runs", 2, "--max-tokens", 5), "holds another run"),
    ):
        if wrong[1] == "vllm" and find_spec("vllm") is None:
            continue
        assert words in bench(*options, *wrong, code=1)
