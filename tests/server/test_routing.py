"""Resolution of requests to engines and parameters, and isolation between requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from waver.clients.chat import choose_model

ASK = {"model": "small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0}


def post(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json=ASK | fields)


def test_prompts_are_made_by_an_engine_that_writes(
    start: Callable[..., Any], tiny_config: dict[str, Any], running: Any
) -> None:
    """A third engine, even the largest, has no say in a request whose policy does not name it."""
    route = running.runtime.route
    assert route("waver/frugal").engine in ("small", "large")
    third = {**tiny_config["engines"], "other": tiny_config["engines"]["large"]}
    trio = start(config={"engines": third})
    other = trio.runtime.engines["other"]
    other.parameters = 10**12
    assert trio.runtime.route("waver/frugal").engine == "large"
    assert trio.runtime.route("other", [{"name": "ead"}]).engine == "large"
    assert trio.runtime.route("other").engine == "other"


def test_the_configuration_sets_defaults_that_are_shown_and_checked(start: Callable[..., Any]) -> None:
    server = start(config={"policies": {"ead": {"threshold": 0.25}}})
    with server.http() as http:
        listed = {policy["name"]: policy for policy in http.get("/v1/policies").json()["data"]}
        assert listed["ead"]["defaults"]["threshold"] == 0.25
        ran = post(http, policy=[{"name": "ead"}]).json()["waver"]["policy"][0]
        assert ran["threshold"] == 0.25
    broken = start(config={"policies": {"ead": {"threshold": -1}}}, wait=False)
    deadline = time.monotonic() + 60
    while broken.runtime.failure is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not broken.runtime.loaded
    assert "policies: 'ead'" in broken.runtime.failure


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"threshold": "0.7"}, "policy[0].threshold"),
        ({"threshold": True}, "policy[0].threshold"),
        ({"window": "5"}, "policy[0].window"),
        ({"window": 2.5}, "policy[0].window"),
        ({"start": 1}, "policy[0].start"),
    ],
)
def test_a_wrong_type_is_refused_not_converted(http: httpx.Client, parameters: dict[str, Any], param: str) -> None:
    answer = post(http, policy=[{"name": "ead", **parameters}])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert (
        post(
            http, policy=[{"name": "ead", "threshold": 1, "window": 1, "min_tokens": 1, "threshold_down": None}]
        ).status_code
        == 200
    )


@pytest.mark.parametrize(
    "policy",
    [
        [],
        [{"name": "ead", "threshold": 3.0, "window": 1, "min_tokens": 1, "threshold_down": None}],
        [{"name": "random_switch"}],
    ],
)
def test_no_answer_ends_before_min_tokens(running: Any, http: httpx.Client, policy: list[Any]) -> None:
    (end,) = running.runtime.engines["small"].tokens.eos_ids
    eager = {"logit_bias": {str(end): 100}, "max_tokens": 20, "policy": policy}
    assert post(http, **eager).json()["usage"]["completion_tokens"] == 1
    answer = post(http, **eager, min_tokens=5).json()
    assert answer["usage"]["completion_tokens"] == 6  # the end itself counts
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_numbers_beyond_all_bounds_harm_nobody(http: httpx.Client) -> None:
    with ThreadPoolExecutor(2) as pool:
        neighbour = pool.submit(post, http, max_tokens=200, ignore_eos=True)
        for field, value in (("top_k", 2**63), ("top_k", 2**200), ("repetition_penalty", 1e-320), ("seed", 2**80)):
            assert post(http, temperature=1, **{field: value}).status_code == 400
        assert post(http, temperature=1, top_k=2**31 - 1).status_code == 200
        assert neighbour.result().status_code == 200


@pytest.mark.parametrize("name", ["conversations", "bos_token", "environment", "range", "padding"])
def test_template_variables_cannot_reach_the_tokenizer(http: httpx.Client, name: str) -> None:
    plain = post(http).json()["usage"]["prompt_tokens"]
    answer = post(http, chat_template_kwargs={name: 1})
    assert answer.status_code == 400 or answer.json()["usage"]["prompt_tokens"] == plain


def test_the_default_preset_is_the_first_that_is_listed(start: Callable[..., Any]) -> None:
    presets = {"calibrated": [{"name": "ead", "threshold": 0.5}], "frugal": [{"name": "ead"}]}
    server = start(config={"presets": presets, "default_preset": "frugal"})
    with server.http() as http:
        listed = [each["id"] for each in http.get("/v1/models").json()["data"]]
    assert listed.index("waver/frugal") < listed.index("waver/calibrated")
    assert choose_model(listed) == "waver/frugal"
