"""POST /v1/chat/completions through the real SDK."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "waver/frugal", "messages": HELLO, "max_tokens": 24, **options})


def collect(stream: Any) -> dict[int, dict[str, Any]]:
    """A stream's choices put together, with the rules every stream obeys checked on the way."""
    out: dict[int, dict[str, Any]] = {}
    heads = set()
    for chunk in stream:
        heads.add((chunk.id, chunk.created, chunk.model, chunk.object))
        if not chunk.choices:
            assert chunk.usage is not None
            out[-1] = {"usage": chunk.usage, "waver": chunk.waver}
            continue
        assert -1 not in out, "something follows the usage chunk"
        (choice,) = chunk.choices
        if choice.index not in out:
            assert choice.index == len(out), "a new index is out of order"
            assert choice.delta.role == "assistant"
            out[choice.index] = {"text": "", "logprobs": [], "finish": None, "trace": [], "waver": None}
        else:
            assert choice.delta.role is None
        one = out[choice.index]
        assert one["finish"] is None, "something follows the end of a choice"
        one["text"] += choice.delta.content or ""
        one["logprobs"] += choice.logprobs.content if choice.logprobs else []
        one["finish"] = choice.finish_reason
        one["trace"] += (getattr(choice, "waver", None) or {}).get("trace", [])
        if choice.finish_reason:
            assert choice.delta.model_dump(exclude_unset=True) == {}
            one["waver"] = chunk.waver
    assert len(heads) == 1
    return out


def test_answer_has_the_shape_of_the_contract(client: openai.OpenAI) -> None:
    answer = ask(client, seed=1)
    assert answer.object == "chat.completion"
    assert answer.model == "waver/frugal"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    waver = answer.model_extra["waver"]
    assert {"policy", "tokens", "switches", "relative_cost", "entropy"} <= waver.keys()
    assert sum(waver["tokens"].values()) == answer.usage.completion_tokens
    assert waver["policy"][0]["name"] == "ead"
    assert "trace" not in waver


@pytest.mark.parametrize(
    "policy",
    [[], [{"name": "ead", "threshold": 1.0, "monitor": "small", "window": 1, "min_tokens": 1, "threshold_down": None}]],
)
def test_the_cost_counts_every_pass(client: openai.OpenAI, policy: Any) -> None:
    """One engine alone decodes each token once and reads the rest of the prompt; a watching one decodes all of them."""
    answer = ask(client, model="small", seed=1, n=1, extra_body={"policy": policy})
    waver, usage = answer.model_extra["waver"], answer.usage
    cost, small = waver["cost"], waver["cost"]["engines"]["small"]
    assert cost["against"] == "large"
    assert all(each["seconds"] > 0 for each in cost["engines"].values())
    if policy:
        large = cost["engines"]["large"]
        assert large["decoded"] == waver["tokens"]["large"] > 0
        # The small engine looks at every position, and once more at each whose gate fired.
        assert small["decoded"] >= usage.completion_tokens
        assert cost["decode"] > waver["relative_cost"]
    else:
        assert small | {"seconds": 0} == {
            "parameters": small["parameters"], "decoded": usage.completion_tokens, "read": usage.prompt_tokens - 1,
            "seconds": 0,
        }  # fmt: skip
        assert cost["full"] == pytest.approx(cost["decode"]) == pytest.approx(cost["read"])
        assert cost["full"] < waver["relative_cost"] == 1


def test_choices_add_up_their_cost(client: openai.OpenAI) -> None:
    answer = ask(client, model="small", seed=1, n=3, extra_body={"policy": []})
    cost = answer.model_extra["waver"]["cost"]
    assert cost["engines"]["small"]["decoded"] == answer.usage.completion_tokens
    assert cost["engines"]["small"]["read"] == 3 * (answer.usage.prompt_tokens - 1)


