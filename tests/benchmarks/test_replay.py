"""Requests of `waver bench replay`, recorded from this checkout's own server and sent again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer

from waver.benchmarks import replay, replay_speed
from waver.benchmarks.replay_answers import ABSENT, MASK, Difference, differences, normalised
from waver.benchmarks.replay_file import Record, Recording
from waver.benchmarks.replay_intended import Intended
from waver.benchmarks.replay_requests import Request, for_vllm, requests
from waver.policies.registry import policies

FEW = 14
"""Requests that are sent in tests: a collection with documents, plain answers and streams."""


def names(made: list[Request]) -> Counter[str]:
    return Counter(each.name.split(" ", 1)[1] for each in made)


def test_requests_are_drawn_from_the_seed_and_cover_every_policy() -> None:
    made = requests(20)
    assert [each.as_data() for each in made] == [each.as_data() for each in requests(20)]
    assert [Request(**each.as_data()) for each in made] == made
    assert made != requests(21)
    assert len(made) >= 300
    assert names(made)["refused"] >= 60
    assert len(list(for_vllm(made))) >= 60
    asked = {
        policy["name"]
        for each in made
        if isinstance(each.body, Mapping) and not each.name.endswith("refused")
        for policy in each.body.get("policy", ())
        if isinstance(policy, Mapping)
    }
    assert asked == set(policies())
    drawing = [each.body for each in made if "completions" in each.path and not each.name.endswith("refused")]
    assert all("seed" in body for body in drawing)


def test_ids_times_and_durations_are_masked_and_streams_are_sorted_by_choice() -> None:
    body = {"id": f"chatcmpl-{'0' * 32}", "created": 7, "waver": {"trace": [{"id": 311}], "seconds": {"gate": 1.0}}}
    found = normalised(httpx.Response(200, json=body, headers={"x-request-id": "a", "retry-after": "5"}))
    assert found["headers"] == {"content-type": "application/json", "retry-after": "5"}
    assert found["body"] == {
        "id": f"chatcmpl-{MASK}",
        "created": MASK,
        "waver": {"trace": [{"id": 311}], "seconds": MASK},
    }
    chunks = [{"choices": [{"index": i, "text": text}]} for i, text in ((1, "a"), (0, "b"), (1, "c"), (0, "d"))]
    lines = (
        "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + ": still here\n\nevent: odd\ndata: [DONE]\n\n"
    )
    said = httpx.Response(200, text=lines, headers={"content-type": "text/event-stream"})
    texts = [each["choices"][0]["text"] for each in normalised(said)["body"][:4]]
    assert texts == ["b", "d", "a", "c"]
    assert normalised(said)["body"][4:] == ["event: odd", "[DONE]"]


def test_differences_name_each_place() -> None:
    before = {"status": 200, "body": {"n": [1, 2.0], "gone": None, "same": [1]}}
    after = {"status": 400, "body": {"n": [1, 2.00001], "same": [1, 2], "new": True}}
    found = list(differences(before, after))
    assert found == [
        Difference("status", 200, 400),
        Difference("body.n[1]", 2.0, 2.00001),
        Difference("body.gone", None, ABSENT),
        Difference("body.same", [1], [1, 2]),
        Difference("body.new", ABSENT, True),
    ]
    assert [each.rounding for each in found] == [False, True, False, False, False]
    one, other = {"name": "one", "n": 1}, {"name": "other", "n": 2}
    assert list(differences([one, other], [other, {**one, "n": 3}], "data")) == [
        Difference("data (order)", ["one", "other"], ["other", "one"]),
        Difference("data[0].n", 1, 3),
    ]
    assert list(differences({"a": 1}, {"a": True})) == [Difference("a", 1, True)]
    assert list(differences({"a": 1}, {"a": 1.0})) == [Difference("a", 1, 1.0)]


def test_a_difference_is_intended_where_both_its_request_and_its_place_are_named() -> None:
    request, found = Request("007 refused", "GET", "/"), Difference("body.error.message", "a", "b")
    assert Intended("refused$", r"body\.error\.message", "why").fits(request, found)
    assert not Intended("refused$", r"body\.error", "why").fits(request, found)
    assert not Intended("^008", r".*", "why").fits(request, found)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record this checkout's answers to the first few requests."""
    file = tmp_path_factory.mktemp("recording") / "replay.jsonl.xz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "requests", lambda seed: requests(seed)[:FEW])
        replay.app(args=["record", str(file), "--rounds", "1"], standalone_mode=False)
    return file


def compare(file: Path, out: Path) -> tuple[dict[str, Any], int]:
    """Run a comparison; return what it wrote and its exit status."""
    status = replay.app(args=["compare", str(file), "--out", str(out)], standalone_mode=False)
    assert (out / "replay.md").read_text().startswith("# ")
    return json.loads((out / "replay.json").read_text()), status or 0


@pytest.mark.timeout(600)
def test_what_was_recorded_is_answered_again_and_what_was_not_is_found(recording: Path, tmp_path: Path) -> None:
    kept = Recording.load(recording)
    assert [each.request for each in kept.records] == requests(20)[:FEW]
    assert {each.answer["status"] for each in kept.records} == {200}
    assert any(isinstance(each.answer["body"], list) for each in kept.records)  # a stream
    *others, last = kept.records
    plain = next(i for i, each in enumerate(others) if "choices" in each.answer["body"])
    wrong = json.loads(json.dumps(others[plain].answer))
    wrong["body"]["usage"]["completion_tokens"] += 1
    others[plain] = replace(others[plain], answer=wrong)
    varying = Record(last.request, {**last.answer, "status": 201}, ("status",))  # not repeatable: left out
    changed = tmp_path / "changed.jsonl.xz"
    replace(kept, records=[*others, varying]).save(changed)
    found, status = compare(changed, tmp_path / "out")
    assert status == replay.DIFFERENT
    (one,) = found["findings"]
    assert one["request"]["name"] == others[plain].request.name
    (difference,) = one["differences"]
    assert difference["where"] == "body.usage.completion_tokens"
    assert difference["before"] == difference["after"] + 1
    assert difference["why"] is None
    assert (found["requests"], list(found["varying"])) == (FEW, [last.request.name])


def test_a_recording_of_another_machine_is_refused(recording: Path, tmp_path: Path) -> None:
    kept = Recording.load(recording)
    elsewhere = tmp_path / "elsewhere.jsonl.xz"
    replace(kept, made_on=kept.made_on | {"instructions": "sse2"}).save(elsewhere)
    with pytest.raises(typer.BadParameter, match="--before OLD_CHECKOUT:\ninstructions"):
        replay.app(args=["compare", str(elsewhere)], standalone_mode=False)
    elsewhere.write_bytes(b"no recording")
    with pytest.raises(typer.BadParameter, match="is not a recording"):
        replay.app(args=["compare", str(elsewhere)], standalone_mode=False)


def test_steps_of_a_checkout_and_itself(tmp_path: Path) -> None:
    few = ["--backend", "transformers", "--starts", "1", "--rounds", "2", "--rows", "3", "--tokens", "12"]
    replay.app(args=["speed", str(replay.HERE), *few, "--out", str(tmp_path)], standalone_mode=False)
    found = json.loads((tmp_path / "replay_speed.json").read_text())
    assert found["before"] == found["after"]
    ways = found["backends"]["transformers"]
    assert set(ways) == set(replay_speed.WAYS)
    for case in ways.values():
        assert case["ratio"]["runs"] == 2
        assert 0.1 < case["ratio"]["median"] < 10
        assert case["step_ms"]["before"]["lowest"] > 0
