"""Tools in chat: calls that are forced by a grammar, calls that are read in a text, and what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from tests.server.test_chat import collect as collect_text
from waver.engines.schema import flaw
from waver.server import structured
from waver.server.tools import free_grammar, offer

TEMPLATE = Path(__file__).with_name("hermes.jinja")
HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}


def function(content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": content}


TOOLS: list[Any] = [
    function({"name": "weather", "description": "Forecast.", "parameters": WEATHER}),
    function({"name": "now"}),
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>'
MODULE = '''
"""A policy that says a fixed text."""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from waver.policies.base import Policy
from waver.policies.helpers import say


class Script(Policy):
    """Say a fixed text."""

    stage: ClassVar = "admit"
    name: Literal["script"] = "script"
    text: str = Field(default="", description="what is said")

    async def decode(self, job, proceed):
        cut = len(job.writer.tokens.encode_plain(self.text)) > job.sampling.max_tokens
        async for step in say(job, self.text):
            yield replace(step, finish="length") if step.finish and cut else step
'''


@pytest.fixture(scope="module")
def server(
    start: Callable[..., Any], tiny_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The tiny pair with a template that shows tools; `plain` is the small model with its own template."""
    folder = tmp_path_factory.mktemp("tools")
    (folder / "script_policy.py").write_text(MODULE)
    shown = {name: {**engine, "chat_template": str(TEMPLATE)} for name, engine in tiny_config["engines"].items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("WAVER_MODULES", "[]")
        patch.delenv("WAVER_MODULES")  # the server sets it, and the end of this context takes it away
        retrieval = {"path": str(folder / "collections")}
        extra = {"modules": ["script_policy"], "state": str(folder / "state"), "retrieval": retrieval}
        yield start(config={"engines": {**shown, "plain": tiny_config["engines"]["small"]}, **extra})


@pytest.fixture
def sdk(server: Any) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client


@pytest.fixture
def web(server: Any) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def ask(sdk: openai.OpenAI, **options: Any) -> Any:
    body = {"model": "small", "messages": HELLO, "tools": TOOLS, "max_tokens": 300, **options}
    return sdk.chat.completions.create(**body)


def say(sdk: openai.OpenAI, text: str, **options: Any) -> Any:
    body = {"policy": [{"name": "script", "text": text}], **options.pop("extra_body", {})}
    return ask(sdk, extra_body=body, **options)


def streamed(stream: Any) -> dict[str, Any]:
    """A streamed message put together, with the rules of its deltas checked on the way (trap 22)."""
    out: dict[str, Any] = {"content": "", "reasoning": "", "calls": {}, "finish": None, "usage": None}
    for chunk in stream:
        out["usage"] = chunk.usage or out["usage"]
        for choice in chunk.choices:
            assert out["finish"] is None
            out["finish"] = choice.finish_reason
            delta = choice.delta
            out["content"] += delta.content or ""
            out["reasoning"] += getattr(delta, "reasoning_content", None) or ""
            assert getattr(delta, "reasoning", None) == getattr(delta, "reasoning_content", None)
            for call in delta.tool_calls or ():
                assert isinstance(call.index, int)
                assert isinstance(call.function.arguments, str)
                if call.index not in out["calls"]:
                    assert call.index == len(out["calls"])
                    assert call.type == "function"
                    out["calls"][call.index] = {"id": call.id, "name": call.function.name, "arguments": ""}
                else:
                    assert (call.id, call.type, call.function.name) == (None, None, None)
                out["calls"][call.index]["arguments"] += call.function.arguments
    return out


def check_forced(calls: Any) -> None:
    assert calls
    for call in calls:
        schema = {"weather": WEATHER, "now": {"type": "object", "maxProperties": 0}}[call.function.name]
        arguments = json.loads(call.function.arguments)
        jsonschema.validate(arguments, schema)
        assert arguments.keys() <= {"city", "days"}


POLICIES: dict[str, Any] = {
    "none": [],
    "ead": [
        {
            "name": "ead",
            "small": "small",
            "large": "large",
            "threshold": 0.5,
            "min_tokens": 2,
            "window": 1,
            "threshold_down": None,
        }
    ],
    "coin": [{"name": "random_switch", "small": "small", "large": "large", "rate": 0.5}],
    "top_w": [{"name": "top_w"}],
    "diffadapt": [{"name": "diffadapt", "strategy": "easy"}],
}


@pytest.mark.parametrize("policy", POLICIES)
def test_required_calls_are_forced_under_policies(sdk: openai.OpenAI, policy: str) -> None:
    switches = 0
    for seed in range(3):
        options = {"tool_choice": "required", "seed": seed, "extra_body": {"policy": POLICIES[policy]}}
        whole = ask(sdk, max_tokens=500, **options)
        choice, switches = whole.choices[0], switches + whole.waver["switches"]
        if choice.finish_reason == "length":  # a random model goes on with one call after the other
            continue
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        check_forced(choice.message.tool_calls)
    assert (switches > 0) is (policy in ("ead", "coin"))


def test_required_calls_are_forced_over_passages(web: httpx.Client, sdk: openai.OpenAI) -> None:
    made = web.post("/v1/collections", json={"name": "forecasts"})
    assert made.status_code == 200, made.text
    try:
        documents = {"documents": [{"id": "a", "text": "It rains in Oslo."}]}
        assert web.post("/v1/collections/forecasts/documents", json=documents).status_code == 200
        policy = [{"name": "l_rag", "collection": "forecasts", "gate": "always"}]
        options: Any = {"parallel_tool_calls": False, "extra_body": {"policy": policy}}
        whole = ask(sdk, tool_choice="required", **options)
        assert whole.waver["retrieval"]["triggered"]
        check_forced(whole.choices[0].message.tool_calls)
    finally:
        web.delete("/v1/collections/forecasts")


def test_calls_hold_across_hand_overs(sdk: openai.OpenAI) -> None:
    switches = 0
    for seed in range(12):
        options = {"tool_choice": "required", "parallel_tool_calls": False, "seed": seed, "model": "waver/coin"}
        whole = ask(sdk, **options)
        parts = streamed(ask(sdk, stream=True, **options))
        switches += whole.waver["switches"]
        [call] = whole.choices[0].message.tool_calls
        check_forced([call])
        assert whole.choices[0].finish_reason == parts["finish"] == "tool_calls"
        assert parts["content"] == ""
        [part] = parts["calls"].values()
        assert (part["name"], part["arguments"]) == (call.function.name, call.function.arguments)
    assert switches > 30


def test_a_named_tool_is_called(sdk: openai.OpenAI) -> None:
    for name in ("weather", "now"):
        choice = ask(sdk, tool_choice={"type": "function", "function": {"name": name}}).choices[0]
        [call] = choice.message.tool_calls
        assert (call.function.name, call.type, choice.finish_reason) == (name, "function", "tool_calls")
        check_forced([call])
    assert call.function.arguments == "{}"


def test_only_allowed_tools_are_called(sdk: openai.OpenAI) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]}
    choice = ask(sdk, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}, parallel_tool_calls=False)
    assert choice.choices[0].message.tool_calls[0].function.name == "now"


