"""Models, tokenization, probes, metrics, the page, and what happens while engines start."""

from __future__ import annotations

import re
import threading
from typing import Any

import httpx
import openai
import pytest

from waver.policies import registry


def test_trap_26_models(client: openai.OpenAI, http: httpx.Client) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["small", "large", "waver/frugal", "waver/coin", "all-MiniLM-L6-v2"]
    for model in listed:
        assert (model.object, type(model.created), model.owned_by) == ("model", int, "waver")
        assert client.models.retrieve(model.id) == model
    small, frugal, embedder = (http.get(f"/v1/models/{listed[i].id}").json() for i in (0, 2, 4))
    assert small["root"].startswith("small")
    assert small["parent"] is None
    assert (frugal["root"], frugal["parent"], frugal["max_model_len"]) == ("waver/frugal", "large", 1024)
    assert (embedder["kind"], embedder["root"]) == ("embedder", "all-MiniLM-L6-v2")
    raw, quoted = http.get("/v1/models/waver/frugal"), http.get("/v1/models/waver%2Ffrugal")
    assert raw.json() == quoted.json()
    assert raw.json()["id"] == "waver/frugal"


def test_trap_27_head(http: httpx.Client) -> None:
    for path in ("/", "/health", "/ready", "/v1/models"):
        answer = http.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path


def test_trap_30_probes_and_version(http: httpx.Client) -> None:
    assert http.get("/health").status_code == http.get("/ready").status_code == 200
    assert http.get("/version").json()["version"]


def test_policies_are_described(http: httpx.Client) -> None:
    listed = http.get("/v1/policies").json()["data"]
    assert {policy["name"] for policy in listed} == set(registry.policies())
    for policy in listed:
        assert policy["summary"]
        assert policy["stage"]
        assert policy["schema"]["properties"].keys() >= policy["defaults"].keys()
    made_for = {policy["name"]: policy["defaults_for"] for policy in listed}
    assert "never slower than the large model alone" in made_for["ead"]
    for name in ("ead", "route", "diffadapt", "adaptive_temperature"):
        assert f"waver calibrate policy {name}" in made_for[name]
    assert "waver calibrate l_rag" in made_for["l_rag"]
    assert made_for["random_switch"] is None


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_trap_30_tokenize_and_back(http: httpx.Client, prefix: str) -> None:
    text = "12 + 7 = 19, naïve 日本"
    answer = http.post(f"{prefix}/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 1024
    assert http.post(f"{prefix}/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}
    info = http.get(f"{prefix}/tokenizer_info").json()
    assert info["eos_token"]
    assert info["chat_template"]


def test_tokenized_chat_is_the_prompt(http: httpx.Client, client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    count = http.post("/v1/tokenize", json={"model": "small", "messages": messages}).json()["count"]
    answer = client.chat.completions.create(model="small", messages=messages, max_tokens=1)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == count


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [10**7]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
def test_bad_tokenization(http: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    response = http.post(path, json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_loop_stays_free_while_a_long_prompt_is_tokenized(running: Any) -> None:
    def work() -> None:
        answer = httpx.post(
            f"{running.url}/tokenize", json={"prompt": "some words and 123 numbers " * 9_000}, timeout=60
        )
        assert answer.json()["count"] > 50_000

    busy = threading.Thread(target=work)
    slowest = 0.0
    with running.http() as http:
        http.get("/health")
        busy.start()
        while busy.is_alive():
            slowest = max(slowest, http.get("/health").elapsed.total_seconds())
        busy.join()
    assert slowest < 1


def test_metrics_count_what_was_answered(http: httpx.Client, client: openai.OpenAI) -> None:
    def tokens() -> float:
        lines = http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("waver_generated_tokens_total{"))

    before = tokens()
    answer = client.completions.create(model="waver/frugal", prompt="1 + 1", max_tokens=7)
    assert answer.usage is not None
    assert tokens() - before == answer.usage.completion_tokens
    text = http.get("/metrics").text
    for name in ("waver_requests_total", "waver_request_seconds", "waver_active_sequences", "waver_requests_waiting"):
        assert name in text
    assert 'waver_engine_alive{engine="large"} 1.0' in text
    assert re.search(r"^process_resident_memory_bytes [1-9]", text, re.MULTILINE)
    assert re.search(r'^python_gc_collections_total\{generation="2"\} ', text, re.MULTILINE)


def test_page_and_its_files(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    files = re.findall(r'(?:src|href)="(static/[^"]+)"', page.text)
    assert len(files) >= 3
    for file in files:
        assert http.get(f"/{file}").status_code == 200, file
    assert http.get("/static/../config.py").status_code == 404
    assert http.get("/static/%2e%2e/config.py").status_code == 404


def test_api_pages_need_no_network(http: httpx.Client) -> None:
    page = http.get("/docs").text
    assert "https://" not in page
    for file in re.findall(r'(?:src|href)="(/[^"]+)"', page):
        assert http.get(file).status_code == 200, file
    answers = http.get("/openapi.json").json()["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert answers.keys() == {"200", "4XX", "5XX"}


def test_requests_wait_outside_until_the_engines_are_warm(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import waver.server.runtime

    load, hold = waver.server.runtime.load_engine, threading.Event()

    def slow(*arguments: Any) -> Any:
        hold.wait(30)
        return load(*arguments)

    monkeypatch.setattr(waver.server.runtime, "load_engine", slow)
    running = start(wait=False)
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    with running.http() as http:
        assert http.get("/health").status_code == 200
        assert len(http.get("/v1/models").json()["data"]) == 5
        for response in (http.get("/ready"), http.post("/v1/chat/completions", json=body)):
            assert response.status_code == 503
            assert 0 < int(response.headers["retry-after"]) <= 120
            assert response.json()["error"]["code"] == "not_ready"
        hold.set()
        running.until_ready()
        assert http.post("/v1/chat/completions", json=body).status_code == 200
