"""`waver check`: what is wrong with a configuration, where it stands, and how the command ends."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from waver.cli import app
from waver.engines.config import UpstreamConfig
from waver.resources import MODELS
from waver.secret import read_secret
from waver.server.checking import check_config
from waver.server.config import load_config
from waver.server.keys import configured_keys
from waver.server.preflight import check_start
from waver.server.problems import ConfigError
from waver.server.runtime import Runtime
from waver.server.settings import ServerConfig

HEAD = f"""\
engines:
  small: {{model: {MODELS / "small"}}}
  large: {{model: {MODELS / "large"}}}
server: {{port: 0}}
"""
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def _no_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has started in this process has left its list of modules in the environment."""
    monkeypatch.setenv("WAVER_MODULES", "")
    monkeypatch.delenv("WAVER_MODULES")


def said(tmp_path: Path, text: str, head: str = HEAD) -> list[str]:
    """Return the lines that a check prints, with the file's name for its path."""
    file = tmp_path / "waver.yaml"
    file.write_text(head + text)
    return [f"{problem.level}: {problem}".replace(str(tmp_path), "T") for problem in check_config(file)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("presets:\n  p: [{name: eadd}]\n", "T/waver.yaml:6: preset 'p': policy[0].name: unknown policy 'eadd'"),
        (
            "presets:\n  p:\n  - {name: top_h}\n  - name: ead\n    window: 1\n    threshold: -1\n",
            "T/waver.yaml:10: preset 'p': policy[1].threshold: Input should be greater",
        ),
        ("presets:\n  p: [{name: ead, large: huge}]\n", "T/waver.yaml:6: preset 'p': policy[0].large: unknown engine"),
        ("pinned:\n  '*':\n  - {name: route, a: 1}\n", "T/waver.yaml:7: pinned '*': policy[0].a: 'a' is not"),
        ("policies:\n  l_rag: {top_k: 1}\n  ead: {window: 0}\n", "T/waver.yaml:7: policies: 'ead': window: Input"),
        ("default_preset: gone\n", "T/waver.yaml:5: default_preset 'gone' is not among the presets: none."),
        ("guards:\n  mine: no/such/guard\n", "T/waver.yaml:6: guards: 'mine': there is nothing at no/such/guard."),
        (f"probes: {{\n  mine: {MODELS / 'guard'}}}\n", "T/waver.yaml:6: probe 'mine': "),
        ("modules: [no.such.module]\n", "T/waver.yaml:5: the module 'no.such.module' cannot be imported"),
        ("retrieval: {api_key_file: /no/key}\n", "T/waver.yaml:5: retrieval.api_key_file: the secret in /no/key"),
        ("retrieval:\n  embedder: ./gone\n", "T/waver.yaml:6: retrieval.embedder: there is no model at ./gone."),
        ("retrieval: {path: /dev/null/data}\n", "T/waver.yaml:5: retrieval.path: /dev/null/data cannot be written"),
    ],
)
def test_a_problem_has_its_line(tmp_path: Path, text: str, line: str) -> None:
    (problem,) = said(tmp_path, text)
    assert problem.startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("engine", "line"),
    [
        ("{model: /no/model}", "T/w.yaml:2: Engine 'a': there is no model at /no/model."),
        (
            f"\n    model: {MODELS / 'small'}\n    chat_template: /no/file\n",
            "T/w.yaml:4: Engine 'a': chat_template: /no/file cannot be",
        ),
        ("{backend: openai, model: m, base_url: 'http://u/v1', api_key_env: NOPE}", "T/w.yaml:2: Engine 'a': set the"),
        ("{backend: openai, model: m, base_url: 'http://u/v1', api_key_file: /no}", "T/w.yaml:2: Engine 'a': the secr"),
        (f"{{model: {MODELS / 'small'}, tool_parser: hf}}", "T/w.yaml:2: engine 'a': tool_parser: hf needs a model"),
    ],
)
def test_engines_are_checked(tmp_path: Path, engine: str, line: str) -> None:
    (problem,) = said(tmp_path, "", f"engines:\n  a: {engine}\nserver: {{port: 0}}\n")
    assert problem.startswith(f"error: {line.replace('w.yaml', 'waver.yaml')}")


