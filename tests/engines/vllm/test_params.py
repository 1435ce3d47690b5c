"""Parameters on their way to the worker: none is lost, and clients cannot set reserved ones."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waver.engines.base import Gate, Sampling
from waver.engines.transforms import MinP, TopH, TopP, TopW, Transform, Typical
from waver.engines.vllm.params import KEY, LONGEST_WINDOW, MOST_TRANSFORMS, EncodedParams, RequestParams

ids = st.integers(0, 2**31 - 1)
numbers = st.floats(allow_nan=False, width=64)
id_lists = st.lists(ids, max_size=4).map(tuple)
transforms = st.lists(
    st.one_of(
        *(st.just(kind()) for kind in get_args(Transform)),
        st.floats(0.001, 1.0).map(lambda p: Typical(p=p)),
        st.floats(0.0, 1.0).map(lambda p: MinP(p=p)),
        st.builds(TopH, alpha=st.floats(0.001, 1.0), form=st.sampled_from(["running", "renormalised"])),
        st.builds(TopW, potential=st.sampled_from(["nearest", "knn"]), selection_temperature=st.just(0.5)),
    ),
    max_size=3,
).map(tuple)
gates = st.builds(
    Gate,
    window=st.integers(1, 2000),
    threshold=numbers,
    above=st.booleans(),
    min_tokens=st.integers(0, 2**40),
    timing=st.sampled_from(["eager", "lagged"]),
    history=st.lists(numbers, max_size=5).map(tuple),
)
SAMPLING = {
    "temperature": numbers,
    "top_p": numbers,
    "top_k": st.integers(-1, 2**31),
    "min_p": numbers,
    "max_tokens": ids,
    "min_tokens": ids,
    "seed": st.integers(-(2**64), 2**64),
    "stop_token_ids": id_lists,
    "ignore_eos": st.booleans(),
    "presence_penalty": numbers,
    "frequency_penalty": numbers,
    "repetition_penalty": numbers,
    "logit_bias": st.dictionaries(ids, numbers, max_size=4),
    "top_logprobs": st.integers(0, 20),
    "grammar": st.none() | st.text(),
    "allowed_token_ids": id_lists,
    "bad_words": st.lists(id_lists, max_size=3).map(tuple),
    "transforms": transforms,
    "logprobs": st.booleans(),
    "answer_start": st.none() | ids,
}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nothing_is_lost_on_the_way_to_the_worker(data: st.DataObject) -> None:
    gate = data.draw(st.none() | gates)
    how = None
    if data.draw(st.booleans()):
        chosen = data.draw(st.lists(st.sampled_from(sorted(SAMPLING)), unique=True))
        how = Sampling(**{name: data.draw(SAMPLING[name]) for name in chosen}, gate=gate)
    wanted = RequestParams(
        gate=gate,
        sampling=how,
        transforms=data.draw(transforms),
        temperature=data.draw(numbers),
        ends=data.draw(id_lists),
        given=data.draw(id_lists),
        stop=data.draw(st.none() | ids),
        slot=data.draw(st.integers(-1, 1023)),
        tag=data.draw(ids),
        hidden=data.draw(st.none() | ids),
    )
    # As vLLM sends it: msgpack, which knows nothing of our types.
    arrived = msgspec.msgpack.decode(msgspec.msgpack.encode({KEY: wanted.encode()}))[KEY]
    assert type(arrived) is dict
    assert RequestParams.decode(arrived) == wanted


def test_every_field_is_tried() -> None:
    # The first is the request's own, the second becomes its `hidden`, the third says what an upstream is not sent;
    # pictures go to vLLM beside the parameters, the conversation to upstreams, and that some of a picture's tokens be
    # dropped is refused.
    here = {"gate", "state_of", "unset", "pictures", "pruning", "conversation"}
    assert {field.name for field in fields(Sampling)} == {*SAMPLING, *here}
    assert {field.name for field in fields(RequestParams)} == {
        "gate", "sampling", "transforms", "temperature", "ends", "given", "stop", "slot", "tag", "hidden",
    }  # fmt: skip


RULE = {"threshold": 0.7, "window": 3}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"gate": RULE}, RequestParams(Gate(3, 0.7))),
        (
            {"gate": {**RULE, "above": False, "min_tokens": 4, "timing": "lagged", "history": [1, 2, 3, 4.5]}},
            RequestParams(Gate(3, 0.7, False, 4, "lagged", (2.0, 3.0, 4.5))),
        ),
        ({"transforms": [{"name": "top_p", "p": 0.5}]}, RequestParams(transforms=(TopP(p=0.5),))),
        ({"gate": None, "transforms": [{"name": "top_h"}]}, RequestParams(transforms=(TopH(),))),
        ({"gate": RULE, "transforms": None}, RequestParams(Gate(3, 0.7))),
    ],
)
def test_what_a_client_may_ask(given: dict[str, Any], wanted: RequestParams) -> None:
    assert RequestParams.from_client(given) == wanted
    assert RequestParams.from_client(json.dumps(given)) == wanted


def wrong(**changes: Any) -> dict[str, Any]:
    return {"gate": {**RULE, **changes}}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"gate": {"threshold": ' + "1" * 5000 + ', "window": 1}}', "not valid JSON"),
        ("null", "JSON object"),
        ("[]", "JSON object"),
        (7, "JSON object"),
        (None, "JSON object"),
        ([RULE], "JSON object"),
        ({}, "nothing is asked for"),
        ({"gate": None}, "nothing is asked for"),
        ({"gate": {}}, "threshold is required"),
        ({"gate": {"threshold": 1.0}}, "window is required"),
        ({"gate": "x"}, "waver.gate should be a JSON object"),
        ({"gate": json.dumps(RULE)}, "waver.gate should be a JSON object"),
        (wrong(window=0), "between 1 and 1024"),
        (wrong(window=LONGEST_WINDOW + 1), "between 1 and 1024"),
        (wrong(window=2.0), "between 1 and 1024"),
        (wrong(window=True), "between 1 and 1024"),
        (wrong(window="3"), "between 1 and 1024"),
        (wrong(window=None), "between 1 and 1024"),
        (wrong(min_tokens=-1), "min_tokens"),
        (wrong(min_tokens=2**63), "min_tokens"),  # more than the worker's integers hold
        (wrong(min_tokens=False), "min_tokens"),
        (wrong(threshold=-0.1), "at least 0"),
        (wrong(threshold=float("nan")), "at least 0"),
        (wrong(threshold=float("inf")), "at least 0"),
        (wrong(threshold=10**400), "at least 0"),
        (wrong(threshold="1"), "at least 0"),
        (wrong(threshold=True), "at least 0"),
        (wrong(threshold=[1]), "at least 0"),
        (wrong(timing="late"), "eager or lagged"),
        (wrong(timing=["eager"]), "eager or lagged"),
        (wrong(timing=None), "eager or lagged"),
        (wrong(above=1), "true or false"),
        (wrong(history=1.0), "list of entropies"),
        (wrong(history="12"), "list of entropies"),
        (wrong(history=[1.0, None]), "list of entropies"),
        (wrong(history=[float("nan")]), "list of entropies"),
        (wrong(history={"a": 1}), "list of entropies"),
        (wrong(treshold=1), "there is no treshold"),
        ({"gate": RULE, "n": 1}, "there is no n"),
        ({"transforms": "top_h"}, "list"),
        ({"transforms": {"name": "top_h"}}, "list"),
        ({"transforms": ["top_h"]}, "transform"),
        ({"transforms": [{"name": "top_h"}] * (MOST_TRANSFORMS + 1)}, "at most 16"),
        ({"transforms": [{"name": "top_z"}]}, "top_z"),
        ({"transforms": [{"name": "top_h", "alpha": 2}]}, "alpha"),
        ({"transforms": [{"name": "top_h", "beta": 2}]}, "beta"),
        ({"transforms": [{"name": "top_p", "p": "0.5"}]}, "p"),
        # What only the processor's own side may say.
        ({"settled": "{}"}, "there is no settled"),
        (json.dumps({"settled": json.dumps({"stop": 10**9})}), "there is no settled"),
        (dict(RequestParams(Gate(3, 0.7), stop=10**9, slot=0).encode()), "there is no settled"),
        (json.dumps(RequestParams(Gate(3, 0.7), stop=10**9, slot=0).encode()), "there is no settled"),
        ({"gate": RULE, "slot": 1}, "there is no slot"),
        ({"gate": RULE, "tag": 1}, "there is no tag"),
        ({"gate": RULE, "hidden": True}, "there is no hidden"),
        ({"gate": RULE, "stop": 1}, "there is no stop"),
        ({"gate": RULE, "sampling": {}}, "there is no sampling"),
        ({"gate": RULE, "ends": [1]}, "there is no ends"),
        ({"gate": RULE, "temperature": 2}, "there is no temperature"),
    ],
)
def test_what_a_client_may_not_ask(given: Any, says: str) -> None:
    for form in (given, given if isinstance(given, str) else json.dumps(given)):
        with pytest.raises(ValueError, match=says) as raised:
            RequestParams.from_client(form)
        sentence(raised.value)


def sentence(error: ValueError) -> None:
    said = str(error)
    assert said.startswith(KEY)
    assert "\n" not in said
    assert len(said) < 400


@pytest.mark.parametrize(
    "given",
    [
        {"x" * 10_000: 1},
        {"gate": {**RULE, "y" * 10_000: 1}},
        {"transforms": [{"name": "z" * 10_000}]},
        {"transforms": [{"name": "top_h", "z" * 10_000: 1}]},
        {"transforms": [{"name": "top_h", "a\nb": 1}]},
        {"transforms": [{"name": "top_h", "alpha": "z" * 10_000}]},
    ],
)
def test_a_sentence_stays_one_whatever_is_sent(given: Any) -> None:
    with pytest.raises(ValueError, match=KEY) as raised:
        RequestParams.from_client(given)
    sentence(raised.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*(f.name for f in fields(Gate)), "gate", "transforms", "name", "p"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({}, optional={"gate": json_values, "transforms": json_values}) | json_values)
def test_whatever_is_sent_is_taken_or_refused(value: Any) -> None:
    try:
        wanted = RequestParams.from_client(value)
    except ValueError as error:
        sentence(error)
        return
    settled = replace(wanted, stop=5, tag=2).encode()
    assert isinstance(settled, EncodedParams)
    assert RequestParams.decode(settled) == replace(wanted, stop=5, tag=2)


def test_a_long_history_is_cut_to_the_window() -> None:
    wanted = RequestParams.from_client(wrong(history=list(range(100_000))))
    assert wanted.gate is not None
    assert wanted.gate.history == (99_997.0, 99_998.0, 99_999.0)
