"""Choosing among several runs over HTTP: rules, streams, a judge from its training to its use, and bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import yaml
from typer.testing import CliRunner

from tests.conftest import ROOT, Running, until
from waver.cli import app
from waver.clients.client import report
from waver.clients.policies import entropy_judger
from waver.engines.judge import Judge
from waver.server.artifacts import load_entry
from waver.server.config import load_config
from waver.server.routing import Router
from waver.training.judge import run as judging
from waver.training.pair.world import draw

SUMS = draw("arithmetic", 31, 12, steps=(2, 5))


@pytest.fixture(scope="module")
def tiny(start: Callable[..., Running]) -> Running:
    return start(max_extra_tokens=300, max_extra_sequences=40)


@pytest.fixture(scope="module")
def bundled(start: Callable[..., Running]) -> Running:
    engines = {"small": {"model": str(ROOT / "models" / "small")}}
    return start(config={"engines": engines, "presets": {}, "default_preset": None})


def ask(running: Running, prompt: str = "hello", **options: Any) -> Any:
    policy = options.pop("policy")
    settings = {"model": "large", "max_tokens": 12, "seed": 3, **options}
    with running.openai() as client:
        return client.chat.completions.create(
            messages=[{"role": "user", "content": prompt}], extra_body={"policy": [policy]}, **settings
        )


def test_a_stream_shows_the_chosen_answer(tiny: Running) -> None:
    policy = entropy_judger(samples=4, select="min_entropy")
    whole = ask(tiny, policy=policy)
    told = report(whole).model_extra["selection"]  # type: ignore[index]
    runs = told["runs"]
    assert told["chosen"] == min(range(4), key=lambda i: runs[i]["entropy"])
    assert sum(told["tokens"].values()) == sum(run["tokens"] for run in runs)
    assert report(whole).discarded_tokens == sum(run["tokens"] for i, run in enumerate(runs) if i != told["chosen"])
    with tiny.openai() as client:
        stream = client.chat.completions.create(
            model="large",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=12,
            seed=3,
            stream=True,
            extra_body={"policy": [policy]},
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    with tiny.http() as http:
        counted = http.get("/metrics").text
    assert 'waver_selections_total{rule="min_entropy"} 2.0' in counted


def test_the_convention_s_entropies_come_from_inside_the_engine(tiny: Running) -> None:
    """Runs of one token each: the entropies are those that a trace shows for the tempered, truncated distribution."""
    given = {"samples": 1, "temperature": 0.7, "top_p": 0.5}
    drawn, raw = (
        report(ask(tiny, max_tokens=1, policy=entropy_judger(**given, entropy=kind))).model_extra["selection"]  # type: ignore[index]
        for kind in ("drawn", "raw")
    )
    with tiny.openai() as client:
        plain = client.chat.completions.create(
            model="large",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=1,
            seed=3,
            temperature=0.7,
            extra_body={
                "policy": [{"name": "top_p", "p": 0.5}, {"name": "adaptive_temperature", "upper": 1.0}][:1],
                "trace": True,
            },
        )
    token = report(plain).trace[0]
    assert raw["runs"][0]["entropy"] == pytest.approx(token.entropy, abs=1e-4)
    assert 0 <= drawn["runs"][0]["entropy"] < raw["runs"][0]["entropy"]


def test_topologies_with_roles(tiny: Running) -> None:
    policy = entropy_judger(samples=2, topology="sequential", roles={"planner": "small"})
    told = report(ask(tiny, max_tokens=6, policy=policy)).model_extra["selection"]  # type: ignore[index]
    assert set(told["tokens"]) == {"small", "large"}
    assert told["tokens"]["small"] <= 2 * 6
    assert all(run["tokens"] <= 4 * 6 for run in told["runs"])


def test_roles_with_presets(tiny: Running) -> None:
    """A planner under the preset `coin`, which two engines write, beside roles of the request's engine alone."""
    policy = entropy_judger(samples=2, topology="sequential", roles={"planner": "waver/coin"}, entropy="raw")
    answer = ask(tiny, max_tokens=24, policy=policy)
    told = report(answer).model_extra["selection"]  # type: ignore[index]
    assert set(told["tokens"]) == {"small", "large"}
    assert told["tokens"]["small"] <= 2 * 24, "the planners' alone"
    assert set(report(answer).tokens) == {"small", "large"}
    with pytest.raises(openai.BadRequestError, match="there is no preset 'none'"):
        ask(tiny, policy=entropy_judger(topology="debate", roles={"math": "waver/none"}))


