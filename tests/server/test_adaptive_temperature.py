"""The policy `adaptive_temperature` over HTTP: alone, beside a truncation and a switch, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from waver.clients import policies
from waver.clients.client import report
from waver.policies import registry

QUESTION = [{"role": "user", "content": "hello"}]
COOL = policies.adaptive_temperature(span=0.3, low=50.0, pivot=60.0, high=70.0)
"""Below its lowest entropy everywhere: 0.7 of the request's temperature."""
SWAYING = policies.adaptive_temperature(span=0.3, low=2.0, pivot=5.0, high=6.5)


def ask(client: openai.OpenAI, policy: list[dict[str, Any]], **options: Any) -> Any:
    settings = {"model": "small", "temperature": 1.5, "max_tokens": 30, "seed": 5} | options
    extra = settings.pop("extra_body", {}) | {"policy": policy}
    return client.chat.completions.create(messages=QUESTION, extra_body=extra, **settings)


def text(answer: Any) -> list[str]:
    return [choice.message.content for choice in answer.choices]


def test_alone(client: openai.OpenAI) -> None:
    """At its lowest it is a plain temperature; between its ends it is none, and the seed repeats it."""
    assert text(ask(client, [COOL], n=3)) == text(ask(client, [], temperature=1.05, n=3))
    first, second = (ask(client, [SWAYING], n=3) for _ in range(2))
    assert text(first) == text(second)
    assert text(first) not in [text(ask(client, [], temperature=1.5 * share, n=3)) for share in (0.7, 1.0, 1.3)]
    asked = registry.policies()["adaptive_temperature"].model_validate(SWAYING)
    assert first.waver["policy"] == [asked.model_dump(mode="json")]
    assert "truncation" not in first.waver
    assert text(ask(client, [SWAYING], temperature=0)) == text(ask(client, [], temperature=0))


def test_beside_others(client: openai.OpenAI) -> None:
    """Before a truncation and in each segment of a switch, in whichever order they are listed."""
    cut = policies.top_h(alpha=0.6)
    both = [ask(client, order, temperature=2.0) for order in ([COOL, cut], [cut, COOL])]
    alone = ask(client, [cut], temperature=1.4)
    assert text(both[0]) == text(both[1]) == text(alone)
    assert both[0].waver["truncation"] == pytest.approx(alone.waver["truncation"])
    usual = report(ask(client, [])).entropy.mean
    pair = policies.ead(threshold=usual, window=1, min_tokens=1)
    switched = [ask(client, [pair, COOL]), ask(client, [pair], temperature=1.05)]
    assert text(switched[0]) == text(switched[1])
    assert min(report(switched[0]).tokens.values()) > 0


@pytest.mark.parametrize(
    ("policy", "param", "says"),
    [
        ([{"name": "adaptive_temperature", "span": 0.4}], "policy[0].span", "at most 0.3"),
        ([{"name": "adaptive_temperature", "low": 0}], "policy[0].low", "at least 1e-08"),
        ([{"name": "adaptive_temperature", "pivot": 3.5}], "policy[0]", "should rise in this order"),
        ([{"name": "adaptive_temperature", "tau": 0.1}], "policy[0].tau", "span, low, pivot, high"),
        ([SWAYING, SWAYING], "policy[1]", "listed twice"),
        ([SWAYING, {"name": "top_w"}, {"name": "min_p"}], "policy[2]", "use one"),
    ],
)
def test_what_is_refused(client: openai.OpenAI, policy: list[Any], param: str, says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as refused:
        ask(client, policy)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


def test_it_is_listed(http: httpx.Client) -> None:
    listed = {policy["name"]: policy for policy in http.get("/v1/policies").json()["data"]}["adaptive_temperature"]
    assert (listed["stage"], listed["paper"]) == ("sample", "arXiv 2509.16591")
    assert listed["schema"]["properties"]["span"]["maximum"] == 0.3
    assert listed["defaults"]["low"] < listed["defaults"]["pivot"] < listed["defaults"]["high"]