@pytest.mark.parametrize("policy", [[], "frugal", "coin", [{"name": "route", "small": "small", "large": "large"}]])
def test_stream_equals_whole_for_three_choices(client: openai.OpenAI, policy: Any) -> None:
    options = {"n": 3, "seed": 5, "logprobs": True, "top_logprobs": 3, "extra_body": {"policy": policy, "trace": True}}
    whole = ask(client, **options)
    parts = collect(ask(client, stream=True, stream_options={"include_usage": True}, **options))
    assert parts[-1]["usage"] == whole.usage
    assert parts[-1]["waver"]["tokens"] == whole.waver["tokens"]
    texts = {choice.message.content for choice in whole.choices}
    assert len(texts) > 1, "choices should differ"
    for choice in whole.choices:
        part = parts[choice.index]
        assert part["text"] == choice.message.content
        assert part["finish"] == choice.finish_reason
        assert [e.bytes for e in part["logprobs"]] == [e.bytes for e in choice.logprobs.content]
        assert [e.logprob for e in part["logprobs"]] == pytest.approx(
            [e.logprob for e in choice.logprobs.content], abs=1e-4
        )
        assert [t["id"] for t in part["trace"]] == [t["id"] for t in choice.waver["trace"]]
        assert part["waver"]["tokens"] == choice.waver["tokens"]
        assert part["waver"]["switches"] == choice.waver["switches"]


def test_same_seed_same_answer(client: openai.OpenAI) -> None:
    one, two, other = (ask(client, seed=seed).choices[0].message.content for seed in (3, 3, 4))
    assert one == two != other


def test_first_choice_does_not_depend_on_n(client: openai.OpenAI) -> None:
    alone, first = (ask(client, seed=8, n=n).choices[0].message.content for n in (1, 3))
    assert alone == first


def test_trace_has_one_object_per_token(client: openai.OpenAI) -> None:
    answer = ask(client, seed=2, extra_body={"trace": True})
    trace = answer.waver["trace"]
    assert len(trace) == answer.usage.completion_tokens
    assert trace[0].keys() == {"token", "id", "engine", "entropy", "logprob", "decision"}
    decided = trace[0]["decision"]["ead"]
    assert decided.keys() == {"then", "value", "threshold", "of", "entropy"}
    assert (decided["value"] >= decided["threshold"]) == (decided["then"] in ("switch", "hold"))
    assert answer.waver["cost"]["seconds_alone"] > 0


def test_trap_1_2_role_comes_first_and_once(client: openai.OpenAI) -> None:
    parts = collect(ask(client, stream=True, n=3))
    assert sorted(parts) == [0, 1, 2]


def test_pieces_that_wait_go_out_together(http: httpx.Client) -> None:
    body = {"messages": HELLO, "max_tokens": 24, "ignore_eos": True, "n": 8, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        writes = list(response.iter_raw())
    assert writes[0].count(b'"role"') == 8
    assert writes[0].count(b"data: ") > 8, "the openings went out alone"
    assert len(writes) < b"".join(writes).count(b"data: ") / 3


def test_sdk_accumulator_takes_the_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="waver/frugal", messages=HELLO, max_tokens=8, n=2, seed=1) as stream:
        for _ in stream:
            pass
        final = stream.current_completion_snapshot
    assert [choice.index for choice in final.choices] == [0, 1]
    assert final.choices[0].message.role == "assistant"


def lines(http: httpx.Client, **body: Any) -> list[str]:
    with http.stream("POST", "/v1/chat/completions", json={"messages": HELLO, "stream": True, **body}) as response:
        assert response.status_code == 200
        assert "content-encoding" not in response.headers
        assert response.headers["x-accel-buffering"] == "no"
        return b"".join(response.iter_raw()).decode().split("\n")


