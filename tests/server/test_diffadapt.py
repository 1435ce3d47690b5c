"""Thinking as much as the question needs, over HTTP: a probe that is trained here, on the bundled pair."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from tests.conftest import ROOT, Running
from tests.engines.vllm_here import needs_vllm
from waver.clients.client import report
from waver.clients.policies import diffadapt, ead, forced_answer, l_rag
from waver.engines import TransformersConfig, load_engine
from waver.engines.base import Engine
from waver.engines.probe import Probe, Record, reference_ids
from waver.policies.think.difficulty import DIFFICULTIES
from waver.server.config import load_config
from waver.server.runtime import Runtime
from waver.training.pair.data import STRATEGIES
from waver.training.pair.world import documents, draw, score_text

WORDS = "How hard is this question? It is"
WORDING = {"easy": STRATEGIES["direct"], "normal": STRATEGIES["checked"], "hard": STRATEGIES["working"]}
SUMS = draw("arithmetic", 277, 240)
TAIL = draw("tail_facts", 277, 4)


def steps(prompt: str) -> int:
    """Additions and subtractions in a sum."""
    return len(re.findall(r" [+-] ", prompt))


def grade(prompt: str) -> int:
    """The class that this test's probe learns: by length, and easy for what is no sum."""
    return 0 if steps(prompt) < 2 else 1 if steps(prompt) < 5 else 2


async def states(engine: Engine, prompts: list[str]) -> torch.Tensor:
    words = engine.tokens.encode(WORDS, add_special_tokens=False)
    rows = [
        await engine.hidden_state([*engine.tokens.chat([{"role": "user", "content": prompt}]), *words])
        for prompt in prompts
    ]
    return torch.stack(rows)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe of the large model, trained on which class a sum's length puts it in."""
    engine = load_engine("large", TransformersConfig(model=str(ROOT / "models" / "large"), dtype="float32"))
    prompts = [item.prompt for item in SUMS[40:160]] + [item.prompt for item in draw("tail_facts", 278, 40)]
    known = asyncio.run(states(engine, prompts))
    torch.manual_seed(0)
    hidden = known.shape[1]
    weights = {
        name: (torch.randn(shape) / shape[-1] ** 0.5).requires_grad_()
        for name, shape in {"W1": (64, hidden), "b1": (64,), "W2": (3, 64), "b2": (3,)}.items()
    }
    ids = reference_ids(engine, WORDS)
    made = Probe(weights, Record(model="models/large", words=WORDS, labels="paper"), ids, torch.zeros(hidden))
    optimiser = torch.optim.AdamW(weights.values(), lr=3e-3)
    wanted = torch.tensor([grade(prompt) for prompt in prompts])
    for _ in range(150):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(made(known), wanted).backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("probe")
    state = asyncio.run(engine.hidden_state(ids))
    Probe({name: weight.detach() for name, weight in weights.items()}, made.record, ids, state).save(folder)
    asyncio.run(engine.aclose())
    return folder


