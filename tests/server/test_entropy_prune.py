"""The policy `entropy_prune` over HTTP: its report, its budgets, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Running
from tests.pictures import data_url, drawn, part, user


@pytest.fixture
def http(seeing: Running) -> Iterator[httpx.Client]:
    with seeing.http() as client:
        yield client


def ask(http: httpx.Client, *parts: Any, model: str = "see1", **policy: Any) -> httpx.Response:
    body: dict[str, Any] = {"model": model, "messages": user(*parts), "max_tokens": 6, "temperature": 0}
    if policy:
        body["policy"] = [{"name": "entropy_prune", **policy}]
    return http.post("/v1/chat/completions", json=body)


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


PICTURE = part(data_url(drawn(0)))


@pytest.mark.parametrize(("keep", "layer", "kept"), [(0.75, 2, 40), (0.5, 2, 16), (0.25, 1, 6), (0.01, 3, 1)])
def test_the_report_has_the_budget(http: httpx.Client, keep: float, layer: int, kept: int) -> None:
    for picture in (1, 2):  # each has its own share
        found = ask(http, *[PICTURE] * picture, "What?", keep=keep, layer=layer)
        report = found.json()["waver"]["entropy_prune"]
        saved = report.pop("seconds_saved")
        assert isinstance(saved, float)
        assert report == {"layer": layer, "before": 64 * picture, "after": kept * picture, "by": "entropy"}
        assert found.json()["usage"]["prompt_tokens"] > 64 * picture


def test_all_kept_changes_nothing_and_less_kept_does(http: httpx.Client) -> None:
    plain = text(ask(http, PICTURE, "What?"))
    assert text(ask(http, PICTURE, "What?", keep=1.0)) == plain
    fewer = {by: text(ask(http, PICTURE, "What?", keep=0.4, by=by)) for by in ("entropy", "attention", "random")}
    assert plain not in fewer.values()
    assert len(set(fewer.values())) == 3
    again = ask(http, PICTURE, "What?", keep=0.4, by="random")
    assert text(again) == fewer["random"]
    assert text(ask(http, PICTURE, "What?")) == plain  # no cache of a pruned prompt is taken for a whole one


def test_a_preset_leaves_texts_alone_and_other_engines_refuse(http: httpx.Client) -> None:
    words = ask(http, "What?", keep=0.5)
    assert text(words) == text(ask(http, "What?"))
    assert "entropy_prune" not in words.json()["waver"]
    assert ask(http, "What?", model="small", keep=0.5).status_code == 200
    preset = ask(http, PICTURE, "What?", model="waver/quick")
    assert preset.json()["waver"]["entropy_prune"]["after"] == 16
    late = ask(http, PICTURE, "What?", layer=6)
    assert late.status_code == 400
    assert late.json()["error"]["param"] == "policy"
    assert "from 1 to 5, not 6" in late.json()["error"]["message"]
    for wrong in ({"keep": 0.0}, {"keep": 1.5}, {"layer": 0}, {"by": "chance"}):
        assert ask(http, PICTURE, "What?", **wrong).status_code == 400
