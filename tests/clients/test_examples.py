"""Every worked example runs as it stands, against a real server."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Running

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "clients" / "examples"
TYPESCRIPT = ROOT / "clients" / "typescript"
NODE = shutil.which("node")
STORES = [
    "farmir.md: The mayor of Farmir is called Agnes.",
    "404: There is no collection 'towns'.",
    "Ada's dog is called Rex.",
    "1 forgotten",
    "1 fact: The mayor of Farmir is Bruno.",
]
"""The lines that the examples of stores print."""
with_node = pytest.mark.skipif(NODE is None, reason="Node is not installed")


def run(name: str, base_url: str, said: str = "") -> str:
    """Return the output of an example to whom `said` is typed."""
    program = {".sh": "sh", ".mjs": NODE or "node"}.get(Path(name).suffix, sys.executable)
    done = subprocess.run(
        [program, str(EXAMPLES / name)],
        capture_output=True, text=True, timeout=120, input=said,
        env=os.environ | {"WAVER_BASE_URL": base_url, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    tested = {"curl.sh", "openai_sdk.py", "streaming.py", "async_openai.py", "asking_back.py", "stores.py"}
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == tested
    assert {path.name for path in (TYPESCRIPT / "examples").iterdir()} == {"chat.mjs", "stores.mjs"}


@pytest.fixture
def stores_url(start: Callable[..., Running], tmp_path: Path) -> str:
    """A server with empty stores."""
    config: dict[str, Any] = {
        "engines": {"small": {"model": str(ROOT / "models" / "small")}},
        "presets": {},
        "default_preset": None,
        "retrieval": {"path": str(tmp_path / "collections")},
        "state": str(tmp_path / "state"),
    }
    return start(config=config).v1


def test_curl(base_url: str) -> None:
    response = json.loads(run("curl.sh", base_url))
    assert response["choices"][0]["message"]["content"]
    assert sum(response["waver"]["tokens"].values()) == response["usage"]["completion_tokens"]


def test_openai_sdk(base_url: str) -> None:
    assert "'relative_cost'" in run("openai_sdk.py", base_url)


def test_streaming(base_url: str) -> None:
    *tokens, summary = run("streaming.py", base_url).splitlines()
    assert tokens
    assert all(line.endswith("nats") for line in tokens)
    assert "relative cost" in summary


def test_async_openai(base_url: str) -> None:
    printed = run("async_openai.py", base_url)
    for policy in ("small alone", "ead", "random_switch", "route"):
        assert f"{policy}: " in printed


def test_asking_back(base_url: str) -> None:
    *questions, guess, last = [
        each.removeprefix("> ") for each in run("asking_back.py", base_url, "no\n" * 40).splitlines() if each.strip()
    ]
    assert any("?" in each for each in questions)
    assert "still possible: " in guess
    assert last == "Thank you, I did not know."


def test_stores_in_both_languages(stores_url: str) -> None:
    assert run("stores.py", stores_url).splitlines() == STORES
    if NODE:
        assert run("../typescript/examples/stores.mjs", stores_url).splitlines() == STORES


@with_node
def test_typescript(base_url: str) -> None:
    answer, cost, *tokens = run("../typescript/examples/chat.mjs", base_url).split("relative cost ")
    first, *lines = cost.splitlines()
    assert answer
    assert 0 < float(first) <= 1
    assert not tokens
    assert lines
    assert all(line.endswith(" nats") for line in lines)


def test_the_built_typescript_client_is_that_of_its_source() -> None:
    source = hashlib.sha256((TYPESCRIPT / "src" / "index.ts").read_bytes()).hexdigest()
    for file in ("index.js", "index.d.ts"):
        built = (TYPESCRIPT / "lib" / file).read_text()
        assert built.startswith(f"// Built from src/index.ts, SHA-256 {source}."), "run npm run build there"


ABORTED = r"""
import { createServer } from "node:http";
import { Waver, WaverError } from "%s";
let left = false;
const server = createServer((request, response) => {
  if (request.url === "/v1/models") {
    response.writeHead(401, { "content-type": "application/json" });
    response.end(JSON.stringify({ error: { message: "no key", param: null, code: "invalid_api_key" } }));
    return;
  }
  response.writeHead(200, { "content-type": "text/event-stream" });
  const bytes = Buffer.from('data: {"choices": [], "word": "Gr\u00fc\u00dfe"}\n\n: still here\n\n');
  response.write(bytes.subarray(0, 35));  // in the middle of a character
  setTimeout(() => response.write(bytes.subarray(35)), 20);
  response.on("close", () => { left = true; });
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const client = new Waver({ baseURL: `http://127.0.0.1:${server.address().port}/v1/`, timeout: 5000 });
const told = (error) => console.log(error instanceof WaverError, error.status, error.message, error.code);
await client.models().catch(told);
for await (const chunk of client.stream({ messages: [] })) {
  console.log(chunk.word);
  break;
}
while (!left) await new Promise((resolve) => setTimeout(resolve, 5));
console.log("closed");
server.close();
server.closeAllConnections();
"""


@with_node
def test_a_typescript_stream_that_is_left_is_closed(tmp_path: Path) -> None:
    script = tmp_path / "aborted.mjs"
    script.write_text(ABORTED % (TYPESCRIPT / "lib" / "index.js").as_uri())
    done = subprocess.run([NODE or "node", str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["true 401 no key invalid_api_key", "Grüße", "closed"]
