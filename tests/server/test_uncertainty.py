"""Uncertainty over HTTP: the endpoint, the policy in a stream, and a calibration from its making to its use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from typer.testing import CliRunner

from tests.conftest import ROOT, Running, until
from tests.policies.uncertainty.test_entailment import save
from waver.cli import app
from waver.clients import uncertainty as measuring
from waver.clients.client import report
from waver.clients.policies import inv_entropy
from waver.policies.uncertainty.calibration import Calibration
from waver.server.artifacts import load_entry
from waver.training.pair.world import draw

SUMS = draw("arithmetic", 47, 8, steps=(1, 6))
HELLO = [{"role": "user", "content": "What is 3 + 4?"}]
CHEAP = {"similarity": "words", "perturbations": 2, "replications": 2, "answer_tokens": 6}


@pytest.fixture(scope="module")
def tiny(start: Callable[..., Running]) -> Running:
    return start(max_extra_tokens=400, max_extra_sequences=80)


@pytest.fixture(scope="module")
def bundled(start: Callable[..., Running]) -> Running:
    engines = {"small": {"model": str(ROOT / "models" / "small")}}
    return start(config={"engines": engines, "presets": {}, "default_preset": None})


def post(running: Running, **body: Any) -> httpx.Response:
    with running.http() as http:
        given = {"model": "large", "messages": HELLO, "max_tokens": 8, "seed": 1, **CHEAP, **body}
        return http.post("/v1/uncertainty", json=given)


def test_measures_of_one_answer(tiny: Running) -> None:
    names = ["inv_entropy", "semantic_entropy", "mean_entropy", "p_true"]
    found = post(tiny, measures=names, details=True)
    assert found.status_code == 200, found.text
    told = found.json()
    assert told["object"] == "uncertainty"
    assert list(told["scores"]) == names
    assert told["score"] == told["scores"]["inv_entropy"]
    assert told["waver"]["uncertainty"]["scores"] == told["scores"]
    assert told["waver"]["entropy"]["mean"] == pytest.approx(told["scores"]["mean_entropy"])
    assert len(told["variants"]) == 3
    assert [len(own) for own in told["answers"]] == [2, 2, 2]
    assert told["usage"]["completion_tokens"] == told["waver"]["tokens"]["large"]
    measuring = told["waver"]["uncertainty"]["tokens"]["large"]
    assert told["tokens"] == {"large": told["usage"]["completion_tokens"] + measuring}, "all that the engines made"
    assert measuring == told["waver"]["discarded_tokens"]
    with tiny.openai() as client:
        plain = client.chat.completions.create(model="large", messages=HELLO, max_tokens=8, seed=1)  # type: ignore[arg-type]
    assert told["answer"] == plain.choices[0].message.content
    assert post(tiny, measures=names, details=True).json()["scores"] == pytest.approx(told["scores"], rel=1e-4)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"measures": ["guess"]}, 400, "unknown measure 'guess'"),
        ({"measures": []}, 400, "measures"),
        ({"stream": True}, 400, "leave out stream"),
        ({"stop": "."}, 400, "leave out stop"),
        ({"n": 2}, 400, "leave out n"),
        ({"perturbations": 32, "replications": 32}, 400, "at most 80 are drawn"),
        ({"replications": 0}, 400, "greater than or equal to 1"),
        ({"calibration": "mine"}, 400, "unknown calibration 'mine'"),
        ({"policy": "frugal"}, 400, "list of policies"),
        ({"model": "nobody"}, 404, "no model"),
        ({"similarity": "nli"}, 400, "no model of entailment here"),
    ],
)
def test_what_is_refused(tiny: Running, body: dict[str, Any], status: int, words: str) -> None:
    found = post(tiny, **body)
    assert found.status_code == status
    assert words in found.json()["error"]["message"]


def test_texts_are_compared_by_entailment(start: Callable[..., Running], tmp_path: Path) -> None:
    refused = start(wait=False, config={"entailment": str(tmp_path / "none")})
    until(lambda: refused.runtime.failure is not None, "the server to give up")
    assert "is no folder" in str(refused.runtime.failure)
    running = start(config={"entailment": str(save(tmp_path / "nli"))})
    names = ["inv_entropy", "semantic_entropy", "luq", "deg_mat"]
    told = post(running, measures=names, similarity="nli", details=True).json()
    assert list(told["scores"]) == names
    assert told["settings"]["similarity"] == "nli"
    assert 0 < told["scores"]["luq"] < 1


def test_an_allowance_that_is_spent_is_told(tiny: Running) -> None:
    told = post(tiny, perturbations=7, replications=8, answer_tokens=300, messages=HELLO).json()
    assert (told["score"], told["ended"]) == (None, "extra_tokens")
    assert told["answer"]
    assert tiny.idle(within=5)


def test_a_stream_flows_and_ends_with_the_measure(tiny: Running) -> None:
    policy = inv_entropy(**CHEAP, measure="semantic_entropy", also=["max_entropy"])
    with tiny.openai() as client:
        stream = client.chat.completions.create(
            model="large", messages=HELLO, max_tokens=8, seed=1, stream=True, extra_body={"policy": [policy]}
        )  # type: ignore[call-overload]
        chunks = list(stream)
    told = report(chunks[-1] if chunks[-1].choices else chunks[-2]).model_extra["uncertainty"]  # type: ignore[index]
    assert set(told["scores"]) == {"semantic_entropy", "max_entropy"}
    with tiny.openai() as client:
        changed = client.chat.completions.create(
            model="small",
            messages=HELLO,
            max_tokens=8,
            seed=1,
            extra_body={
                "policy": [
                    inv_entropy(**CHEAP, measure="max_entropy", level=0.001, then="engine", engine="large"),
                ]
            },
        )  # type: ignore[call-overload]
    assert report(changed).tokens["small"] == 0
    assert report(changed).model_extra["uncertainty"]["action"] == "engine"  # type: ignore[index]
    with tiny.http() as http:
        assert 'waver_uncertain_answers_total{action="engine"} 1.0' in http.get("/metrics").text


async def test_a_client_that_leaves_leaves_nothing_behind(start: Callable[..., Running]) -> None:
    running = start()
    body = {"model": "large", "messages": HELLO, **CHEAP, "answer_tokens": 900, "replications": 8, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as http:
        asked = asyncio.create_task(http.post("/v1/uncertainty", json=body))
        await asyncio.to_thread(until, lambda: running.active >= 2, "several answers at a time")
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert await asyncio.to_thread(running.idle, 10)


def waver(*options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["calibrate", "inv_entropy", *map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output


def test_a_calibration_is_made_goes_on_and_is_used(
    bundled: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions, out = tmp_path / "questions.jsonl", tmp_path / "calibration"
    questions.write_text("".join(json.dumps({"question": s.prompt, "answer": s.answer}) + "\n" for s in SUMS))
    common = (questions, "--out", out, "--model", "small", "--max-tokens", 80, "--base-url", bundled.v1)
    few = ("--measure", "self_consistency", "--measure", "mean_entropy", "--similarity", "words", "--replications", 2)
    heat = ("--at", 0.3, "--at", 1.5, "--scorer", "number", "--instruction", "")
    said = waver(*common, *few, *heat)
    assert "questions are few" in said
    assert "| measure | AUROC | Brier | TSU |" in (out / "README.md").read_text()
    made = Calibration.load(out)
    assert set(made.measures) == {"self_consistency", "mean_entropy"}
    assert made.about["questions"] == len(SUMS)
    told = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert sorted(line["line"] for line in told) == list(range(1, len(SUMS) + 1))
    assert all(len(line["scores"]) == 3 for line in told)
    assert any(line["scores"][2]["self_consistency"] > 0 for line in told)

    begun = (out / "answers.jsonl").read_text().splitlines(keepends=True)
    (out / "answers.jsonl").write_text("".join(begun[:-2]) + begun[-2][:30])
    asked: list[int] = []
    ask = measuring._ask

    async def counted(http: Any, question: Any, *rest: Any) -> Any:
        asked.append(question.line)
        return await ask(http, question, *rest)

    monkeypatch.setattr(measuring, "_ask", counted)
    waver(*common, *few, *heat)
    assert len(asked) == 2 * 3
    assert "another run" in waver(*common, *few, code=1)

    bundled.runtime.calibrations["mine"] = made
    body = {"model": "small", "similarity": "words", "replications": 2, "instruction": "", "perturbations": 9}
    given = body | {"answer_tokens": 64, "calibration": "mine", "max_tokens": 80}
    found = post(bundled, **given, measures=["mean_entropy"]).json()
    assert 0 <= found["probability"] <= 1
    assert found["calibration"] == "mine"
    refused = post(bundled, **given | {"replications": 3}, measures=["mean_entropy"])
    assert "it was made with replications 2, and not 3" in refused.json()["error"]["message"]


def test_a_configured_calibration_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(ValueError, match=r"calibration 'mine': .*calibration\.json cannot be read: Field required"):
        load_entry("calibrations", "mine", str(tmp_path))


def test_the_policy_is_refused_before_the_first_token(tiny: Running) -> None:
    with tiny.openai() as client, pytest.raises(openai.BadRequestError, match="nothing can be said behind"):
        client.chat.completions.create(
            model="large",
            messages=HELLO,
            response_format={"type": "json_object"},
            extra_body={"policy": [inv_entropy(**CHEAP, level=0.5, then="say")]},
        )  # type: ignore[call-overload]
