"""Lookups over HTTP: documents in, answers that use them only where the model wavers, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.conftest import ROOT, Running
from waver.clients.client import report
from waver.clients.policies import ead, l_rag
from waver.policies.retrieve.drift import Drift
from waver.training.pair.world import documents, draw, score_text

KNOWN = draw("frequent_facts", 177, 4)
TAIL = draw("tail_facts", 177, 4)
THRESHOLD = 0.1


@pytest.fixture(scope="module")
def world(start: Callable[..., Running], tmp_path_factory: pytest.TempPathFactory) -> Running:
    """The bundled pair with the documents of all tail towns that are asked about, and some more."""
    running = start(
        config={
            "engines": {name: {"model": str(ROOT / "models" / name)} for name in ("small", "large")},
            "presets": {
                "careful": [
                    {"name": "ead", "threshold": 0.05, "monitor": "small", "window": 1, "min_tokens": 1},
                    {"name": "l_rag"},
                ],
            },
            "policies": {"l_rag": {"collection": "velmora", "threshold": THRESHOLD, "top_k": 1, "mode": "lexical"}},
            "default_preset": "careful",
            "retrieval": {"path": str(tmp_path_factory.mktemp("data") / "collections")},
        }
    )
    asked = {item.passage for item in TAIL}
    chosen = [each for each in documents() if each.text in asked] + documents()[:10]
    with running.http() as http:
        assert http.post("/v1/collections", json={"name": "velmora"}).status_code == 200
        rows = [{"id": id, "text": text} for id, text in {each.id: each.text for each in chosen}.items()]
        assert http.post("/v1/collections/velmora/documents", json={"documents": rows}).status_code == 200
    return running


@pytest.fixture
def client(world: Running) -> Iterator[openai.OpenAI]:
    with world.openai() as client:
        yield client


def ask(client: openai.OpenAI, prompt: str, **options: Any) -> Any:
    settings = {"model": "large", "temperature": 0, "max_tokens": 60} | options
    extra = settings.pop("extra_body", {"policy": [l_rag()]})
    return client.chat.completions.create(messages=[{"role": "user", "content": prompt}], extra_body=extra, **settings)


def test_only_what_is_not_known_is_looked_up(client: openai.OpenAI) -> None:
    for item, fires in [*((item, False) for item in KNOWN), *((item, True) for item in TAIL)]:
        response = ask(client, item.prompt)
        told = report(response)
        assert score_text(item.task, item.prompt, item.answer, response.choices[0].message.content)
        assert told.retrieval is not None
        assert told.retrieval["triggered"] == fires
        assert (told.retrieval["gate_entropy"] > THRESHOLD) == fires
        assert [each["document"] for each in told.retrieval["passages"]] == (
            [next(d.id for d in documents() if d.text == item.passage)] if fires else []
        )
        assert set(told.retrieval["seconds"]) == {"gate", "retrieval", "generation"}
        assert (told.discarded_tokens > 0) == fires
        assert sum(told.tokens.values()) == response.usage.completion_tokens


def test_streams_say_the_same(client: openai.OpenAI) -> None:
    for item in (KNOWN[0], TAIL[0]):
        whole = ask(client, item.prompt)
        chunks = list(ask(client, item.prompt, stream=True, stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
        (last,) = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
        for chunk in (last, chunks[-1]):
            told, wanted = (dict(each.waver["retrieval"]) for each in (chunk, whole))
            assert told.pop("seconds").keys() == wanted.pop("seconds").keys()
            assert told == wanted
        assert chunks[-1].usage == whole.usage


def test_several_choices_each_have_their_lookup(client: openai.OpenAI) -> None:
    response = ask(client, TAIL[1].prompt, n=3, temperature=0.2, seed=5)
    for choice in response.choices:
        assert choice.waver["retrieval"]["passages"][0]["document"]
        assert score_text(TAIL[1].task, TAIL[1].prompt, TAIL[1].answer, choice.message.content)


def test_by_preset_with_ead(client: openai.OpenAI) -> None:
    """One request, two policies: the order in the list does not matter."""
    policy = [ead(threshold=0.05, monitor="small", window=1, min_tokens=1), l_rag()]
    answers = [
        ask(client, TAIL[2].prompt, model="waver/careful", extra_body={}),
        ask(client, TAIL[2].prompt, model="small", extra_body={"policy": policy}),
        ask(client, TAIL[2].prompt, model="small", extra_body={"policy": policy[::-1]}),
    ]
    texts = {response.choices[0].message.content for response in answers}
    assert len(texts) == 1
    for response in answers:
        told = report(response)
        assert told.retrieval is not None
        assert told.retrieval["triggered"]
        assert set(told.tokens) == {"small", "large"}


def test_a_text_prompt_is_the_question(client: openai.OpenAI) -> None:
    response = client.completions.create(
        model="large",
        prompt=TAIL[0].prompt,
        max_tokens=8,
        temperature=0,
        echo=True,
        extra_body={"policy": [l_rag(gate="always")]},
    )
    assert response.choices[0].text.startswith(TAIL[0].prompt), "what is echoed is what was sent"
    assert response.waver["retrieval"]["passages"]  # type: ignore[attr-defined]
    assert response.usage is not None
    plain = client.completions.create(model="large", prompt=TAIL[0].prompt, max_tokens=1)
    assert plain.usage is not None
    assert response.usage.prompt_tokens == plain.usage.prompt_tokens


def test_what_cannot_be_is_an_http_status(world: Running) -> None:
    """Before the first token, also in a stream."""
    chat = {"model": "large", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    ead, l_rag = {"name": "ead"}, {"name": "l_rag"}
    many = {"filter": {"lang": ["en"] * 1001}}
    unasked = chat | {"messages": [{"role": "system", "content": "hi"}]}
    cases: list[tuple[str, dict[str, Any], int, str, str]] = [
        ("chat/completions", chat | {"policy": [l_rag | {"gate": "luck"}]}, 400, "policy[0].gate", "entropy, flare"),
        ("chat/completions", chat | {"policy": [l_rag | many]}, 400, "policy[0].filter", "at most 1000 values"),
        ("chat/completions", chat | {"policy": [l_rag | {"rate": 2}]}, 400, "policy[0].rate", "at most 1"),
        ("chat/completions", chat | {"policy": [l_rag, l_rag]}, 400, "policy[1]", "twice"),
        (
            "chat/completions",
            chat | {"policy": [ead, l_rag | {"collection": "nowhere"}]},
            404,
            "policy[1].collection",
            "nowhere",
        ),
        ("chat/completions", unasked | {"policy": [l_rag]}, 400, "policy[0]", "user's message"),
        ("chat/completions", unasked | {"policy": [ead, l_rag]}, 400, "policy[1]", "user's message"),
        ("chat/completions", unasked | {"policy": "careful"}, 400, "policy", "user's message"),
        ("completions", {"model": "large", "prompt": [5, 6], "policy": [l_rag]}, 400, "policy[0]", "prompt as text"),
    ]
    with world.http() as http:
        for path, body, status, param, said in cases:
            response = http.post(f"/v1/{path}", json=body)
            assert response.status_code == status, response.text
            assert said in response.json()["error"]["message"]
            assert response.json()["error"]["param"] == param


def test_metrics_and_the_alarm(world: Running, client: openai.OpenAI) -> None:
    for _ in range(3):
        ask(client, KNOWN[1].prompt, extra_body={"policy": [l_rag(expected_rate=0.9)]})
    with world.http() as http:
        text = http.get("/metrics").text
    assert 'waver_retrieval_gates_total{gate="entropy",outcome="kept"}' in text
    assert 'waver_retrieval_gates_total{gate="entropy",outcome="retrieved"}' in text
    key = f'{{collection="velmora",gate="entropy",threshold="{THRESHOLD:g}"}}'
    assert f"waver_retrieval_rate{key}" in text
    assert f"waver_retrieval_drift{key} 0.0" in text, "too few decisions to speak of a rate"


def test_a_rate_that_drifts(caplog: pytest.LogCaptureFixture) -> None:
    drift = Drift()
    for i in range(60):
        drift.decided("a", "entropy", 0.5, 0.5, fired=i % 2 == 0)
    (watched,) = drift.gates.values()
    assert (watched.rate, watched.alarm) == (0.5, False)
    for _ in range(60):
        drift.decided("a", "entropy", 0.5, 0.5, fired=True)
    assert watched.alarm
    for _ in range(200):
        drift.decided("a", "entropy", 0.5, 0.5, fired=False)
    assert watched.rate == 0
    for i in range(400):
        drift.decided("b", "entropy", i / 10, None, fired=True)
    assert len(drift.gates) <= 64
    assert not any(each.alarm for key, each in drift.gates.items() if key[0] == "b")


def test_a_client_that_leaves_frees_its_lookup(world: Running, client: openai.OpenAI) -> None:
    for gate in ("entropy", "always", "targ"):
        policy = [l_rag(gate=gate, threshold=-1.0 if gate == "entropy" else 1e9)]
        extra = {"policy": policy, "ignore_eos": True}
        stream = ask(client, TAIL[3].prompt, stream=True, max_tokens=900, extra_body=extra)
        for number, _ in enumerate(stream):
            if number > 3:
                break
        stream.close()
        assert world.idle(within=30)
    time.sleep(0.05)
    assert world.active == 0
