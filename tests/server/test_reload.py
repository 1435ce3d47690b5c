"""A running server takes over presets and limits from its file, all of them or none."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Running
from waver.server.config import load_config
from waver.server.problems import ConfigError
from waver.server.reload import LIVE_SERVER, differences, is_live, reload
from waver.server.settings import ServerConfig

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def server(start: Callable[..., Running], tmp_path_factory: pytest.TempPathFactory) -> tuple[Running, Path, str]:
    """A server, the file that it was started with, and what stood there."""
    running = start(config={"state": str(tmp_path_factory.mktemp("state"))})
    assert running.runtime.config._origin is not None
    file, _, _ = running.runtime.config._origin
    return running, file, file.read_text()


@pytest.fixture
def served(server: tuple[Running, Path, str]) -> Iterator[tuple[Running, Callable[..., None]]]:
    """The server, and what rewrites its file; it gets its first configuration back."""
    running, file, text = server

    def rewrite(**changes: Any) -> None:
        file.write_text(yaml.safe_dump({**yaml.safe_load(text), **changes}))

    yield running, rewrite
    file.write_text(text)
    running.run(reload(running.runtime))


def state(running: Running) -> tuple[Any, ...]:
    here = running.runtime
    return here.config.model_dump_json(), here.fingerprint, id(here._router)


def reloads(running: Running, outcome: str) -> float:
    return running.runtime.metrics.registry.get_sample_value("waver_config_reloads_total", {"outcome": outcome}) or 0.0


def test_presets_and_limits_are_taken_over(served: Any) -> None:
    running, rewrite = served
    with running.http() as http:
        before = http.post("/v1/chat/completions", json=CHAT).json()["system_fingerprint"]
        assert http.post("/v1/chat/completions", json={**CHAT, "model": "waver/new"}).status_code == 404
        rewrite(
            presets={
                "new": [{"name": "route", "threshold": 1.0}],
                "frugal": [{"name": "ead", "threshold": 2.0, "window": 1, "min_tokens": 1, "threshold_down": None}],
            },
            server={"port": 0, "max_n": 2},
        )
        assert running.run(reload(running.runtime)) == ["presets.coin", "presets.frugal", "presets.new", "server.max_n"]
        answer = http.post("/v1/chat/completions", json={**CHAT, "model": "waver/new"})
        assert (answer.status_code, answer.headers["x-waver-policy"]) == (200, "new")
        assert answer.json()["system_fingerprint"] != before
        assert http.post("/v1/chat/completions", json={**CHAT, "model": "waver/coin"}).status_code == 404
        assert http.post("/v1/chat/completions", json={**CHAT, "n": 3}).status_code == 400
        assert reloads(running, "done") == 1.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"server": {"port": 0, "max_n": 2, "host": "::1"}}, "server.host changes only with a new start"),
        (
            {"server": {"port": 0, "max_n": 2, "max_body_bytes": 2048, "cors_origins": ["x"]}},
            "server.cors_origins changes only with a new start",
        ),
        ({"presets": {"p": [{"name": "ead"}]}, "default_preset": "p", "state": "x"}, "state changes only"),
        ({"presets": {"p": [{"name": "eadd"}]}, "default_preset": "p"}, "preset 'p': policy[0].name: unknown policy"),
        ({"presets": {}}, "default_preset 'frugal' is not among the presets"),
        ({"server": {"max_n": 0}}, "server.max_n: Input should be greater"),
        ({"engines": {"small": {"model": "/gone"}}}, "engines.large changes only with a new start"),
    ],
)
def test_what_cannot_be_taken_over_changes_nothing(served: Any, changes: dict[str, Any], sentence: str) -> None:
    running, rewrite = served
    before, refused = state(running), reloads(running, "refused")
    rewrite(**{"presets": {"new": [{"name": "ead"}], "frugal": [{"name": "ead"}]}, **changes})
    with pytest.raises(ConfigError) as error:
        running.run(reload(running.runtime))
    assert sentence in str(error.value)
    assert state(running) == before
    with running.http() as http:
        assert http.post("/v1/chat/completions", json={**CHAT, "model": "waver/coin"}).status_code == 200
    assert reloads(running, "refused") == refused + 1


def test_an_administrator_reloads_over_http(served: Any) -> None:
    running, rewrite = served
    with running.http() as http:
        rewrite(server={"port": 0, "max_concurrency": 1, "max_queue": 1})
        done = http.post("/v1/admin/reload")
        assert (done.status_code, done.json()) == (
            200,
            {"object": "config.reload", "applied": ["server.max_concurrency", "server.max_queue"], "refused": []},
        )
        shown = http.get("/metrics").text
        assert "waver_requests_running_limit 1.0" in shown
        assert "waver_requests_waiting_limit 1.0" in shown
        body = {"model": "large", "policy": [], "prompt": "1", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with ThreadPoolExecutor(8) as pool:
            statuses = Counter(pool.map(lambda _: http.post("/v1/completions", json=body).status_code, range(8)))
        assert statuses[429] > 0, "8 do not fit where 1 runs and 1 waits"
        assert statuses[200] >= 2
        assert statuses.total() == statuses[200] + statuses[429]

        before = state(running)
        rewrite(server={"port": 0, "max_queue": 5, "text_threads": 3, "host": "::1"})
        refused = http.post("/v1/admin/reload")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "reload_refused")
        reasons = {each["option"]: each["reason"] for each in refused.json()["refused"]}
        assert reasons.keys() == {"server.host", "server.text_threads"}
        assert all("only with a new start" in reason for reason in reasons.values())
        rewrite(presets={"bad": [{"name": "nothing"}]}, default_preset="bad")
        refused = http.post("/v1/admin/reload")
        assert refused.status_code == 409
        assert "unknown policy" in refused.json()["error"]["message"]
        assert state(running) == before
        written = [each for each in http.get("/v1/admin/audit").json()["data"] if each["action"] == "config.reload"]
        assert [each["detail"] for each in written] == [
            {"refused": ["presets.bad.0.name"]},
            {"refused": ["server.host", "server.text_threads"]},
            {"applied": ["server.max_concurrency", "server.max_queue"]},
        ]


def test_a_file_that_is_gone_changes_nothing(served: Any) -> None:
    running, _ = served
    before = state(running)
    running.runtime.config._origin[0].unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        running.run(reload(running.runtime))
    assert state(running) == before


def test_a_request_ends_under_the_configuration_that_it_began_with(served: Any) -> None:
    """A policy that is pinned while a request is being planned holds from the next one on."""
    running, rewrite = served
    here = running.runtime
    route = here.route("small")
    rewrite(pinned={"*": [{"name": "top_h"}]})
    assert running.run(reload(here)) == ["pinned.*"]
    here.check_pins(route, None)
    assert [policy.name for policy in here.route("small").policies] == ["top_h"]


async def test_a_server_that_starts_is_not_reloaded(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    from waver.server.runtime import Runtime

    file = tmp_path / "waver.yaml"
    file.write_text(yaml.safe_dump(tiny_config))
    runtime = Runtime(load_config(file))
    with pytest.raises(ConfigError, match="still starting"):
        await reload(runtime)
    await runtime.stop()


def test_options_that_differ_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "waver.yaml"
    file.write_text("engines: {a: {model: m}}\nserver: {timeout: 5}\n")
    one = load_config(file)
    assert differences(one, one.read_again()) == []
    # What a server has added to its environment is no change.
    monkeypatch.setenv("WAVER_MODULES", '["something"]')
    file.write_text("engines: {a: {model: m, device: cpu}, b: {model: m}}\nserver: {timeout: 6}\n")
    assert differences(one, one.read_again()) == ["engines.a", "engines.b", "server.timeout"]


def test_every_live_option_is_one() -> None:
    assert set(ServerConfig.model_fields) >= LIVE_SERVER
    assert is_live("server.timeout")
    assert not is_live("server.port")
    assert not is_live("retrieval.path")


async def test_two_reloads_come_one_after_the_other(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    from waver.server.runtime import Runtime

    file = tmp_path / "waver.yaml"
    file.write_text(yaml.safe_dump(tiny_config))
    runtime = Runtime(load_config(file))
    await runtime.start()
    try:
        file.write_text(yaml.safe_dump({**tiny_config, "presets": {}, "default_preset": None}))
        changed = await asyncio.gather(reload(runtime), reload(runtime))
        assert sorted(changed) == [[], ["default_preset", "presets.coin", "presets.frugal"]]
    finally:
        await runtime.stop()