def test_a_folder_that_is_not_here_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    head = "engines:\n  a: {model: models/lerge}\nserver: {port: 0}\n"
    said_of = "warning: T/waver.yaml:2: Engine 'a': there is no folder models/lerge here"
    assert said(tmp_path, "", head) == [f"{said_of}; it will be looked for on a hub."]
    (tmp_path / "models").mkdir()
    likely = " (but models/, so it is likely misspelt)"
    assert said(tmp_path, "", head) == [f"{said_of}{likely}; it will be looked for on a hub."]
    assert CliRunner().invoke(app, ["check", "waver.yaml"]).exit_code == 0


async def test_a_server_says_that_a_folder_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hub(*_: object) -> None:
        raise OSError("We couldn't connect to a hub.")

    monkeypatch.setattr("waver.server.runtime.load_engine", no_hub)
    file = tmp_path / "waver.yaml"
    file.write_text("engines: {a: {model: models/lerge}}\nserver: {port: 0}\n")
    monkeypatch.chdir(tmp_path)
    runtime = Runtime(load_config(file))
    await runtime.start()
    await runtime.stop()
    assert runtime.failure == (
        "Engine 'a': there is no folder models/lerge here, and it cannot be loaded from a hub: "
        "We couldn't connect to a hub."
    )


def test_every_unknown_and_wrong_field_is_told_at_once(tmp_path: Path) -> None:
    text = "server:\n  prot: 1\n  port: 99999\nretreival: {}\n"
    assert sorted(said(tmp_path, text, "engines: {a: {model: x/y}}\n")) == [
        "error: T/waver.yaml:3: unknown key 'server.prot'.",
        "error: T/waver.yaml:4: server.port: Input should be less than or equal to 65535, not 99999",
        "error: T/waver.yaml:5: unknown key 'retreival'.",
    ]


def test_lines_are_those_of_values_behind_merges(tmp_path: Path) -> None:
    head = "engines:\n  a: &a\n    device: cpu\n    model: /gone\n  b:\n    <<: *a\nserver: {port: 0}\n"
    assert [line.split(": ")[1] for line in said(tmp_path, "", head)] == ["T/waver.yaml:4", "T/waver.yaml:4"]


