"""Truncating policies over HTTP: what they do, what the report says of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from waver.clients import policies
from waver.clients.client import report
from waver.policies import registry

QUESTION = [{"role": "user", "content": "hello"}]
SAMPLE = [name for name, policy in registry.policies().items() if policy.stage == "sample" and not policy.combines]


def ask(client: openai.OpenAI, policy: list[dict[str, Any]], **options: Any) -> Any:
    settings = {"model": "small", "temperature": 1.5, "max_tokens": 12, "seed": 5} | options
    extra = settings.pop("extra_body", {}) | {"policy": policy}
    return client.chat.completions.create(messages=QUESTION, extra_body=extra, **settings)


def test_there_are_eight_of_them() -> None:
    assert set(SAMPLE) == {"top_w", "top_p", "min_p", "typical", "eta", "epsilon", "top_n_sigma", "top_h"}


@pytest.mark.parametrize("name", SAMPLE)
def test_each_reports_what_it_left(client: openai.OpenAI, name: str) -> None:
    first, second = (ask(client, [getattr(policies, name)()]) for _ in range(2))
    assert first.choices == second.choices
    kept = report(first).truncation
    assert kept is not None
    assert 1 <= kept.kept_mean <= kept.kept_max
    assert kept.crop_entropy_mean >= 0
    assert first.waver["policy"] == [registry.policies()[name]().model_dump(mode="json")]
    assert "truncation" not in ask(client, []).waver
    assert "truncation" not in ask(client, [{"name": name}], temperature=0).waver


@pytest.mark.parametrize(("name", "field", "value"), [("top_p", "top_p", 0.3), ("min_p", "min_p", 0.4)])
def test_native_fields_and_policies_are_the_same(client: openai.OpenAI, name: str, field: str, value: float) -> None:
    by_policy = ask(client, [{"name": name, "p": value}])
    by_field = ask(client, [], extra_body={field: value})
    assert by_policy.choices[0].message == by_field.choices[0].message
    assert by_policy.waver["truncation"] == pytest.approx(by_field.waver["truncation"])
    over = ask(client, [{"name": name, "p": value}], extra_body={field: 0.999})
    assert over.choices[0].message == by_policy.choices[0].message


def test_sharp_settings_are_greedy(client: openai.OpenAI) -> None:
    greedy = ask(client, [], temperature=0).choices[0].message.content
    for policy in (
        policies.top_w(mass_weight=1.0),
        policies.top_p(p=1e-9),
        policies.min_p(p=1.0),
        policies.top_n_sigma(n=0.0),
        policies.top_h(alpha=0.01, form="renormalised"),
    ):
        sharp = ask(client, [policy])
        assert sharp.choices[0].message.content == greedy
        assert sharp.waver["truncation"] == {"kept_mean": 1.0, "kept_max": 1, "crop_entropy_mean": 0.0}


def test_selection_at_a_temperature_of_its_own(client: openai.OpenAI) -> None:
    kept = [
        report(ask(client, [policies.top_w(selection_temperature=t, mass_weight=6.0)])).truncation
        for t in (0.05, None, 5.0)
    ]
    assert kept[0].kept_mean == 1  # type: ignore[union-attr]
    assert kept[1].kept_mean < kept[2].kept_mean  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [{}, {"potential": "knn", "metric": "chord"}, {"warm_mass": 0.05}])
def test_each_segment_of_ead_is_truncated_by_its_engine(client: openai.OpenAI, options: dict[str, Any]) -> None:
    """The order of the list has no meaning, and both engines write."""
    usual = report(ask(client, [], max_tokens=40)).entropy.mean
    pair = policies.ead(threshold=usual, window=1, min_tokens=1)
    answers = [
        ask(client, [*order], max_tokens=40)
        for order in ([pair, policies.top_w(**options)], [policies.top_w(**options), pair])
    ]
    assert answers[0].choices == answers[1].choices
    done = report(answers[0])
    assert min(done.tokens.values()) > 0
    assert done.truncation is not None
    assert [policy["name"] for policy in done.policy] == ["ead", "top_w"]


def test_streams_and_choices(client: openai.OpenAI) -> None:
    whole = ask(client, [policies.typical()], n=3)
    each = [choice.waver["truncation"] for choice in whole.choices]
    total = whole.waver["truncation"]
    assert total["kept_max"] == max(one["kept_max"] for one in each)
    assert min(o["kept_mean"] for o in each) <= total["kept_mean"] <= max(o["kept_mean"] for o in each)
    chunks = list(ask(client, [policies.typical()], n=3, stream=True, stream_options={"include_usage": True}))
    # Rows that are computed in another batch may differ in the last bits.
    assert chunks[-1].waver["truncation"] == pytest.approx(total, rel=1e-5)
    ends = {c.choices[0].index: c.waver["truncation"] for c in chunks if c.choices and c.choices[0].finish_reason}
    for i in range(3):
        assert ends[i] == pytest.approx(each[i], rel=1e-5)


@pytest.mark.parametrize(
    ("policy", "param", "says"),
    [
        ([{"name": "top_w", "pool": 0}], "policy[0].pool", "at least 1"),
        ([{"name": "top_w", "mass_weight": "2"}], "policy[0].mass_weight", "number"),
        ([{"name": "top_w", "warm_mass": 1.5}], "policy[0].warm_mass", "at most 1"),
        ([{"name": "top_w", "potential": "mean"}], "policy[0].potential", "nearest, knn"),
        ([{"name": "top_w", "lambda": 2.0}], "policy[0].lambda", "entropy_weight"),
        ([{"name": "top_h", "form": "paper"}], "policy[0].form", "running, renormalised"),
        ([{"name": "typical", "p": 0}], "policy[0].p", "above 0"),
        ([{"name": "eta", "p": 0.1}], "policy[0].p", "epsilon"),
        ([{"name": "ead"}, {"name": "top_n_sigma", "n": -1}], "policy[1].n", "at least 0"),
        ([{"name": "top_w"}, {"name": "min_p"}], "policy[1]", "use one"),
        ([{"name": "top_p"}, {"name": "top_p"}], "policy[1]", "listed twice"),
    ],
)
def test_what_is_refused(client: openai.OpenAI, policy: list[Any], param: str, says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as refused:
        ask(client, policy)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


def test_presets_and_the_list_of_policies(start: Callable[..., Any]) -> None:
    server = start(config={"policies": {"top_w": {"mass_weight": 4.0}}, "presets": {"frugal": [{"name": "top_w"}]}})
    with server.http() as http:
        body = {"model": "waver/frugal", "messages": QUESTION, "temperature": 1.5, "max_tokens": 4}
        ran = http.post("/v1/chat/completions", json=body).json()["waver"]
        assert ran["policy"][0]["mass_weight"] == 4.0
        assert ran["truncation"]["kept_mean"] >= 1
        listed = {policy["name"]: policy for policy in http.get("/v1/policies").json()["data"]}
        assert listed["top_w"]["stage"] == "sample"
        assert listed["top_w"]["defaults"]["mass_weight"] == 4.0
        assert listed["top_w"]["schema"]["properties"]["warm_mass"]["maximum"] == 1.0


def test_an_embedding_that_cannot_be_whitened_is_refused(start: Callable[..., Any]) -> None:
    server = start()
    engine = server.runtime.engines["small"]
    weight = engine.model.get_input_embeddings().weight
    body = {"model": "small", "messages": QUESTION, "temperature": 1.0, "max_tokens": 2}
    with server.http() as http:
        kept = weight.data[-1, -1].item()
        weight.data[-1, -1] = float("inf")
        answer: httpx.Response = http.post("/v1/chat/completions", json=body | {"policy": [{"name": "top_w"}]})
        weight.data[-1, -1] = kept
        assert answer.status_code == 400
        assert "not finite" in answer.json()["error"]["message"]
        assert http.post("/v1/chat/completions", json=body | {"policy": [{"name": "top_w"}]}).status_code == 200
