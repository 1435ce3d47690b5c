"""`waver keys`: a key's life on the command line, and what servers see of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from waver.cli import app
from waver.server.config import load_config
from waver.server.keys import ApiKey
from waver.server.preflight import exposure_problems, static_problems, stored_key_names
from waver.server.settings import ServerConfig
from waver.server.tenants.database import Database
from waver.server.tenants.key_ring import KeyRing


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "waver.yaml"
    engines = "engines: {small: {backend: openai, base_url: 'http://127.0.0.1:1/v1', model: m}}"
    file.write_text(f"{engines}\nstate: {tmp_path / 'state'}\n")
    return file


def run(config: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["keys", *words, "--config", str(config)])


def listed(config: Path) -> dict[str, dict[str, object]]:
    lines = run(config, "list", "--json").stdout.splitlines()
    return {each["name"]: each for each in map(json.loads, lines)}


async def test_a_keys_life(config: Path, tmp_path: Path) -> None:
    assert stored_key_names(load_config(config)) == set()
    assert run(config, "list").stdout == ""
    assert not (tmp_path / "state").exists(), "nothing is made by looking"
    made = run(config, "add", "alice", "--rpm", "60", "--tpd", "1000", "--model", "small", "--model", "large",
               "--collection", "handbook=read", "--expires", "30d", "--weight", "2.5")  # fmt: skip
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert key.startswith("sk-waver-")
    shown = listed(config)["alice"]
    assert (shown["requests_per_minute"], shown["tokens_per_day"], shown["weight"]) == (60, 1000, 2.5)
    assert (shown["models"], shown["collections"]) == (["small", "large"], {"handbook": "read"})
    assert key not in run(config, "list", "--json").stdout
    ring = KeyRing([ApiKey("plain", "sk-plain")], Database(None, tmp_path / "state"))
    ring.load()

    async def holder(secret: str) -> str | None:
        await ring.refresh()
        found = await ring.identify(secret.encode())
        return None if found is None else found.name

    assert (await holder(key), await holder("sk-plain"), await holder("sk-waver-x")) == ("alice", "plain", None)
    assert run(config, "change", "alice", "--rpm", "none", "--model", "any", "--policy", "none").exit_code == 0
    shown = listed(config)["alice"]
    assert (shown["requests_per_minute"], shown["models"], shown["policies"]) == (None, None, [])
    assert shown["tokens_per_day"] == 1000
    second = run(config, "rotate", "alice").stdout.strip()
    assert (await holder(key), await holder(second)) == (None, "alice")
    assert run(config, "revoke", "alice").exit_code == 0
    assert await holder(second) is None
    assert ring.asks
    actions = [json.loads(line)["action"] for line in run(config, "audit").stdout.splitlines()]
    assert actions == ["key.revoke", "key.rotate", "key.change", "key.add"]
    assert "revoked" in run(config, "list").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "a/b"), "letters, digits"),
        (("add", "x", "--rpm", "many"), "requests_per_minute"),
        (("add", "x", "--role", "god"), "role"),
        (("add", "x", "--expires", "soon"), "neither"),
        (("change", "nobody", "--rpm", "1"), "no key 'nobody'"),
        (("revoke", "nobody"), "no key 'nobody'"),
        (("rotate", "nobody"), "no key 'nobody'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(config: Path, words: tuple[str, ...], said: str) -> None:
    found = run(config, *words)
    assert found.exit_code == 1
    assert said in found.stderr
    assert "Traceback" not in found.output


def test_a_name_is_not_given_twice(config: Path) -> None:
    assert run(config, "add", "alice").exit_code == 0
    assert "already" in run(config, "add", "alice").stderr
    run(config, "revoke", "alice")
    assert "stays taken" in run(config, "add", "alice").stderr
    assert "was revoked" in run(config, "rotate", "alice").stderr


def test_stored_keys_open_a_server_to_other_machines(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WAVER_API_KEYS", raising=False)
    run(config, "add", "alice")
    assert stored_key_names(load_config(config)) == {"alice"}
    assert list(exposure_problems(ServerConfig(host="0.0.0.0")))
    assert not list(exposure_problems(ServerConfig(host="0.0.0.0"), stored_keys=True))


@pytest.mark.parametrize("url", ["mysql://a:secret@b/c", "nonsense", "postgresql://waver:secret@127.0.0.1:1/waver"])
def test_a_database_that_cannot_be_used(config: Path, url: str) -> None:
    config.write_text(config.read_text() + f"keys: {{database: '{url}'}}\n")
    found = run(config, "list")
    assert found.exit_code == 1
    assert "secret" not in found.output
    assert [problem for problem in static_problems(load_config(config)) if problem.place == ("keys", "database")]
    assert "Traceback" not in found.output