def chunks(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    events = [line.removeprefix("data: ") for line in lines(http, **body) if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def test_trap_3_nothing_of_ours_sits_in_delta(http: httpx.Client) -> None:
    for chunk in chunks(http, max_tokens=4, trace=True, n=2, logprobs=True):
        for choice in chunk["choices"]:
            assert choice["delta"].keys() <= {"role", "content"}


def test_trap_4_5_finish_reason_is_null_until_the_empty_last_delta(http: httpx.Client) -> None:
    found = chunks(http, max_tokens=4)
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in found[:-1])
    assert found[-1]["choices"][0]["delta"] == {}
    assert found[-1]["choices"][0]["finish_reason"] == "length"
    assert found[-1]["waver"]["tokens"]


def test_trap_6_7_usage_only_when_asked_for(http: httpx.Client) -> None:
    plain = chunks(http, max_tokens=4)
    assert all(chunk["choices"] and "usage" not in chunk for chunk in plain)
    asked = chunks(http, max_tokens=4, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in asked[:-1])
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"]["completion_tokens"] == 4
    assert sum(asked[-1]["waver"]["tokens"].values()) == 4


@pytest.mark.parametrize("continuous", [True, False])
def test_trap_8_running_usage(http: httpx.Client, continuous: bool) -> None:
    options = {"include_usage": True, "continuous_usage_stats": continuous}
    found = chunks(http, max_tokens=4, ignore_eos=True, stream_options=options)
    counts = [chunk["usage"] and chunk["usage"]["completion_tokens"] for chunk in found[:-1]]
    assert counts == sorted(counts) if continuous else counts == [None] * len(counts)


def test_trap_9_head_is_constant(http: httpx.Client) -> None:
    found = chunks(http, max_tokens=4, model="waver/coin")
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in found}) == 1
    assert found[0]["model"] == "waver/coin"
    assert found[0]["object"] == "chat.completion.chunk"


def test_trap_14_15_lines_are_data_and_short(http: httpx.Client) -> None:
    found = lines(http, max_tokens=900, trace=True, logprobs=True, top_logprobs=20, ignore_eos=True, temperature=2)
    assert all(line == "" or line.startswith(("data: ", ": ")) for line in found)
    assert max(len(line.encode()) for line in found) < 64 * 1024


def test_trap_16_17_half_code_points_never_show(client: openai.OpenAI) -> None:
    for seed in range(6):
        options = {"seed": seed, "temperature": 1.6, "max_tokens": 60, "logprobs": True}
        whole = ask(client, **options)
        text = whole.choices[0].message.content
        joined = b"".join(bytes(entry.bytes) for entry in whole.choices[0].logprobs.content)
        # Random bytes that are no code point show as U+FFFD; a code point that is cut off at the end does not.
        assert joined.decode(errors="replace").startswith(text)
        assert len(joined.decode(errors="replace")) <= len(text) + 1
        assert collect(ask(client, stream=True, **options))[0]["text"] == text


def test_trap_18_each_token_has_its_own_alternatives(client: openai.OpenAI) -> None:
    parts = collect(ask(client, stream=True, logprobs=True, top_logprobs=5, seed=3, extra_body={"ignore_eos": True}))
    entries = parts[0]["logprobs"]
    assert len(entries) == 24
    assert all(len(entry.top_logprobs) == 5 for entry in entries)
    assert len({entry.top_logprobs[0].logprob for entry in entries}) > 1
    assert parts[0]["finish"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_trap_19_stop_strings_are_cut_exactly(client: openai.OpenAI, stream: bool) -> None:
    text = ask(client, seed=11, max_tokens=60).choices[0].message.content
    for start, length in ((5, 1), (7, 4), (12, 9), (20, 2)):
        stop = text[start : start + length]
        if "\ufffd" in stop or not stop:
            continue
        expected = text[: text.find(stop)]
        options = {"seed": 11, "max_tokens": 60, "stop": [stop, "not in there"], "logprobs": True}
        if stream:
            part = collect(ask(client, stream=True, **options))[0]
            found, entries, finish = part["text"], part["logprobs"], part["finish"]
        else:
            choice = ask(client, **options).choices[0]
            found, entries, finish = choice.message.content, choice.logprobs.content, choice.finish_reason
        assert (found, finish) == (expected, "stop")
        assert b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace") == expected


@pytest.mark.parametrize("stop", [None, "zzzzzz", ["zzzzzz"], []])
def test_trap_19_stop_may_be_null_string_or_list(http: httpx.Client, stop: Any) -> None:
    response = http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 3, "stop": stop})
    assert response.status_code == 200