@pytest.fixture(scope="module")
def world(start: Callable[..., Running], probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """The bundled pair as it is configured, with the probe and some documents."""
    bundled = load_config()
    running = start(
        config={
            "engines": {name: {"model": str(ROOT / "models" / name)} for name in ("small", "large")},
            "presets": {"thoughtful": [{"name": "diffadapt", "probe": "mine"}]},
            "policies": bundled.policies,
            "probes": {"mine": str(probe)},
            "default_preset": "thoughtful",
            "retrieval": {"path": str(tmp_path_factory.mktemp("data") / "collections")},
        }
    )
    asked = {item.passage for item in TAIL}
    with running.http() as http:
        assert http.post("/v1/collections", json={"name": "velmora"}).status_code == 200
        rows = [{"id": each.id, "text": each.text} for each in documents() if each.text in asked]
        assert http.post("/v1/collections/velmora/documents", json={"documents": rows}).status_code == 200
    return running


@pytest.fixture
def client(world: Running) -> Iterator[openai.OpenAI]:
    with world.openai() as client:
        yield client


def ask(client: openai.OpenAI, prompt: str, *policy: dict[str, Any], **options: Any) -> Any:
    settings = {"model": "large", "temperature": 0, "max_tokens": 200, "seed": 3} | options
    extra = {"policy": list(policy)} | settings.pop("extra_body", {})
    return client.chat.completions.create(messages=[{"role": "user", "content": prompt}], extra_body=extra, **settings)


def test_the_probe_decides_and_the_strategy_shows(client: openai.OpenAI) -> None:
    agreed, lengths = 0, {}
    for item in SUMS[:12]:
        response = ask(client, item.prompt, diffadapt())
        told = report(response)
        assert told.difficulty is not None
        assert sum(told.difficulty["probabilities"].values()) == pytest.approx(1.0)
        assert (told.difficulty["probe"], told.difficulty["engine"]) == ("mine", "large")
        likeliest = max(told.difficulty["probabilities"], key=told.difficulty["probabilities"].get)
        agreed += likeliest == DIFFICULTIES[grade(item.prompt)]
        assert told.strategy in (likeliest, "normal")
        named = ask(client, item.prompt, diffadapt(strategy=told.strategy))
        assert named.choices[0].message.content == response.choices[0].message.content
        assert report(named).difficulty is None
        assert named.usage == response.usage
        text = response.choices[0].message.content
        assert ("Check:" in text) == (told.strategy == "normal")
        lengths.setdefault(told.strategy, []).append(response.usage.completion_tokens)
        assert sum(told.tokens.values()) == response.usage.completion_tokens
    assert set(lengths) == set(DIFFICULTIES)
    assert agreed >= 10
    plain = ask(client, item.prompt, max_tokens=1)
    assert response.usage.prompt_tokens == plain.usage.prompt_tokens, "words are not counted as the client's"


def test_streams_choices_and_seeds(client: openai.OpenAI) -> None:
    prompt = next(item.prompt for item in SUMS[:40] if steps(item.prompt) > 6)
    options = {"temperature": 1.0, "n": 3, "max_tokens": 120, "seed": 11}
    whole = ask(client, prompt, diffadapt(), forced_answer(), **options)
    again = ask(client, prompt, diffadapt(), forced_answer(), **options)
    assert [c.message.content for c in again.choices] == [c.message.content for c in whole.choices]
    chunks = list(
        ask(
            client, prompt, diffadapt(), forced_answer(), stream=True, stream_options={"include_usage": True}, **options
        )
    )
    texts = ["", "", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert chunks[-1].usage == whole.usage
    ends = {c.choices[0].index: c.choices[0].waver for c in chunks if c.choices and c.choices[0].finish_reason}
    for choice in whole.choices:
        for one in (choice.waver, ends[choice.index]):
            assert one["strategy"] == "hard"
            assert set(one["difficulty"]) == {"probe", "engine", "probabilities", "seconds"}
            assert "forced" in one["forced_answer"]


def test_a_share_of_the_limit_and_an_end_within_it(client: openai.OpenAI) -> None:
    prompt = next(item.prompt for item in SUMS[:40] if steps(item.prompt) == 8)
    cut = ask(client, prompt, diffadapt(strategy="hard"), max_tokens=100)
    assert (cut.usage.completion_tokens, cut.choices[0].finish_reason) == (50, "length")
    for streamed in (False, True):
        options = {"logprobs": True, "max_tokens": 100, "extra_body": {"trace": True}}
        policies = [forced_answer(), diffadapt(strategy="hard")]
        if streamed:
            chunks = list(ask(client, prompt, *policies, stream=True, **options))
            choices = [choice for chunk in chunks for choice in chunk.choices]
            text = "".join(choice.delta.content or "" for choice in choices)
            logprobs = [each for choice in choices if choice.logprobs for each in choice.logprobs.content]
            reason = choices[-1].finish_reason
        else:
            forced = ask(client, prompt, *policies, **options)
            text, reason = forced.choices[0].message.content, forced.choices[0].finish_reason
            logprobs = forced.choices[0].logprobs.content
            told = report(forced)
            assert told.forced_answer is not None
            assert (told.strategy, told.forced_answer["forced"]) == ("hard", True)
            words = [token.token for token in told.trace[told.forced_answer["after"] :]][:3]
            assert words == [" The", " answer", " is"]
            assert len(told.trace) == forced.usage.completion_tokens <= 50
        assert re.search(r" The answer is \d+\.$", text)
        assert (reason, "".join(each.token for each in logprobs)) == ("stop", text)
        assert all(-30 < each.logprob <= 0 for each in logprobs)


def test_both_are_counted(world: Running, client: openai.OpenAI) -> None:
    def counted() -> list[float]:
        with world.http() as http:
            text = http.get("/metrics").text
        names = (r'waver_strategies_total\{strategy="hard"\}', "waver_forced_answers_total")
        found = [re.search(rf"^{name} (\S+)$", text, re.M) for name in names]
        return [float(each[1]) if each else 0.0 for each in found]

    before = counted()
    for limit in (40, 400):
        ask(client, SUMS[0].prompt, diffadapt(strategy="hard"), forced_answer(), max_tokens=limit)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [2, 1]


def test_by_preset_text_and_ids(world: Running, client: openai.OpenAI) -> None:
    item = SUMS[2]
    chat = ask(client, item.prompt, model="waver/thoughtful", extra_body={"policy": None})
    assert {name: report(chat).policy[0][name]["words"] for name in WORDING} == WORDING, "what the pair was taught"
    tokens = world.runtime.engines["large"].tokens
    ids = tokens.chat([{"role": "user", "content": item.prompt}])
    text = f"<|im_start|>user\n{item.prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert tokens.encode(text) == ids
    for prompt in (ids, text):
        same = client.completions.create(model="waver/thoughtful", prompt=prompt, temperature=0, max_tokens=200)
        assert same.choices[0].text == chat.choices[0].message.content
        assert same.waver["strategy"] == chat.waver["strategy"]  # type: ignore[attr-defined]


def test_with_ead_and_a_lookup_in_one_trace(client: openai.OpenAI) -> None:
    """The probe reads the large engine and chooses; the draft wavers, so passages come; both engines write."""
    policies = [
        ead(threshold=0.05, monitor="small", window=1, min_tokens=1),
        l_rag(collection="velmora", threshold=0.1, top_k=1, mode="lexical"),
        diffadapt(easy={"words": "The"}),  # all that the pair was taught to hear after other words is sums
    ]
    answers = [ask(client, TAIL[0].prompt, *order, extra_body={"trace": True}) for order in (policies, policies[::-1])]
    assert answers[0].choices[0].message == answers[1].choices[0].message
    told = report(answers[0])
    assert [policy["name"] for policy in told.policy] == ["diffadapt", "l_rag", "ead"]
    assert told.strategy == "easy"
    assert told.difficulty is not None
    assert told.difficulty["engine"] == "large"
    assert told.retrieval is not None
    assert told.retrieval["triggered"]
    assert [each["document"] for each in told.retrieval["passages"]] == [
        next(each.id for each in documents() if each.text == TAIL[0].passage)
    ]
    assert {token.engine for token in told.trace} == {"small", "large"}
    assert score_text(TAIL[0].task, TAIL[0].prompt, TAIL[0].answer, answers[0].choices[0].message.content)


def test_the_question_is_read_once(world: Running, client: openai.OpenAI) -> None:
    """The probe costs only its own words: they and a strategy's follow the same prompt."""
    engine: Any = world.runtime.engines["large"]

    def read(prompt: str, **parameters: Any) -> int:
        before = engine.read_tokens
        ask(client, prompt, diffadapt(**parameters), max_tokens=1)
        return int(engine.read_tokens - before)

    words = len(engine.tokens.encode(WORDS, add_special_tokens=False))
    for item in draw("tail_facts", 279, 3):  # each with a question of its own, which no slot holds yet
        prompt = f"{item.passage} {item.passage}\n\n{item.prompt}"
        asked = len(engine.tokens.chat([{"role": "user", "content": prompt}]))
        opening = len(engine.tokens.encode(WORDING["easy"], add_special_tokens=False))
        assert asked > 100
        assert read(prompt, easy={"words": WORDING["easy"]}, bonus={"easy": 1000.0}) < words + asked + opening + 4
        assert read(prompt, strategy="easy") < 8, "and nothing but its end is read again"


def test_a_head_start_saves_a_pass(world: Running, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled probes have no words, so they read what the likely strategy's pass has read: one pass for both."""
    engine: Any = world.runtime.engines["large"]
    probe = Probe.load(ROOT / "models" / "large" / "probe" / "paper")
    monkeypatch.setitem(world.runtime.probes, "bundled", probe)
    ask(client, "hello", diffadapt(probe="bundled"), max_tokens=1)  # the probe sees whether it fits
    seen = set()
    for item in draw("arithmetic", 280, 12):
        probe.recent.clear()
        before = engine.passes, engine.read_tokens
        told = report(response := ask(client, item.prompt, diffadapt(probe="bundled"), max_tokens=1))
        passes, read = engine.passes - before[0], engine.read_tokens - before[1]
        assert told.difficulty is not None
        assert told.difficulty["head_start"] == "normal"
        asked = response.usage.prompt_tokens
        if told.strategy == "normal":
            words = len(engine.tokens.encode(WORDING["normal"], add_special_tokens=False))
            assert (passes, told.discarded_tokens) == (1, 0)
            assert read <= asked + words
        else:
            assert told.discarded_tokens == 1
            assert passes > 1
        seen.add(told.strategy)
        named = ask(client, item.prompt, diffadapt(strategy=told.strategy))
        whole = ask(client, item.prompt, diffadapt(probe="bundled"))
        assert whole.choices[0].message == named.choices[0].message
        assert whole.usage == named.usage
    assert seen == {"easy", "normal"}


def test_an_oracle_and_a_blind_mix(client: openai.OpenAI) -> None:
    item = next(item for item in SUMS[:40] if steps(item.prompt) == 4)
    told = report(response := ask(client, item.prompt, diffadapt(strategy="oracle", answer=item.answer)))
    assert told.difficulty is not None
    runs = told.difficulty["runs"]
    right = {name: run["tokens"] for name, run in runs.items() if run["right"]}
    assert {"normal", "hard"} <= set(right)
    assert told.strategy == min(right, key=lambda name: right[name])
    assert score_text(item.task, item.prompt, item.answer, response.choices[0].message.content)
    spent = sum(run["tokens"] for run in runs.values())
    assert response.usage.completion_tokens == right[told.strategy] == spent - told.discarded_tokens
    mix = diffadapt(strategy="shuffled", mix={"easy": 1, "hard": 1})
    drawn = {seed: report(ask(client, item.prompt, mix, seed=seed, max_tokens=4)).strategy for seed in range(12)}
    assert set(drawn.values()) == {"easy", "hard"}
    assert drawn[5] == report(ask(client, item.prompt, mix, seed=5, max_tokens=4)).strategy


def test_the_small_engine_has_no_probe_but_a_draft(client: openai.OpenAI) -> None:
    draft = diffadapt(fallback="draft", draft_easy=0.0, draft_hard=0.0)
    told = report(ask(client, SUMS[0].prompt, draft, model="small"))
    assert told.strategy == "hard"
    assert told.difficulty is not None
    assert told.difficulty["draft_entropy"] > 0
    assert told.discarded_tokens == 16


def test_what_cannot_be_is_an_http_status(world: Running) -> None:
    chat = {"model": "large", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    begun = {
        "messages": [*chat["messages"], {"role": "assistant", "content": "Well"}],  # type: ignore[misc]
        "continue_final_message": True,
    }
    cases: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
        ({}, {"probe": "../../etc"}, "there are mine", "policy[0].probe"),
        ({}, {"labels": "strict_easy"}, "no probe with the labels strict_easy", "policy[0]"),
        ({"model": "small"}, {}, "trained on models/large, which engine 'small' does not run", "policy[0]"),
        (begun, {"strategy": "easy"}, "continue_final_message", "policy"),
        ({"add_generation_prompt": False}, {}, "where the answer begins", "policy"),
        ({}, {"easy": {"share": 2}}, "at most 1", "policy[0].easy.share"),
        (
            {"messages": [{"role": "user", "content": "x " * 505}]},
            {"strategy": "easy"},
            "strategy's words",
            "policy",
        ),
    ]
    with world.http() as http:
        for fields, parameters, said, param in cases:
            response = http.post("/v1/chat/completions", json=chat | fields | {"policy": [diffadapt(**parameters)]})
            assert response.status_code == 400, response.text
            assert said in response.json()["error"]["message"]
            assert response.json()["error"]["param"] == param
        small = {"max_tokens": 6, "policy": [forced_answer()]}
        assert "raise max_tokens" in http.post("/v1/chat/completions", json=chat | small).text
        shape = {"response_format": {"type": "json_object"}, "policy": [forced_answer()]}
        assert "response_format" in http.post("/v1/chat/completions", json=chat | shape).json()["error"]["message"]


def test_a_probe_that_is_damaged_or_unknown_stops_the_start(probe: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(probe, broken)
    (broken / "probe.safetensors").write_bytes(b"nothing")
    engines = {"large": {"model": str(ROOT / "models" / "large")}}
    for flags, said in (
        ({"probes": {"mine": str(broken)}}, "probe 'mine': the probe in "),
        ({"probes": {"mine": str(tmp_path)}}, "holds no probe: probe.json is missing"),
        ({"presets": {"p": [{"name": "diffadapt", "probe": "mine"}]}}, "preset 'p': policy[0].probe: unknown probe"),
    ):
        runtime = Runtime(load_config(flags={"engines": engines, "presets": {}, "default_preset": None, **flags}))
        failed: list[bool] = []
        asyncio.run(runtime.start(lambda failed=failed: failed.append(True)))
        asyncio.run(runtime.stop())
        assert failed
        assert runtime.failure is not None
        assert said in runtime.failure


@needs_vllm
@pytest.mark.timeout(1500)
def test_the_probe_reads_vllm(vllm_running: Running, probe: Path) -> None:
    """The same decisions for the same reasons, whoever holds the model."""
    vllm_running.runtime.probes["mine"] = Probe.load(probe)
    with vllm_running.openai() as client:
        for item in SUMS[:8]:
            both = [
                report(ask(client, item.prompt, diffadapt(probe="mine"), model=f"{prefix}large"))
                for prefix in ("", "embedded-")
            ]
            assert both[0].strategy == both[1].strategy
            ours, theirs = (each.difficulty for each in both)
            assert ours is not None
            assert theirs is not None
            assert ours["engine"] == "large"
            assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-3)
        with pytest.raises(openai.BadRequestError, match="which engine 'small' does not run"):
            ask(client, "hello", diffadapt(probe="mine"), model="small")


@needs_vllm
@pytest.mark.timeout(1500)
def test_a_head_start_saves_a_request_of_vllm(vllm_running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request of vLLM's where the likely strategy is the right one, and what it says is what the probe reads."""
    engine: Any = vllm_running.runtime.engines["large"]
    probe = Probe.load(ROOT / "models" / "large" / "probe" / "paper")
    monkeypatch.setitem(vllm_running.runtime.probes, "bundled", probe)
    outputs, sent = engine._outputs, list[int]()

    def counted(running: Any, ids: list[int], *args: Any, **options: Any) -> Any:
        sent.append(len(ids))
        return outputs(running, ids, *args, **options)

    monkeypatch.setattr(engine, "_outputs", counted)
    seen = set()
    with vllm_running.openai() as client:
        ask(client, "hello", diffadapt(probe="bundled"), max_tokens=1)
        for item in draw("arithmetic", 281, 12):
            probe.recent.clear()
            sent.clear()
            ours = report(ask(client, item.prompt, diffadapt(probe="bundled")))
            requests = len(sent)
            theirs = report(ask(client, item.prompt, diffadapt(probe="bundled"), model="embedded-large"))
            assert ours.difficulty is not None
            assert theirs.difficulty is not None
            assert ours.difficulty["head_start"] == "normal"
            assert ours.strategy == theirs.strategy
            assert ours.difficulty["probabilities"] == pytest.approx(theirs.difficulty["probabilities"], abs=1e-3)
            right = ours.strategy == "normal"
            assert (requests, ours.discarded_tokens) == ((1, 0) if right else (2, 1))
            seen.add(ours.strategy)
    assert seen == {"easy", "normal"}
    assert engine.active == 0


@needs_vllm
@pytest.mark.timeout(1500)
def test_strategies_and_forced_answers_are_the_same_under_vllm(vllm_running: Running) -> None:
    """The same words, shares and ends, whoever decodes."""
    prompts = [item.prompt for item in SUMS if steps(item.prompt) > 5][:3]
    pair = {name: {"words": words, "temperature": None} for name, words in WORDING.items()}
    for prompt, (strategy, limit) in product(prompts, (("easy", 60), ("normal", 200), ("hard", 90))):
        policies = [
            diffadapt(strategy=strategy, **pair),  # type: ignore[arg-type]
            forced_answer(words=" The answer is", tokens=8, temperature=None, until="."),
        ]
        with vllm_running.openai() as client:
            both = [
                ask(client, prompt, *policies, model=f"{prefix}large", max_tokens=limit, extra_body={"trace": True})
                for prefix in ("", "embedded-")
            ]
        ours, theirs = (report(each) for each in both)
        assert both[0].choices[0].message == both[1].choices[0].message
        assert (ours.strategy, ours.forced_answer) == (theirs.strategy, theirs.forced_answer)
        assert [t.entropy for t in ours.trace] == pytest.approx([t.entropy for t in theirs.trace], abs=1e-3)
        assert [t.logprob for t in ours.trace] == pytest.approx([t.logprob for t in theirs.trace], abs=1e-3)
        assert ours.forced_answer is not None
        assert ours.forced_answer["forced"] or strategy != "hard"
