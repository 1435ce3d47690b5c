"""Ask the server, as a form for policies does: what is configured, and whether a list of policies can be used."""

from __future__ import annotations

import httpx
import pytest

from waver.policies.registry import describe


def test_setup_lists_engines_presets_and_names(http: httpx.Client) -> None:
    found = http.get("/v1/setup").json()
    assert [(each["id"], each["bundled"]) for each in found["engines"]] == [("small", False), ("large", False)]
    assert found["reference"] == "large"
    small, large = found["engines"]
    assert 0 < small["parameters"] < large["parameters"]
    assert found["default_preset"] == "frugal"
    (ead,) = found["presets"]["frugal"]
    assert (ead["name"], ead["threshold"], ead["window"]) == ("ead", 3.0, 1)  # all of its parameters
    assert found["names"]["engines"] == ["small", "large"]
    assert "starter" in found["names"]["guards"]
    assert "animals" in found["names"]["tasks"]


def test_policies_are_checked_without_running(http: httpx.Client) -> None:
    asked = {"model": "small", "policy": [{"name": "top_p", "p": 0.5}, {"name": "ead"}]}
    found = http.post("/v1/policies/check", json=asked).json()
    assert [each["name"] for each in found["policy"]] == ["ead", "top_p"]
    assert found["engines"] == ["small", "large"]
    assert found["max_model_len"] == 1024


@pytest.mark.parametrize(
    ("policy", "param"),
    [
        ([{"name": "ead", "threshold": 0.1, "threshold_down": 0.2}], "policy[0]"),
        ([{"name": "top_p"}, {"name": "ead", "threshold": -1.0}], "policy[1].threshold"),
        ([{"name": "ead"}, {"name": "route"}], "policy[1]"),
    ],
)
def test_what_cannot_be_used_is_refused(http: httpx.Client, policy: object, param: str) -> None:
    response = http.post("/v1/policies/check", json={"policy": policy})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_hints_name_what_there_is() -> None:
    for policy in describe():
        properties = policy["schema"]["properties"]
        assert set(policy["names"]) <= set(properties)
        for field, values in policy["evaluation"].items():
            allowed = [policy["name"]] if field == "name" else properties[field].get("enum", [])
            assert set(values) <= set(allowed), f"{policy['name']}.{field}"