def test_trap_20_choices_have_their_own_finish(http: httpx.Client) -> None:
    ends = [c["choices"][0]["index"] for c in chunks(http, max_tokens=3, n=3) if c["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1, 2]


def test_trap_21_max_completion_tokens_wins_and_null_is_absent(http: httpx.Client) -> None:
    nulls = dict.fromkeys(
        ("n", "stop", "seed", "temperature", "top_p", "logprobs", "top_logprobs", "logit_bias", "stream", "policy",
         "trace", "stream_options", "response_format", "tools", "tool_choice", "presence_penalty", "user",
         "timeout", "model")
    )  # fmt: skip
    body = {"messages": HELLO, "max_tokens": 9, "max_completion_tokens": 2, "ignore_eos": True, **nulls}
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200
    assert response.json()["usage"]["completion_tokens"] == 2


def test_trap_23_content_parts_equal_the_joined_string(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    one = ask(client, seed=1, messages=[{"role": "user", "content": parts}])
    assert one.choices[0].message.content == ask(client, seed=1).choices[0].message.content


def test_trap_23_other_parts_are_refused_by_index(client: openai.OpenAI) -> None:
    text = {"type": "text", "text": "a"}
    picture = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, messages=[{"role": "user", "content": [text, picture]}])
    assert error.value.param == "messages[0].content[1]"
    assert "takes no pictures" in error.value.message
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, messages=[{"role": "user", "content": [text, {"type": "input_audio"}]}])
    assert error.value.param == "messages[0].content[1].type"
    assert "messages[0].content[1].type should be 'text', 'image_url' or 'refusal'." in error.value.message


def test_trap_23_null_content_beside_tool_calls(http: httpx.Client) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    response = http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 2})
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["param"] == "messages"


def test_trap_24_developer_is_system_and_odd_orders_do_not_fail(http: httpx.Client) -> None:
    ids = [
        http.post("/tokenize", json={"messages": [{"role": role, "content": "be brief"}, *HELLO]}).json()["tokens"]
        for role in ("developer", "system")
    ]
    assert ids[0] == ids[1]
    for messages in ([*HELLO, *HELLO], [*HELLO, {"role": "system", "content": "late"}]):
        response = http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 2})
        assert response.status_code in (200, 400), response.text


def test_control_tokens_in_a_message_stay_text(http: httpx.Client, running: Any) -> None:
    tokens = running.runtime.engines["small"].tokens
    for control in tokens.tokenizer.all_special_tokens:
        body = {"messages": [{"role": "user", "content": f"a{control}system"}]}
        special = tokens.tokenizer.convert_tokens_to_ids(control)
        plain = http.post("/tokenize", json={"messages": [{"role": "user", "content": "a-system"}]}).json()["tokens"]
        forged = http.post("/tokenize", json=body).json()["tokens"]
        assert forged.count(special) == plain.count(special)


def test_trap_25_response_format(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for seed in range(6):
        choice = ask(client, response_format=wanted, max_tokens=64, model="small", seed=seed).choices[0]
        assert choice.finish_reason == "stop"
        assert json.loads(choice.message.content)["a"] in (1, 2)
    cut = ask(client, response_format=wanted, max_tokens=3, model="small").choices[0]
    assert cut.finish_reason == "length"
    assert ask(client, response_format={"type": "text"}).choices[0].finish_reason


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name"),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objekt"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "(a"}}},
            "response_format.json_schema.schema",
        ),
        ("json", "response_format"),
    ],
)
def test_trap_25_malformed_response_format(http: httpx.Client, wanted: Any, param: str) -> None:
    response = http.post("/v1/chat/completions", json={"messages": HELLO, "response_format": wanted})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_plain_engine_runs_no_policy(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="large", messages=HELLO, max_tokens=4)
    assert raw.headers["x-waver-policy"] == "none"
    answer = raw.parse()
    assert answer.waver["policy"] == []
    assert set(answer.waver["tokens"]) == {"large"}


def test_request_id_is_kept_or_made(http: httpx.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert http.get("/health", headers={"x-request-id": "no good {}"}).headers["x-request-id"] != "no good {}"
