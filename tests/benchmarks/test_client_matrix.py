"""The client matrix: a real client in an environment of its own, and scripts that break."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import ROOT, Running
from waver.benchmarks import client_matrix
from waver.benchmarks.client_matrix import page, page_beside
from waver.benchmarks.client_scripts import SCRIPTS, Client, ask, find
from waver.server.config import Config

FORWARDED = """
import asyncio, sys

async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()

async def forward(reader, writer):
    host, port = "{url}".removeprefix("http://").split(":")
    theirs = await asyncio.open_connection(host, int(port))
    await asyncio.gather(copy(reader, theirs[1]), copy(theirs[0], writer), return_exceptions=True)

async def main():
    async with await asyncio.start_server(forward, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()

asyncio.run(main())
"""
"""A server that passes connections on to another one."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The bundled small model, with a template that shows tools."""
    folder = Path(shutil.copytree(ROOT / "models" / "small", tmp_path / "model"))
    shutil.copy(ROOT / "tests" / "server" / "hermes.jinja", folder / "chat_template.jinja")
    return folder


@pytest.mark.timeout(600)
def test_a_client_of_the_matrix_works(model: Path, running: Running, tmp_path: Path) -> None:
    """Each feature on a server of Waver's, and beside it on another one, whose model shows no tools."""
    other = tmp_path / "other.py"
    other.write_text(FORWARDED.format(url=running.url))
    arguments = ["--model", str(model), "--only", "openai_python", "--out", str(tmp_path / "out")]
    compared = [*arguments, "--beside", f"{sys.executable} {other} {{port}}"]
    assert "without --beside first" in CliRunner().invoke(client_matrix.app, compared).output.replace("\n", " ")
    for each in (arguments, compared):
        done = CliRunner().invoke(client_matrix.app, each)
        assert done.exit_code == 0, done.output
    written = tmp_path / "out" / "client_matrix_beside.json"
    numbers = json.loads(written.read_text())
    (ours,), (theirs,) = numbers["clients"], numbers["others"]
    assert len(ours["failed"]) == len(theirs["failed"]) == 8
    assert not {check: said for check, said in ours["failed"].items() if said}
    assert theirs["failed"]["text"] == ""
    assert "chat template" in theirs["failed"]["tools"]
    assert "| tools | yes | no |" in written.with_suffix(".md").read_text()
    another = Path(shutil.copytree(model, tmp_path / "another"))
    other_model = [str(another) if word == str(model) else word for word in compared]
    assert "with another" in CliRunner().invoke(client_matrix.app, other_model).output.replace("\n", " ")
    known = client_matrix.earlier(written.with_name("client_matrix.json"))
    assert {each.model for each in known.values()} == {"model"}
    assert [each.version for each in known.values()] == [ours["version"]]


def test_a_pair_is_asked_by_its_preset_and_its_tokens_are_counted(running: Running) -> None:
    made = client_matrix.configuration("a", "b", "cascade", "bfloat16")
    config = Config.model_validate(made)
    assert [(engine.backend, made["engines"][name]["dtype"]) for name, engine in config.engines.items()] == [
        ("transformers", "bfloat16")
    ] * 2
    assert config.presets["pair"] == [{"name": "cascade", "small": "small", "large": "large"}]
    before = client_matrix.tokens(running.url)
    with running.openai() as client:
        client.completions.create(model="large", prompt="hello", max_tokens=5, extra_body={"ignore_eos": True})
    assert client_matrix.tokens(running.url)["large"] - before.get("large", 0) >= 5
    told = "\n".join(page([Client("a", "b 1", [], {"text": ""})], {"small": 7, "large": 5}))
    assert "7 tokens were written by `small`. 5 tokens were written by `large`." in told


def test_two_servers_are_compared_test_by_test() -> None:
    ours = Client("a", "b 1", [], {"standard": "2 of 3"}, parts={"invoke": "", "stream": "", "agent": "no call"})
    theirs = Client("a", "b 1", [], {"standard": "1 of 3"}, parts={"invoke": "", "stream": "broken", "agent": "none"})
    told = "\n".join(page_beside([ours], [theirs], "vllm 0.32.0"))
    assert "Waver passes 2 and vllm 0.32.0 1 of 3 tests" in told
    assert "| stream | yes | no |" in told
    assert "| agent | no | no |" in told
    assert "- stream, vllm 0.32.0: broken" in told


def test_every_script_is_pinned_and_run() -> None:
    named = {client.name for client in find()}
    python = {file.stem for file in SCRIPTS.glob("*.py")} - {"harness"}
    node = {f"{file.stem}_node" for file in SCRIPTS.glob("*/*.mjs")} - {"harness_node"}
    assert named == python | node


@pytest.mark.parametrize(
    ("code", "failed"),
    [
        ("print('{\"part\": \"invoke\", \"failed\": \"\"}\\n{\"check\": \"all\", \"passed\": true, \"said\": \"\"}')",
         {"all": ""}),
        ("print('{\"check\": \"text\", \"passed\": true, \"said\": \"\"}')", {"text": ""}),
        ("print('{\"check\": \"text\", \"passed\": false, \"said\": \"no\"}')", {"text": "no"}),
        ("print('{\"check\": \"text\", \"passed\": true, \"said\": \"\"}'); 1 / 0",
         {"text": "", "start": "ZeroDivisionError: division by zero"}),
        ("pass", {"start": "exit status 0"}),
    ],
)  # fmt: skip
def test_what_a_script_says_is_noted(code: str, failed: dict[str, str], tmp_path: Path) -> None:
    client = Client("a", "b 1", [sys.executable, "-c", code])
    ask(client, {}, tmp_path)
    assert client.failed == failed
    assert client.parts == ({"invoke": ""} if "all" in failed else {})
    passed = sum(not said for said in failed.values())
    assert f"{passed} of {len(failed)} checks pass" in "\n".join(page([client], {}))


def test_a_script_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = CliRunner().invoke(client_matrix.app, ["--model", "m", "--only", "nobody", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "openai_python" in done.output
    assert not any(tmp_path.iterdir())