def test_models_with_different_tokenizers_cannot_share_an_answer(tmp_path: Path) -> None:
    other = shutil.copytree(MODELS / "small", tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    made = json.loads((other / "tokenizer.json").read_text())
    made["added_tokens"].append({**made["added_tokens"][0], "id": 9000, "content": "<new>"})
    (other / "tokenizer.json").write_text(json.dumps(made))
    text = f"  other: {{model: {other}}}\npresets: {{p: [{{name: ead, large: other}}]}}\n"
    (problem,) = said(tmp_path, text, HEAD.replace("server: {port: 0}\n", ""))
    assert "waver.yaml:5: preset 'p': policy[0].large: small and other cannot share an answer" in problem


def test_a_source_that_is_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAVER_ENGINES__SMALL__MODEL", "/gone")
    monkeypatch.setenv("WAVER_SEVER__PORT", "1")
    assert said(tmp_path, "") == [
        "error: WAVER_ENGINES__SMALL__MODEL: Engine 'small': there is no model at /gone.",
        "warning: WAVER_SEVER__PORT: there is no section 'sever': the variable is not read.",
    ]


def test_warnings_do_not_fail(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice:secret-1\n")
    keys.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as other:
        text = f"server:\n  port: {other.getsockname()[1]}\n  api_keys_file: {keys}\npinned: {{bob: [{{name: ead}}]}}\n"
        lines = said(tmp_path, text, HEAD.replace("server: {port: 0}\n", ""))
        assert [line[: line.index(":", 22)] for line in lines] == [
            "warning: T/waver.yaml:6",
            "warning: T/waver.yaml:5",
            "warning: T/waver.yaml:7",
        ]
        assert "everybody on this machine can read" in lines[0]
        assert "is in use" in lines[1]
        assert "no key is called 'bob'" in lines[2]
        assert not any("secret-1" in line for line in lines)
        # The same is an error for a server that starts.
        with pytest.raises(ConfigError, match="is in use"):
            check_start(load_config(tmp_path / "waver.yaml"))
        file = str(tmp_path / "waver.yaml")
        assert CliRunner().invoke(app, ["check", file]).exit_code == 0
        assert CliRunner().invoke(app, ["check", file, "--strict"]).exit_code == 1


def test_the_command_prints_lines_or_an_object(tmp_path: Path) -> None:
    file = tmp_path / "waver.yaml"
    file.write_text(HEAD)
    good = CliRunner().invoke(app, ["check", str(file)])
    assert (good.exit_code, good.stderr) == (0, "")
    assert good.stdout == f"{file} can be served, as far as this can be told here.\n"
    file.write_text(HEAD + "default_preset: gone\n")
    bad = CliRunner().invoke(app, ["check", str(file)])
    sentence = "default_preset 'gone' is not among the presets: none."
    assert (bad.exit_code, bad.stdout, bad.stderr) == (1, "", f"{file}:5: {sentence}\n")
    told = CliRunner().invoke(app, ["check", str(file), "--json"])
    place = {"place": ["default_preset"], "level": "error", "source": str(file), "line": 5}
    assert json.loads(told.stdout) == {"valid": False, "problems": [{"message": sentence, **place}]}
    assert told.exit_code == 1
    assert CliRunner().invoke(app, ["check", str(file), "--wrong"]).exit_code == 2


def test_the_file_is_an_argument_or_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(HEAD)
    Path("bad.yaml").write_text("no: 1\n")

    def status(*arguments: str) -> int:
        return CliRunner().invoke(app, ["check", *arguments]).exit_code

    assert status("--config", "good.yaml") == status("good.yaml", "-c", "good.yaml") == 0
    assert status("--config", "bad.yaml") == 1
    assert status("good.yaml", "--config", "bad.yaml") == 2
    monkeypatch.setenv("WAVER_CONFIG", "bad.yaml")
    assert status() == 1
    assert status("good.yaml") == 0


def test_shipped_configurations_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in sorted(CONFIGS.glob("*.yaml")):
        assert [str(problem) for problem in check_config(file, {"server": {"port": 0}})] == []


async def test_a_server_says_the_same_before_it_loads_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = said(tmp_path, "presets:\n  p: [{name: eadd}]\n")
    monkeypatch.setattr("waver.server.runtime.load_engines", None)  # calling it would be another failure
    runtime = Runtime(load_config(tmp_path / "waver.yaml"))
    await runtime.start()
    await runtime.stop()
    assert runtime.failure
    assert line.endswith(runtime.failure)


def test_secrets_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nalice:first\n\nsecond, bob:third\n")
    monkeypatch.setenv("SOME_KEYS", "fourth")
    config = ServerConfig(api_keys_env="SOME_KEYS", api_keys_file=str(file))
    assert [key.secret for key in configured_keys(config)] == ["first", "second", "third"]
    assert [key.name for key in configured_keys(config)][::2] == ["alice", "bob"]
    assert [key.secret for key in configured_keys(ServerConfig(api_keys_env="SOME_KEYS"))] == ["fourth"]
    file.write_text("# none yet\n")
    with pytest.raises(ValueError, match="there is no key in"):
        configured_keys(config)
    file.write_text(" upstream-key\n")
    upstream = {"model": "m", "base_url": "http://u/v1"}
    assert UpstreamConfig(**upstream, api_key_file=str(file)).key() == "upstream-key"
    assert UpstreamConfig(**upstream, api_key_env="SOME_KEYS").key() == "fourth"
    assert UpstreamConfig(**upstream).key() is None


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_a_secret_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(file))):
        read_secret("ANY", str(file))


def test_keys_of_a_file_are_needed(start: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("alice:from-a-file\n")
    with start(api_keys_file=str(file)).http() as http:
        assert http.get("/v1/models").status_code == 401
        assert http.get("/v1/models", headers={"authorization": "Bearer from-a-file"}).status_code == 200


def test_what_remembers_beside_a_shared_database_is_warned_of(tmp_path: Path) -> None:
    presets = "presets: {mine: [{name: simplemem}], other: [{name: top_p}]}\n"
    shared = "keys: {database: 'postgresql://nobody@127.0.0.1:9/none'}\n"
    warned = [line for line in said(tmp_path, presets + shared) if line.startswith("warning")]
    assert len(warned) == 1
    assert "presets.mine: what simplemem keeps lies in `state` on this machine" in warned[0]
    assert not [line for line in said(tmp_path, presets) if line.startswith("warning")]