def test_a_preset_that_cannot_be_a_role(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    presets = {
        "asks": [{"name": "c_ip", "predictor": "table"}],
        "team": [{"name": "entropy_judger", "topology": "debate", "roles": {"math": "waver/asks"}}],
    }
    file = tmp_path / "waver.yaml"
    file.write_text(yaml.safe_dump({**tiny_config, "presets": presets, "default_preset": None}))
    config = load_config(file)
    engines = {name: SimpleNamespace(parameters=1, tokens=None) for name in config.engines}
    with pytest.raises(
        ValueError, match=r"preset 'team': .*the preset 'asks' cannot do a part of a request: it has c_ip"
    ):
        Router(config, engines, ())  # type: ignore[arg-type]


def test_bounds(tiny: Running) -> None:
    answer = ask(tiny, max_tokens=200, policy=entropy_judger(samples=8, select="min_entropy"))
    told = report(answer).model_extra["selection"]  # type: ignore[index]
    assert told["ended"] == "extra_tokens"
    assert 1 <= len(told["runs"]) < 8
    assert sum(told["tokens"].values()) <= 200 + 300 + 8
    with pytest.raises(openai.BadRequestError, match="at most 40 are drawn") as refused:
        ask(tiny, policy=entropy_judger(samples=11, topology="sequential"))
    assert refused.value.body["param"] == "policy[0].samples"  # type: ignore[index]
    with pytest.raises(openai.BadRequestError, match="no judge is configured"):
        ask(tiny, policy=entropy_judger(select="judge"))
    with pytest.raises(openai.BadRequestError, match="unknown engine 'nobody'"):
        ask(tiny, policy=entropy_judger(topology="debate", roles={"math": "nobody"}))


async def test_a_client_that_leaves_leaves_nothing_behind(start: Callable[..., Running]) -> None:
    running = start()
    policy = entropy_judger(samples=4, topology="hybrid", temperature=2.0, top_p=1.0)
    body = {"model": "large", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 150, "policy": [policy]}
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as http:
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=body | {"ignore_eos": True}))
        await asyncio.to_thread(until, lambda: running.active >= 4, "several runs at a time")
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert await asyncio.to_thread(running.idle, 10)


def waver(*options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["train", "judge", *map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output


def test_a_judge_is_trained_goes_on_and_judges(
    bundled: Running, tiny: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions, out = tmp_path / "questions.jsonl", tmp_path / "judge"
    questions.write_text("".join(json.dumps({"question": s.prompt, "answer": s.answer}) + "\n" for s in SUMS))
    given = (questions, "--out", out, "--model", "small", "--samples", 2, "--max-tokens", 60, "--base-url", bundled.v1)
    hot = ("--set", "temperature=1.8", "--set", "top_p=1.0")
    assert "questions are few" in waver(*given, *hot)
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert sorted(line["place"] for line in lines) == list(range(len(SUMS)))
    judge = Judge.load(out)
    assert (judge.record.model, judge.record.convention.temperature) == ("small", 1.8)
    page = (out / "README.md").read_text()
    assert "| runs | random | min_entropy | vote | judge | auto | oracle |" in page
    assert all((out / name).stat().st_size > 5_000 for name in ("accuracy.png", "calibration.png"))

    # As if it had been cut off while the second last question was written down.
    begun = (out / "runs.jsonl").read_text().splitlines(keepends=True)
    (out / "runs.jsonl").write_text("".join(begun[:-2]) + begun[-2][:40])
    asked: list[int] = []
    right_ones = judging.right_ones
    monkeypatch.setattr(judging, "right_ones", lambda *args: asked.append(1) or right_ones(*args))
    waver(*given, *hot)
    assert len(asked) == 2
    again = Judge.load(out)
    told = {line["place"]: line for line in lines}
    for line in map(json.loads, (out / "runs.jsonl").read_text().splitlines()):
        assert [run["answer"] for run in line["runs"]] == [run["answer"] for run in told[line["place"]]["runs"]]
    assert again.record.features == judge.record.features
    assert "another run" in waver(*given, "--set", "temperature=1.0", code=1)
    bundled.runtime.judges["mine"] = tiny.runtime.judges["mine"] = again
    policy = entropy_judger(samples=3, select="judge", temperature=1.8, top_p=1.0)
    answer = ask(bundled, SUMS[0].prompt, model="small", max_tokens=60, policy=policy)
    selection = report(answer).model_extra["selection"]  # type: ignore[index]
    probabilities = [run["probability"] for run in selection["runs"]]
    assert (selection["judge"], selection["chosen"]) == ("mine", probabilities.index(max(probabilities)))
    with pytest.raises(openai.BadRequestError, match="trained on small, and the solver's engine is another model"):
        ask(tiny, model="small", policy=policy)
    with pytest.raises(openai.BadRequestError, match=r"temperature 1\.8 and not 0\.6"):
        ask(bundled, model="small", policy=entropy_judger(select="judge", top_p=1.0))
    del tiny.runtime.judges["mine"]


def test_a_configured_judge_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^judge 'mine': .* holds no judge: judge\.json is missing$"):
        load_entry("judges", "mine", str(tmp_path))
