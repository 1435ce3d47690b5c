"""One file adds a policy, a gate or a truncation: it is listed, described, on the page and in the client, and works."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests.conftest import ROOT
from tests.server.test_page import Page, needs_chromium
from tests.server.test_page import chromium as chromium
from waver.clients import policies
from waver.engines import plugins
from waver.policies import registry
from waver.server.config import load_config
from waver.server.runtime import Runtime

POLICY, GATE, TRUNCATION = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S)
"""The examples of the page for extenders, each a module."""
TOYS = {"toy_policy": POLICY, "toy_gate": GATE, "toy_truncation": TRUNCATION}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Modules in a folder on the path, which are forgotten afterwards."""
    made = tmp_path_factory.mktemp("toys")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made)
        patch.setenv(plugins.VARIABLE, "[]")
        patch.delenv(plugins.VARIABLE)
        yield made


@pytest.fixture(scope="module")
def toys(start: Callable[..., Any], folder: Path) -> Any:
    for name, text in TOYS.items():
        (folder / f"{name}.py").write_text(text)
    running = start(
        config={
            "engines": {"small": {"model": str(ROOT / "models" / "small")}},
            "presets": {},
            "default_preset": None,
            "modules": list(TOYS),
            "state": str(folder / "state"),
            "retrieval": {"path": str(folder / "collections")},
        }
    )
    with running.http() as http:
        assert http.post("/v1/collections", json={"name": "notes"}).status_code == 200
        rows = [{"id": "d1", "text": "The river of Corton is the Sorn."}]
        assert http.post("/v1/collections/notes/documents", json={"documents": rows}).status_code == 200
    return running


def ask(toys: Any, policy: dict[str, Any], **more: Any) -> Any:
    body = {"messages": [{"role": "user", "content": "What is 2 + 2?"}], "max_tokens": 8, "policy": [policy], **more}
    with toys.http() as http:
        response = http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()


def test_they_are_listed(toys: Any) -> None:
    with toys.http() as http:
        listed = {each["name"]: each for each in http.get("/v1/policies").json()["data"]}
    assert listed["toy_shout"]["summary"] == "Count the answer's tokens aloud."
    assert listed["toy_shout"]["schema"]["properties"]["times"]["maximum"] == 9
    assert (listed["toy_best"]["stage"], listed["toy_best"]["defaults"]) == ("sample", {"slack": 0.0})
    gate = listed["l_rag"]["schema"]["properties"]["gate"]
    assert "toy_third" in gate["enum"]
    assert "toy_third 0.5" in listed["l_rag"]["schema"]["properties"]["threshold"]["description"]
    assert "toy_third 3" in listed["l_rag"]["schema"]["properties"]["draft_tokens"]["description"]


def test_the_policy_works_with_its_metric(toys: Any) -> None:
    assert ask(toys, policies.toy_shout(times=3))["waver"]["shout"] == 3  # type: ignore[attr-defined]
    with toys.http() as http:
        assert 'toy_shouts_total{times="3"} 1.0' in http.get("/metrics").text


def test_the_gate_works(toys: Any) -> None:
    fired = ask(toys, policies.l_rag(gate="toy_third", collection="notes", threshold=-1.0))["waver"]  # type: ignore[arg-type]
    assert fired["retrieval"]["triggered"]
    assert fired["retrieval"]["threshold"] == -1.0
    assert fired["discarded_tokens"] == 3
    kept = ask(toys, policies.l_rag(gate="toy_third", collection="notes", threshold=50.0))["waver"]  # type: ignore[arg-type]
    assert not kept["retrieval"]["triggered"]


def test_the_truncation_works(toys: Any) -> None:
    warm = {"temperature": 2.0, "seed": 5}
    best = ask(toys, policies.toy_best(), **warm)  # type: ignore[attr-defined]
    greedy = ask(toys, policies.toy_shout(), temperature=0.0)  # type: ignore[attr-defined]
    assert best["choices"][0]["message"] == greedy["choices"][0]["message"]
    assert best["waver"]["truncation"]["kept_max"] == 1
    assert ask(toys, policies.toy_best(slack=50.0), **warm)["waver"]["truncation"]["kept_max"] > 1  # type: ignore[attr-defined]


@needs_chromium
def test_the_page_has_fields_for_them(toys: Any, chromium: Chrome) -> None:
    page = Page(chromium, toys.url)
    page.wait(lambda: page.all("#policy-toy_shout"))
    assert page.one("#toy_shout-times").get_attribute("max") == "9"
    assert page.one("#policy-toy_best")
    options = page.one("#l_rag-gate").find_elements(By.TAG_NAME, "option")
    assert "toy_third" in {option.get_attribute("value") for option in options}


BAD = {
    "cannot be imported": "import nothing_like_this",
    "needs a docstring": POLICY.replace('    """Count the answer\'s tokens aloud."""\n', ""),
    "'times' of 'toy_shout' in bad_3 needs a default and a description": POLICY.replace(
        ', description="how often it shouts"', ""
    ),
    "needs a stage, one of admit": POLICY.replace('"admit"', '"somewhere"'),
    "has the name 'ead', which is taken": POLICY.replace("toy_shout", "ead"),
    "has no method 'decode'": POLICY.split("    async def decode")[0],
    "has no method 'crop'": TRUNCATION.split("    @classmethod")[0],
    "has no method 'decide'": GATE.split("    async def decide")[0],
}


@pytest.mark.parametrize("says", BAD)
def test_a_bad_definition_is_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    name = f"bad_{list(BAD).index(says) + 1}"
    (folder / f"{name}.py").write_text(BAD[says])
    monkeypatch.setenv(plugins.VARIABLE, "[]")

    def load() -> None:
        plugins.load([name])
        registry.policies()

    with pytest.raises(plugins.PluginError, match=says):
        load()


async def test_a_server_with_a_bad_one_does_not_start(
    tiny_config: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(plugins.VARIABLE, "[]")
    monkeypatch.delenv(plugins.VARIABLE)
    file = folder / "broken.yaml"
    file.write_text(yaml.safe_dump(tiny_config | {"modules": ["not_there_at_all"]}))
    runtime = Runtime(load_config(file))
    stopped: list[bool] = []
    await runtime.start(on_failure=lambda: stopped.append(True))
    assert stopped == [True]
    assert runtime.failure == (
        "the module 'not_there_at_all' cannot be imported: ModuleNotFoundError: No module named 'not_there_at_all'"
    )
    await runtime.stop()
