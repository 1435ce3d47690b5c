"""The sampling that a model recommends holds where a request is silent, and an upstream is sent what was asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from waver.engines.base import Sampling
from waver.engines.defaults import NONE, recommended_sampling, taken_over
from waver.engines.upstream.request import Capabilities, body
from waver.server.sampling import SETTINGS, settings
from waver.server.schemas import Generation

HELLO = [{"role": "user", "content": "hello"}]
OWN = {"temperature": 0.01, "top_k": 1, "max_new_tokens": 9, "eos_token_id": 2}


@pytest.fixture(scope="module")
def server(start: Callable[..., Any], tiny_pair: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that recommends the likeliest token; `free` is the same without its recommendation."""
    folder = tmp_path_factory.mktemp("recommending") / "model"
    shutil.copytree(tiny_pair["small"], folder)
    (folder / "generation_config.json").write_text(json.dumps(OWN))
    engines = {"own": {"model": str(folder)}, "free": {"model": str(folder), "generation_config": "none"}}
    return start(config={"engines": engines, "presets": {}, "default_preset": None})


@pytest.fixture
def web(server: Any) -> Any:
    with server.http() as client:
        yield client


def texts(web: httpx.Client, **options: Any) -> set[str]:
    """The answers to one request, by four seeds."""
    found = set()
    for seed in range(4):
        answer = web.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 12, "seed": seed, **options})
        assert answer.status_code == 200, answer.text
        found.add(answer.json()["choices"][0]["message"]["content"])
    return found


def test_a_models_own_sampling_holds_where_the_request_is_silent(web: httpx.Client) -> None:
    assert len(texts(web, model="own")) == 1
    assert len(texts(web, model="free")) > 1
    assert len(texts(web, model="own", temperature=1.0, top_k=-1)) > 1
    assert len(texts(web, model="own", temperature=1.5)) == 1  # its top_k still holds
    assert len(texts(web, model="own", temperature=None, top_k=None)) == 1  # null is silent
    assert len(texts(web, model="own", temperature=1.0, policy=[{"name": "top_p", "p": 0.95}])) > 1


def test_a_models_own_limit_holds_where_the_request_is_silent(web: httpx.Client) -> None:
    body = {"messages": HELLO, "ignore_eos": True}
    for model, options, count in (("own", {}, 9), ("own", {"max_tokens": 20}, 20)):
        answer = web.post("/v1/chat/completions", json={**body, "model": model, **options}).json()
        assert answer["usage"]["completion_tokens"] == count


def test_what_is_taken_over(tmp_path: Path) -> None:
    assert taken_over({**OWN, "top_p": 7, "min_p": True, "do_sample": True}) == {
        "temperature": 0.01,
        "top_k": 1,
        "max_new_tokens": 9,
    }
    assert recommended_sampling(str(tmp_path)) == NONE
    (tmp_path / "generation_config.json").write_text("{")
    assert recommended_sampling(str(tmp_path)) == NONE


def test_settings_of_the_request_go_over_the_models() -> None:
    own = {"temperature": 0.6, "top_p": 0.8, "top_k": 20}
    assert settings(Generation(), own, truncates=False) == own
    assert settings(Generation(), own, truncates=True) == {"temperature": 0.6}
    asked = Generation(temperature=0.0, top_p=1.0)
    assert settings(asked, own, truncates=False) == {"temperature": 0.0, "top_p": 1.0, "top_k": 20}
    assert settings(asked, {}, truncates=False) == {"temperature": 0.0, "top_p": 1.0}


def test_an_upstream_gets_no_sampling_that_nobody_asked_for(running: Any) -> None:
    tokens = running.runtime.engines["small"].tokens

    def sent(**fields: Any) -> set[str]:
        made = body("m", [5, 6], Sampling(**fields), tokens, Capabilities(), room=9)
        return set(SETTINGS) & made.keys()

    assert sent() == set(SETTINGS)
    assert sent(unset=frozenset(SETTINGS)) == set()
    assert sent(unset=frozenset(SETTINGS) - {"top_p"}) == {"top_p"}
    assert sent(unset=frozenset(SETTINGS), temperature=0.3) == {"temperature"}  # a policy's
