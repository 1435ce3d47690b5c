"""Labels by the most confident of several views, over HTTP: the answer, the report, what is kept, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import Running, until
from waver.clients.client import report
from waver.clients.policies import adte

LABELS = ["alpha", "beta", "gamma"]


@pytest.fixture(scope="module")
def tiny(start: Callable[..., Running], tmp_path_factory: pytest.TempPathFactory) -> Running:
    return start(config={"state": str(tmp_path_factory.mktemp("state"))})


def ask(running: Running, prompt: str = "Which?", **options: Any) -> Any:
    policy = {"labels": LABELS, "views": 6, "keep": 0.5, "margin": 0.0, "warmup": 2}
    with running.openai() as client:
        return client.chat.completions.create(
            model="large",
            messages=[{"role": "user", "content": prompt}],
            extra_body={"policy": [adte(**policy | options.pop("policy", {}))]},
            **options,
        )


def test_labels_over_http(tiny: Running) -> None:
    with tiny.http() as http:
        before = http.get("/metrics").text
    for number in range(3):
        made = ask(tiny, f"Which is number {number}?")
        told = report(made).model_extra["label"]  # type: ignore[index]
        assert made.choices[0].message.content == told["chosen"]
        assert made.choices[0].finish_reason == "stop"
        assert told["chosen"] == max(told["probabilities"], key=told["probabilities"].__getitem__)
        assert (told["views"], len(told["kept"])) == (6, 3)
        assert told["learned_from"] == number
        until(lambda number=number: kept(tiny) == number + 1, "what is kept after an answer")
    assert max(told["orders"].values()) == pytest.approx(0.9), "from the third request on labels have their own orders"
    assert min(told["orders"].values()) == pytest.approx(0.01)
    assert report(made).discarded_tokens == 6
    with tiny.http() as http:
        after = http.get("/metrics").text
    line = 'waver_labelled_answers_total{measure="adte"} 3.0'
    assert line in after
    assert line not in before


def kept(running: Running) -> int:
    """Return how many sure predictions the store holds for a caller without key and user."""
    store = running.runtime.stores.open("adte", "/")
    found = running.run(store.items())
    return next((value for key, value in found.items() if key.endswith("/entered")), 0)


def test_a_stream_and_several_choices(tiny: Running) -> None:
    with tiny.openai() as client:
        streamed = client.chat.completions.create(
            model="large",
            messages=[{"role": "user", "content": "Which?"}],
            stream=True,
            extra_body={"policy": [{"name": "adte", "labels": LABELS, "views": 2, "learn": False}]},
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
    assert text in LABELS
    made = ask(tiny, n=2, policy={"learn": False, "view": "reasoned", "text_tokens": 4})
    assert {choice.message.content for choice in made.choices} <= set(LABELS)


def test_what_is_refused(tiny: Running) -> None:
    for options, words in (
        ({"policy": {"labels": ["one"]}}, "at least 2 items"),
        ({"policy": {"views": 65}}, "less than or equal to 64"),
        ({"response_format": {"type": "json_object"}}, "the answer is one of the labels"),
        ({"prompt": "long " * 900}, "tokens"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            ask(tiny, **options)


def test_the_state_lies_in_the_configured_folder(tiny: Running) -> None:
    ask(tiny)
    assert (Path(tiny.runtime.config.state) / "adte.sqlite3").exists()
