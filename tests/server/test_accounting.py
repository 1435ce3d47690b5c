"""The cost of a request is counted for its key and preset, and written down once, however it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.conftest import Running
from tests.server.test_disconnect import leave
from waver.policies.report import Report
from waver.server.accounting import Cost, cost_of

SECRET = "a-secret-word-of-mine"
CHAT = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 8, "ignore_eos": True}
KEYS = "alice:first-key,bob:second-key"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("usage") / "usage.jsonl"


@pytest.fixture(scope="module")
def served(start: Callable[..., Running], records: Path) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAVER_ACCOUNT_KEYS", KEYS)
        yield start(api_keys_env="WAVER_ACCOUNT_KEYS", usage_file=str(records))


def asked(served: Running, records: Path, ask: Callable[[], Any]) -> list[dict[str, Any]]:
    """Return the records that a request adds: all of them, once the server is idle and the file has grown."""
    before = len(lines(records))
    ask()
    assert served.idle(within=30)
    deadline = time.monotonic() + 30
    while len(lines(records)) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # a second record would be a mistake
    return lines(records)[before:]


def lines(records: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in records.read_text().splitlines()]


def post(served: Running, body: dict[str, Any], key: str = "first-key", path: str = "/v1/chat/completions") -> Any:
    with served.http(headers={"authorization": f"Bearer {key}"}) as http:
        answer = http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer


def sample(served: Running, name: str, **labels: str) -> float:
    return served.runtime.metrics.registry.get_sample_value(name, labels) or 0.0


def test_an_answer_is_written_down_once(served: Running, records: Path) -> None:
    body = {**CHAT, "model": "waver/coin", "n": 2}
    answers: list[Any] = []
    (record,) = asked(served, records, lambda: answers.append(post(served, body)))
    answer = answers[0].json()
    assert record["request_id"] == answers[0].headers["x-request-id"]
    told = {name: record[name] for name in ("key", "model", "preset", "policy", "kind", "outcome", "choices")}
    assert told == {
        "key": "alice", "model": "waver/coin", "preset": "coin", "policy": "coin", "kind": "generation",
        "outcome": "finished", "choices": 2,
    }  # fmt: skip
    assert record["finish_reasons"] == ["length", "length"]
    usage = answer["usage"]
    assert (record["prompt_tokens"], record["completion_tokens"]) == (usage["prompt_tokens"], 16)
    assert record["tokens"] == answer["waver"]["tokens"]
    assert record["cost"]["spent"] / record["cost"]["alone"] == pytest.approx(answer["waver"]["cost"]["full"])
    assert record["seconds"] >= record["first_token_seconds"] >= record["queue_seconds"] >= 0
    assert SECRET not in records.read_text()


def test_streams_and_clients_that_leave_have_a_record(served: Running, records: Path) -> None:
    (record,) = asked(served, records, lambda: post(served, {**CHAT, "model": "small", "stream": True}))
    assert (record["outcome"], record["preset"], record["completion_tokens"]) == ("finished", None, 8)

    def gone() -> None:
        with served.http(headers={"authorization": "Bearer second-key"}) as http:
            body = {**CHAT, "max_tokens": 900, "stream": True}
            with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                next(answer.iter_lines())

    (record,) = asked(served, records, gone)
    assert (record["key"], record["outcome"], record["finish_reasons"]) == ("bob", "client_gone", [None])
    assert 0 < record["completion_tokens"] < 900
    assert record["cost"]["spent"] > 0


def test_embeddings_have_a_record(served: Running, records: Path) -> None:
    ask = {"model": "all-MiniLM-L6-v2", "input": SECRET}
    (record,) = asked(served, records, lambda: post(served, ask, path="/v1/embeddings"))
    assert (record["kind"], record["key"], record["model"]) == ("embedding", "alice", "all-MiniLM-L6-v2")
    assert record["prompt_tokens"] > 2


def test_metrics_by_key_and_preset(served: Running) -> None:
    labels = {"key": "bob", "preset": "frugal"}
    names = ("waver_cost_total", "waver_cost_alone_total", "waver_cost_saved")
    before = [sample(served, name, **labels) for name in names]
    answer = post(served, {**CHAT, "model": "waver/frugal"}, "second-key").json()
    spent, alone, saved = (sample(served, name, **labels) - b for name, b in zip(names, before, strict=True))
    assert spent / alone == pytest.approx(answer["waver"]["cost"]["full"])
    assert saved == pytest.approx(alone - spent)


def test_tokens_gates_and_waits_are_measured(served: Running) -> None:
    def entropies(engine: str) -> tuple[float, float]:
        names = ("waver_token_entropy_nats_count", "waver_token_entropy_nats_sum")
        return sample(served, names[0], engine=engine), sample(served, names[1], engine=engine)

    count, total = entropies("small")
    between = sample(served, "waver_inter_token_seconds_count", engine="small")
    queued = sample(served, "waver_queue_seconds_count")
    answer = post(served, {**CHAT, "model": "small"}).json()
    after, sum_after = entropies("small")
    assert after - count == 8
    assert (sum_after - total) / 8 == pytest.approx(answer["waver"]["entropy"]["mean"])
    assert sample(served, "waver_inter_token_seconds_count", engine="small") - between == 7
    assert sample(served, "waver_queue_seconds_count") - queued == 1

    def fired() -> float:
        return sum(sample(served, "waver_gate_firings_total", engine=each) for each in ("small", "large"))

    fired_before = fired()
    policy = [{"name": "ead", "threshold": 2.5, "window": 1, "min_tokens": 1, "threshold_down": None}]
    told = post(served, {**CHAT, "max_tokens": 64, "policy": policy}).json()["waver"]
    assert told["switches"] > 0
    assert fired() - fired_before >= told["switches"]


def test_labels_of_keys_are_bounded(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = served.runtime.metrics
    monkeypatch.setattr(metrics, "_most_keys", len(metrics._keys))
    assert metrics.key_label("alice") == "alice"
    assert metrics.key_label("somebody-new") == "other"


def test_the_cost_of_nothing_is_nothing() -> None:
    assert cost_of(Report()) == Cost(0.0, 0.0)


def test_texts_are_logged_only_where_it_is_asked_for(start: Callable[..., Running]) -> None:
    for options, shown in (({}, False), ({"log_texts": True}, True)):
        running = start(**options)
        with structlog.testing.capture_logs() as entries, running.http() as http:
            answer = http.post("/v1/chat/completions", json={**CHAT, "model": "small"}).json()
            assert running.idle(within=30)
        told = [entry for entry in entries if entry["event"] == "texts"]
        assert (SECRET in json.dumps(entries, default=str)) == shown == bool(told)
        if shown:
            assert told[0]["answers"] == [answer["choices"][0]["message"]["content"]]
            assert SECRET in told[0]["prompts"][0]


def test_a_request_that_waits_in_vain_is_refused(start: Callable[..., Running], tmp_path: Path) -> None:
    file = tmp_path / "usage.jsonl"
    running = start(max_concurrency=1, max_queue=1, usage_file=str(file))
    with running.http() as http:
        body = {**CHAT, "model": "small", "max_tokens": 900, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as busy:
            arriving = busy.iter_lines()
            next(arriving)
            assert http.post("/v1/chat/completions", json={**CHAT, "timeout": 0.1}).status_code == 504
    leave(running, {"stream": True}, 1)
    assert running.idle(within=30)
    deadline = time.monotonic() + 30
    while len(lines(file)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(each["outcome"] for each in lines(file)) == ["client_gone", "client_gone", "refused"]