def test_a_forced_call_that_is_cut_off_ends_by_length(sdk: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    for tokens in (1, 9, 14):
        whole = ask(sdk, tool_choice=named, max_tokens=tokens, seed=3)
        parts = streamed(ask(sdk, tool_choice=named, max_tokens=tokens, seed=3, stream=True))
        message = whole.choices[0].message
        assert whole.choices[0].finish_reason == parts["finish"] == "length"
        assert (message.content or "") == parts["content"]
        shown = [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
        assert shown == [(call["name"], call["arguments"]) for call in parts["calls"].values()]


@pytest.mark.parametrize(
    ("text", "content", "calls", "finish"),
    [
        ("Hello.", "Hello.", [], "stop"),
        (CALL, None, [{"city": "Rome", "days": 2}], "tool_calls"),
        (f"Let me see.\n{CALL}\n{CALL}", "Let me see.", [{"city": "Rome", "days": 2}] * 2, "tool_calls"),
        (CALL[:-20], CALL[:-20], [], "stop"),
        (CALL.replace("2", "two"), CALL.replace("2", "two"), [], "stop"),
    ],
)
def test_calls_are_read(sdk: openai.OpenAI, text: str, content: str | None, calls: list[Any], finish: str) -> None:
    for choice in ("auto", None):
        whole = say(sdk, text, **({"tool_choice": choice} if choice else {}))
        message = whole.choices[0].message
        assert (message.content, whole.choices[0].finish_reason) == (content, finish)
        assert [json.loads(call.function.arguments) for call in message.tool_calls or ()] == calls
        assert len({call.id for call in message.tool_calls or ()}) == len(calls)
    parts = streamed(say(sdk, text, stream=True))
    assert (parts["content"], parts["finish"]) == (content or "", finish)
    if content is None or calls:
        assert [json.loads(call["arguments"]) for call in parts["calls"].values()] == calls


HANDED_OVER = (
    {
        "name": "ead",
        "small": "small",
        "large": "large",
        "threshold": 0.3,
        "window": 1,
        "min_tokens": 1,
        "threshold_down": None,
    },
    {"name": "random_switch", "small": "small", "large": "large", "rate": 0.5},
)


@pytest.mark.parametrize("policy", HANDED_OVER, ids=lambda policy: policy["name"])
def test_a_hundred_calls_are_whole_across_hand_overs(sdk: openai.OpenAI, policy: dict[str, Any]) -> None:
    def one(seed: int) -> int:
        options: Any = {"seed": seed, "extra_body": {"policy": [policy]}}
        answer = ask(sdk, tool_choice="required", parallel_tool_calls=False, temperature=1, **options)
        check_forced(answer.choices[0].message.tool_calls)
        return int(answer.waver["switches"])

    with ThreadPoolExecutor(16) as threads:
        switches = list(threads.map(one, range(50)))
    assert sum(map(bool, switches)) > 10  # handed over inside of a call


def test_a_form_leaves_room_for_calls(sdk: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(8):
        choice = ask(sdk, response_format=wanted, parallel_tool_calls=False, seed=seed).choices[0]
        if choice.finish_reason == "tool_calls":
            check_forced(choice.message.tool_calls)
        else:
            assert choice.finish_reason == "stop"
            assert json.loads(choice.message.content)["a"] in (1, 2)


def test_strict_tools_have_a_grammar(sdk: openai.OpenAI) -> None:
    strict = [function({**TOOLS[0]["function"], "strict": True}), TOOLS[1]]
    answer = ask(sdk, tools=strict, max_tokens=40)
    assert "ignored" not in answer.waver
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")
    unread = ask(sdk, tools=strict, max_tokens=120, extra_body={"policy": [{"name": "forced_answer", "tokens": 2}]})
    assert unread.waver["ignored"] == ["tools[0].function.strict"]
    broken = function({"name": "f", "strict": True, "parameters": {"properties": {"a": {"type": "objekt"}}}})
    with pytest.raises(openai.BadRequestError) as error:
        ask(sdk, tools=[broken], max_tokens=8)
    assert error.value.param == "tools"


def test_the_sdk_accumulates_a_stream_of_calls(sdk: openai.OpenAI) -> None:
    body = {"policy": [{"name": "script", "text": f"Well.\n{CALL}\n{CALL}"}]}
    options: Any = {"model": "small", "messages": HELLO, "tools": TOOLS, "max_tokens": 300, "extra_body": body}
    with sdk.chat.completions.stream(**options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]
    assert final.message.content == "Well."
    assert [json.loads(call.function.arguments)["city"] for call in final.message.tool_calls or ()] == ["Rome"] * 2
    assert kinds.count("tool_calls.function.arguments.done") == 2


def test_a_call_that_is_cut_off_ends_by_length(sdk: openai.OpenAI) -> None:
    choice = say(sdk, CALL, max_tokens=40).choices[0]
    assert choice.finish_reason == "length"
    [call] = choice.message.tool_calls
    assert WEATHER["required"][0] in call.function.arguments
    with pytest.raises(json.JSONDecodeError):
        json.loads(call.function.arguments)


def test_one_call_is_enough_without_parallel_calls(sdk: openai.OpenAI) -> None:
    whole = say(sdk, f"{CALL}\n{CALL}", parallel_tool_calls=False)
    both = say(sdk, f"{CALL}\n{CALL}")
    assert [len(each.choices[0].message.tool_calls) for each in (whole, both)] == [1, 2]
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.usage.completion_tokens < 0.6 * both.usage.completion_tokens


def test_none_calls_nothing(sdk: openai.OpenAI, web: httpx.Client) -> None:
    choice = say(sdk, CALL, tool_choice="none").choices[0]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (CALL, None, "stop")
    counts = [ask(sdk, tool_choice=choice, max_tokens=1).usage.prompt_tokens for choice in ("none", "auto")]
    assert counts[0] < counts[1] - 100


def test_log_probabilities_and_traces_of_calls(sdk: openai.OpenAI) -> None:
    options = {"tool_choice": "required", "parallel_tool_calls": False, "seed": 1, "logprobs": True, "top_logprobs": 2}
    whole = ask(sdk, extra_body={"trace": True}, **options)
    text = b"".join(bytes(entry.bytes) for entry in whole.choices[0].logprobs.content).decode()
    assert json.loads(text)["name"] == whole.choices[0].message.tool_calls[0].function.name
    assert len(whole.waver["trace"]) == whole.usage.completion_tokens
    chunks = list(ask(sdk, stream=True, **options))
    entries = [entry for chunk in chunks for c in chunk.choices if c.logprobs for entry in c.logprobs.content]
    assert [entry.bytes for entry in entries] == [entry.bytes for entry in whole.choices[0].logprobs.content]


def test_several_choices_have_their_own_calls(sdk: openai.OpenAI) -> None:
    whole = ask(sdk, tool_choice="required", parallel_tool_calls=False, n=3, seed=5)
    ids = [choice.message.tool_calls[0].id for choice in whole.choices]
    assert len(set(ids)) == 3
    for choice in whole.choices:
        check_forced(choice.message.tool_calls)
    parts = collect_text(ask(sdk, tool_choice="required", parallel_tool_calls=False, n=3, seed=5, stream=True))
    assert {part["finish"] for part in parts.values()} == {"tool_calls"}


def test_engines_that_know_no_tools_say_so(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(sdk, model="plain")
    assert error.value.param == "tools"
    assert "'plain'" in error.value.message
    assert "chat_template" in error.value.message
    assert ask(sdk, model="plain", tool_choice="none", max_tokens=1).choices


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [function({"name": "f", "parameters": []})]}, "tools[0].function.parameters"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": 5}}]}, "tools[0].function.name"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"tools": TOOLS * 300}, "tools"),
        ({"tools": {}}, "tools"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"guided_regex": "a+"}, "guided_regex"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_is_refused(web: httpx.Client, fields: dict[str, Any], param: str) -> None:
    body = {"model": "small", "messages": HELLO, "tools": TOOLS, "max_tokens": 5, **fields}
    response = web.post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert 10 < len(error["message"]) < 500


HOSTILE = [
    {"$ref": "#"},
    {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a"}}},
    {"type": "object", "properties": {"a": {"type": "array", "minItems": 30_000, "items": {"const": 1}}}},
    {"type": "object", "required": ["a"], "properties": {"a": {"type": "objekt"}}},
    {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:1/x"}}},
    {"x-guidance": {"item_separator": "X"}},
]


@pytest.mark.parametrize("parameters", HOSTILE, ids=json.dumps)
def test_schemas_that_cannot_be_enforced_are_refused(web: httpx.Client, parameters: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    body = {"model": "small", "messages": HELLO, "tools": [tool], "tool_choice": "required", "max_tokens": 5}
    response = web.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tools"), response.text
    assert len(response.json()["error"]["message"]) < 400


def test_a_deep_schema_is_refused(web: httpx.Client) -> None:
    parameters: dict[str, Any] = {}
    for _ in range(100):
        parameters = {"properties": {"a": parameters}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    response = web.post("/v1/chat/completions", json={"model": "small", "messages": HELLO, "tools": [tool]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tools[0].function.parameters")


def test_schemas_are_measured_outside_of_the_event_loop(
    server: Any, web: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest ones take tens of milliseconds, for which no stream should stand still."""
    seen: set[int] = set()

    def noted(schema: Any) -> str | None:
        seen.add(threading.get_ident())
        return flaw(schema)

    for module in (structured, offer, free_grammar):
        monkeypatch.setattr(module, "flaw", noted)

    async def here() -> int:
        return threading.get_ident()

    strict = [function({**TOOLS[0]["function"], "strict": True})]
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": WEATHER}}
    for fields in ({"response_format": wanted}, {"tools": TOOLS, "tool_choice": "required"}, {"tools": strict}):
        seen.clear()
        body = {"model": "small", "messages": HELLO, "max_tokens": 4, **fields}
        assert web.post("/v1/chat/completions", json=body).status_code == 200
        assert seen
        assert server.run(here()) not in seen


@pytest.mark.parametrize(
    ("tools", "each", "param"), [(1, 20_001, "tools[0].function.parameters"), (2, 12_000, "tools")]
)
def test_schemas_of_too_many_values_are_refused_at_sight(web: httpx.Client, tools: int, each: int, param: str) -> None:
    crowd = {"type": "object", "properties": {"a": {"enum": list(range(each))}}}
    body = {"messages": HELLO, "tools": [function({"name": f"f{i}", "parameters": crowd}) for i in range(tools)]}
    error = web.post("/v1/chat/completions", json={"model": "small", "tool_choice": "required", **body}).json()["error"]
    assert error["param"] == param
    assert "more than 20000 values" in error["message"]
