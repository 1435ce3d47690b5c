"""A router learns kinds of requests from a few examples, and picks the engine that answers, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from typer.testing import CliRunner

from tests.conftest import Running
from waver.cli import app
from waver.clients.client import report
from waver.clients.policies import learned_route
from waver.engines.router import PIECES, Router, pieces

WORDS = {
    "cooking": ("onions in a pan", "the dough for bread", "a soup of lentils", "rice with saffron", "a plum cake"),
    "money": ("my bank account", "interest on a loan", "an unpaid invoice", "the tax on wages", "a refund by card"),
    "garden": ("pruning apple trees", "weeds in the lawn", "seeds of tomatoes", "compost and manure", "roses in May"),
}
FORMS = "How do I deal with {} ?|Tell me all about {} please .|I have a question that concerns {} today ."


def lines(file: Path, kinds: list[str], places: range, shift: int = 0) -> Path:
    """Write each kind's phrases in so many forms, which take turns."""
    forms = FORMS.split("|")
    rows = [
        {"kind": kind, "text": forms[(i + place + shift) % len(forms)].format(words)}
        for kind in kinds
        for i, words in enumerate(WORDS[kind])
        for place in places
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def invoke(*command: Any) -> Any:
    return CliRunner().invoke(app, list(map(str, command)))


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A router of two kinds, which then learned a third from five examples."""
    folder = tmp_path_factory.mktemp("router")
    first = lines(folder / "first.jsonl", ["cooking", "money"], range(3))
    out = folder / "mine"
    done = invoke("route", "learn", first, "--out", out, "--base-steps", "60")
    assert done.exit_code == 0, done.output
    assert invoke("route", "list", out).output == "cooking\tfirst session\nmoney\tfirst session\n"
    more = lines(folder / "more.jsonl", ["garden"], range(1))
    test = lines(folder / "test.jsonl", list(WORDS), range(1), shift=1)
    done = invoke("route", "learn", more, "--out", out, "--test", test, "--steps", "60")
    assert done.exit_code == 0, done.output
    assert "router: " in done.output
    assert "nearest mean: " in done.output
    assert "linear probe: " in done.output
    return out


def test_a_new_kind_is_learned_and_the_old_ones_kept(router: Path) -> None:
    made = Router.load(router)
    assert made.record.kinds == ("cooking", "money", "garden")
    assert made.record.base == 2
    found = made.record.about["accuracy"]
    assert set(found) == {"router", "nearest mean", "linear probe"}
    assert found["router"]["base"] >= 0.7
    assert found["router"]["novel"] >= 0.6
    assert invoke("route", "list", router).output.splitlines()[2] == "garden\tadded"
    done = invoke("route", "say", router, "How should I cut back the roses and trees ?")
    said = json.loads(done.output)
    assert said["kind"] == "garden"
    assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert 0 <= said["entropy"] <= 1
    before = (router / "router.safetensors").read_bytes()
    again = invoke("route", "learn", router.parent / "more.jsonl", "--out", router)
    assert "was learned already" in again.output.replace("\n", " ")
    assert (router / "router.safetensors").read_bytes() == before


def test_requests_are_routed_over_http(router: Path, start: Callable[..., Running]) -> None:
    running = start(config={"routers": {"mine": str(router)}})

    def ask(text: str, **policy: Any) -> Any:
        with running.openai() as client:
            return client.chat.completions.create(
                model="small",
                max_tokens=2,
                messages=[{"role": "user", "content": text}],
                extra_body={"policy": [learned_route(**{"routes": {"garden": "large"}} | policy)]},
            )

    made = report(ask("How do I deal with weeds in the lawn ?"))
    told = made.model_extra["request_kind"]  # type: ignore[index]
    assert (told["router"], told["kind"], told["engine"]) == ("mine", "garden", "large")
    assert set(made.tokens) >= {"large"}
    assert made.tokens.get("small", 0) == 0
    made = report(ask("Tell me all about interest on a loan please ."))
    told = made.model_extra["request_kind"]  # type: ignore[index]
    assert (told["kind"], told["engine"]) == ("money", "small")
    told = report(ask("How do I deal with weeds in the lawn ?", unsure=0.0)).model_extra["request_kind"]  # type: ignore[index]
    assert (told["sure"], told["engine"]) == (False, "small"), "an even distribution abstains"
    with running.http() as http:
        assert 'waver_routed_requests_total{kind="money",router="mine"} 1.0' in http.get("/metrics").text
    for policy, words in (
        ({"router": "other"}, "unknown router 'other'; there are mine"),
        ({"routes": {"sport": "large"}}, "the router 'mine' has no kind 'sport'"),
        ({"routes": {"garden": "nobody"}}, "unknown engine 'nobody'"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            ask("hello", **policy)


def test_a_server_without_routers_says_so(running: Running) -> None:
    with running.openai() as client, pytest.raises(openai.BadRequestError, match="waver route learn makes one"):
        client.chat.completions.create(
            model="small",
            messages=[{"role": "user", "content": "hello"}],
            extra_body={"policy": [{"name": "learned_route"}]},
        )


def test_pieces() -> None:
    assert pieces("one two  three\nfour five") == ["one", "two", "three\nfour", "five"]
    assert pieces("a b c") == ["a b c"] * PIECES
    assert " ".join(pieces("a b c d e f g")).split() == list("abcdefg")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"kind": "garden", "text": "again"}, "the kind 'garden' is known already"),
        ({"kind": "sport"}, "an object is needed with `text` and `kind`"),
        ([1], "an object is needed with `text` and `kind`"),
        ("", "not JSON"),
    ],
)
def test_what_is_refused(row: Any, words: str, router: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text((json.dumps(row) if row != "" else "{") + "\n")
    done = invoke("route", "learn", file, "--out", router)
    assert done.exit_code == 1
    assert words in done.output.replace("\n", " ")


def test_what_else_is_refused(router: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"kind": "a", "text": "b"}) + "\n")
    done = invoke("route", "learn", one, "--out", tmp_path / "new")
    assert "begins with at least two kinds" in done.output.replace("\n", " ")
    assert not (tmp_path / "new").exists()
    assert "holds no router: router.json is missing" in invoke("route", "say", tmp_path, "x").output.replace("\n", " ")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "router.json").write_text((router / "router.json").read_text())
    (broken / "router.safetensors").write_bytes(b"no")
    assert "cannot be read" in invoke("route", "list", broken).output.replace("\n", " ")
