"""The server over vLLM: the same answers as the embedded engines give, and a death that is seen and survived."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.engines.vllm_here import needs_vllm
from waver.benchmarks.processes import descendants, running_state
from waver.training.pair.world import draw

pytestmark = [needs_vllm, pytest.mark.timeout(1500)]  # two engines start first

SETTINGS = {
    "eager": {"threshold": 0.05, "window": 2, "min_tokens": 1},
    "lagged": {"threshold": 0.05, "window": 3, "min_tokens": 2, "timing": "lagged"},
    "watched": {"threshold": 0.05, "monitor": "small", "window": 1, "min_tokens": 1},
}


def traced(running: Any, policies: list[dict[str, Any]], question: str, **options: Any) -> list[dict[str, Any]]:
    with running.openai() as client:
        response = client.chat.completions.create(
            model=options.pop("model", "small"),
            messages=[{"role": "user", "content": question}],
            extra_body={"policy": policies, "trace": True, **options},
            temperature=0,
        )
    return response.waver["trace"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_ead_is_the_same_on_both_backends(vllm_running: Any, setting: str) -> None:
    """Identical tokens and switch points, entropies within 1e-3 nats; a divergence has to be a near-tie."""
    questions = [item.prompt for item in draw("arithmetic", 310 + len(setting), 34)]
    answers: dict[tuple[int, str], list[dict[str, Any]]] = {}

    def ask(number: int, prefix: str) -> None:
        policy = {"name": "ead", "small": f"{prefix}small", "large": f"{prefix}large", **SETTINGS[setting]}
        answers[number, prefix] = traced(vllm_running, [policy], questions[number], model=f"{prefix}small")

    both = [(number, prefix) for number in range(len(questions)) for prefix in ("", "embedded-")]
    threads = [threading.Thread(target=ask, args=each) for each in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    switches = 0
    for number in range(len(questions)):
        ours, theirs = answers[number, ""], answers[number, "embedded-"]
        assert [t["id"] for t in ours] == [t["id"] for t in theirs]
        assert [f"embedded-{t['engine']}" for t in ours] == [t["engine"] for t in theirs]
        assert [t["entropy"] for t in ours] == pytest.approx([t["entropy"] for t in theirs], abs=1e-3)
        assert [t["logprob"] for t in ours] == pytest.approx([t["logprob"] for t in theirs], abs=1e-3)
        switches += sum(a["engine"] != b["engine"] for a, b in pairwise(ours))
    assert switches > 10


def test_lookups_are_the_same_on_both_backends(vllm_running: Any) -> None:
    """Draft, gate, passages and answer; and a gate that vLLM cannot serve is refused with a reason."""
    items = [*draw("frequent_facts", 311, 4), *draw("tail_facts", 311, 4)]
    with vllm_running.http() as http:
        assert http.post("/v1/collections", json={"name": "towns"}).status_code == 200
        rows = [{"id": str(i), "text": item.passage} for i, item in enumerate(items) if item.passage]
        assert http.post("/v1/collections/towns/documents", json={"documents": rows}).status_code == 200
        for gate in ("entropy", "margin", "targ", "flare"):
            for item in items:
                policy = {"name": "l_rag", "collection": "towns", "gate": gate, "top_k": 1}
                policy |= {"flare": {}}.get(gate, {"threshold": 0.08})
                body = {"messages": [{"role": "user", "content": item.prompt}], "temperature": 0, "policy": [policy]}
                both = [
                    http.post("/v1/chat/completions", json=body | {"model": f"{prefix}large"}).json()
                    for prefix in ("", "embedded-")
                ]
                ours, theirs = (answer["waver"]["retrieval"] for answer in both)
                assert both[0]["choices"] == both[1]["choices"]
                assert ours["triggered"] == theirs["triggered"]
                assert ours["passages"] == theirs["passages"]
                assert ours["score"] == pytest.approx(theirs["score"], abs=1e-3)
        for gate, said in (("dragin", "attention weights"), ("seakr", "hidden states")):
            policy = {"name": "l_rag", "collection": "towns", "gate": gate}
            refused = http.post("/v1/chat/completions", json=body | {"model": "large", "policy": [policy]})
            assert refused.status_code == 400
            assert said in refused.json()["error"]["message"]


def test_vllms_own_metrics_of_both_engines_are_told(vllm_running: Any) -> None:
    """Each family once, as Prometheus wants it, with the engine as a label; and what one writes is counted as its."""

    def told() -> dict[str, Metric]:
        families = list(text_string_to_metric_families(http.get("/metrics").text))
        assert len({family.name for family in families}) == len(families)
        return {family.name: family for family in families}

    def written(engine: str) -> float:
        samples = told()["vllm:generation_tokens"].samples
        return sum(s.value for s in samples if s.labels["waver_engine"] == engine and s.name.endswith("_total"))

    with vllm_running.http() as http:
        assert {s.labels["waver_engine"] for s in told()["vllm:kv_cache_usage_perc"].samples} == {"small", "large"}
        before = {name: written(name) for name in ("small", "large")}
        body = {"model": "large", "prompt": "What is", "max_tokens": 7, "ignore_eos": True}
        assert http.post("/v1/completions", json=body).status_code == 200
        assert written("large") == before["large"] + 7
        assert written("small") == before["small"]


def test_a_killed_engine_core_ends_every_stream_and_comes_back(vllm_running: Any) -> None:
    runtime = vllm_running.runtime
    engine = runtime.engines["large"]
    restarts = engine.restarts
    ends: dict[int, tuple[list[str], float]] = {}

    def stream(number: int) -> None:
        body = {"model": "large", "prompt": "What is", "max_tokens": 900, "ignore_eos": True, "stream": True}
        with vllm_running.http() as http, http.stream("POST", "/v1/completions", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line]
        ends[number] = (lines, time.monotonic())

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while engine.active < 16 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    manager = engine.model.core.running.llm.engine_core.resources.engine_manager
    killed = time.monotonic()
    os.kill(manager.processes[0].pid, 9)
    for thread in threads:
        thread.join(timeout=60)
    assert len(ends) == 16
    for lines, when in ends.values():
        assert lines[-1] == "data: [DONE]"
        assert "being started again" in lines[-2]
        assert '"error"' in lines[-2]
        assert len(lines) > 3
        assert when - killed < 30
    with vllm_running.http() as http:
        assert http.get("/ready").status_code == 503
        assert http.get("/health").status_code == 200
        told = http.get("/metrics").text
        assert 'waver_engine_alive{engine="large"} 0.0' in told
        assert 'waver_engine_alive{engine="small"} 1.0' in told
        assert 'waver_engine="small"' in told
        assert 'waver_engine="large"' not in told
        refused = http.post("/v1/completions", json={"model": "large", "prompt": "What is"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        # The other engine goes on.
        assert http.post("/v1/completions", json={"model": "small", "prompt": "What is"}).status_code == 200
        deadline = time.monotonic() + 600
        while http.get("/ready").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.5)
        again = http.post("/v1/completions", json={"model": "large", "prompt": "What is", "max_tokens": 5})
    assert again.status_code == 200, again.text
    prompt = engine.tokens.encode("What is 34 + 25?")
    state, expected = (vllm_running.run(runtime.engines[e].hidden_state(prompt)) for e in ("large", "embedded-large"))
    assert float((state - expected).norm() / expected.norm()) < 1e-4
    assert engine.restarts == restarts + 1
    assert vllm_running.idle(within=30)


def test_engines_that_hang_end_every_stream_and_come_back(vllm_running: Any) -> None:
    """A process of each does not run any more, the core of one and the worker of the other: nothing dies, and no token
    comes."""
    engines = {name: vllm_running.runtime.engines[name] for name in ("small", "large")}
    restarts = {name: engine.restarts for name, engine in engines.items()}
    processes = {}
    for name, engine in engines.items():
        core = engine.model.core.running.llm.engine_core.resources.engine_manager.processes[0].pid
        (worker,) = (process for process, title in descendants(core).items() if title.startswith("VLLM::Worker"))
        processes[name] = core, worker
    body = {"prompt": "What is", "max_tokens": 900, "ignore_eos": True, "stream": True}
    with vllm_running.http() as http:
        with ExitStack() as stack:
            lines = {}
            for name in engines:
                answer = stack.enter_context(http.stream("POST", "/v1/completions", json={**body, "model": name}))
                lines[name] = answer.iter_lines()
                next(lines[name])
                os.kill(processes[name][0 if name == "small" else 1], signal.SIGSTOP)
            began = time.monotonic()
            rests = [[line for line in each if line and not line.startswith(":")] for each in lines.values()]
        assert time.monotonic() - began < 90
        for rest in rests:
            assert rest[-1] == "data: [DONE]"
            assert '"error"' in rest[-2]
        assert http.get("/ready").status_code == 503
        deadline = time.monotonic() + 600
        while http.get("/ready").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.5)
        for name, engine in engines.items():
            again = http.post("/v1/completions", json={"model": name, "prompt": "What is", "max_tokens": 5})
            assert again.status_code == 200, again.text
            assert engine.restarts == restarts[name] + 1
            assert [running_state(process) for process in processes[name]] == [None, None]
    assert vllm_running.idle(within=30)


def test_a_client_that_leaves_frees_both_engines(vllm_running: Any) -> None:
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 900,
        "ignore_eos": True,
        "stream": True,
        "policy": [{"name": "random_switch", "rate": 0.5}],
    }
    for turn in range(8):
        with vllm_running.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
            for _, _line in zip(range(turn + 1), answer.iter_lines(), strict=False):
                pass
        assert vllm_running.idle(within=30)


@pytest.mark.parametrize("name", ["small", "large"])
def test_a_client_that_leaves_frees_the_worker(vllm_running: Any, name: str) -> None:
    """Nothing more is written to the ring buffer, long before the answer's end."""
    words = vllm_running.runtime.engines[name].model.core.running.ring.words
    body = {"model": name, "prompt": "What is", "max_tokens": 900, "ignore_eos": True, "stream": True}
    with vllm_running.http() as http, http.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    assert vllm_running.idle(within=30)
    time.sleep(0.3)
    before = words.copy()
    newest = before[before[..., 0] == before[..., 0].max()]
    time.sleep(1.0)
    assert (words == before).all()
    assert 0 < newest[:, 1].max() < 800


def test_choices_and_log_probabilities_equal_the_embedded_engines(vllm_running: Any) -> None:
    body = {
        "messages": [{"role": "user", "content": "What is 34 + 25 - 17?"}],
        "n": 3,
        "seed": 5,
        "temperature": 1.3,
        "top_p": 0.95,
        "presence_penalty": 0.4,
        "logprobs": True,
        "top_logprobs": 4,
        "max_tokens": 24,
    }
    with vllm_running.http() as http:
        ours, theirs = (
            http.post("/v1/chat/completions", json={**body, "model": model}).json()["choices"]
            for model in ("small", "embedded-small")
        )
    for a, b in zip(ours, theirs, strict=True):
        assert a["message"] == b["message"]
        assert a["finish_reason"] == b["finish_reason"]
        for x, y in zip(a["logprobs"]["content"], b["logprobs"]["content"], strict=True):
            assert x["token"] == y["token"]
            assert [t["token"] for t in x["top_logprobs"]] == [t["token"] for t in y["top_logprobs"]]
            assert x["logprob"] == pytest.approx(y["logprob"], abs=1e-3)
