"""Schemas are refused by their size before they are compiled, and by a process of its own where that does not tell."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from waver.engines.schema import flaw, repeats
from waver.engines.schema_check import WORKER, SchemaChecker
from waver.engines.schema_finite import endless
from waver.engines.tokens import TokenText

ROOT = Path(__file__).resolve().parents[2]
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def tokens() -> TokenText:
    return TokenText.load(str(ROOT / "models" / "small"))


@pytest.fixture(scope="module")
def prover(tokens: TokenText) -> Iterator[SchemaChecker]:
    made = SchemaChecker(tokens, seconds=2.0, memory=1024 * MEBIBYTE)
    yield made
    made.close()


def nested(depth: int) -> dict[str, Any]:
    return {"type": "integer"} if depth == 0 else {"type": "array", "items": nested(depth - 1)}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000_000}, ".minItems should be at most"),
        ({"type": "array", "items": {"type": "string", "maxLength": 1e9}}, ".items.maxLength should be at most"),
        ({"properties": {"maxItems": {"properties": {"a": {"minProperties": 5000}}}}}, ".properties.maxItems.propert"),
        ({"type": "string", "pattern": "^(a{1000}){1000}$"}, ".pattern repeats a part more than 10000 times"),
        ({"type": "string", "pattern": "a" * 5000}, ".pattern should have at most 4096 characters"),
        ({"patternProperties": {"(x{500}){500}": {}}}, ".patternProperties repeats"),
        ({"properties": {f"p{i}": {} for i in range(5001)}}, "has more than 5000 properties"),
        ({"enum": list(range(30_000))}, "holds more than 20000 values"),
        (nested(100), "nested more than 64 levels"),
        ({"type": "object", "x-guidance": {"whitespace_flexible": True}}, "x-guidance cannot be set"),
    ],
)
def test_what_is_too_large_is_refused_at_once(schema: Any, reason: str) -> None:
    began = time.perf_counter()
    assert reason in (flaw(schema) or "")
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "schema",
    [
        nested(30),
        {
            "properties": {
                "pattern": {"type": "string", "pattern": r"^\{99999\}[{88888}]$"},
                "minItems": {"const": 9**9},
            }
        },
        {"enum": [{"minItems": 10**9, "x-guidance": 1}], "maximum": 10**12},
    ],
)
def test_names_and_values_are_no_keywords(schema: Any) -> None:
    assert flaw(schema) is None


def test_repeats_are_multiplied_through_groups() -> None:
    assert repeats("a{3}(b{4}(c{5}){6}){7}") == 210
    assert repeats("(a{2,30})+x{5}") == 30
    assert repeats(r"[{9}]\{8}\[(a{2}") == 2


NODE = {"type": "object", "properties": {"n": {"$ref": "#/$defs/node"}}, "required": ["n"]}
NODES = {"type": "array", "items": {"$ref": "#/$defs/node"}}


@pytest.mark.parametrize(
    ("schema", "none"),
    [
        ({"$ref": "#"}, True),
        ({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, True),
        ({"$ref": "#/$defs/node", "$defs": {"node": {**NODE, "additionalProperties": False}}}, True),
        ({"$ref": "#/$defs/node", "$defs": {"node": {**NODE, "required": []}}}, False),
        ({"$ref": "#/$defs/node", "$defs": {"node": {**NODE, "type": ["object", "null"]}}}, False),
        ({"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}], "$defs": {"node": NODE}}, False),
        ({"anyOf": [{"$ref": "#/$defs/node"}], "$defs": {"node": NODE}}, True),
        ({"allOf": [{"$ref": "#/$defs/node"}, {}], "$defs": {"node": NODE}}, True),
        ({"$ref": "#/$defs/node", "$defs": {"node": NODES}}, False),
        ({"$ref": "#/$defs/node", "$defs": {"node": {**NODES, "minItems": 1}}}, True),
        ({"$ref": "#/$defs/node", "$defs": {"node": {**NODES, "minItems": 1, "prefixItems": [{}]}}}, False),
        ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"type": "integer"}}}, False),
        ({"$ref": "#/anyOf/1", "anyOf": [{"$ref": "#"}, {"const": 1}]}, False),
        ({"$ref": "#/nowhere"}, False),
        ({"$ref": "http://a/b"}, False),
        ({"properties": {"$ref": {"type": "string"}}}, False),
        ({"const": {"$ref": "#"}}, False),
        (True, False),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_a_schema_that_needs_itself_has_no_value(schema: Any, none: bool) -> None:
    assert endless(schema) is none


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "#"}, "no value satisfies it"),
        (
            {"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"], "additionalProperties": False},
            "needs itself",
        ),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable schema: minimum"),
        (
            {
                "type": "object",
                "properties": {f"p{i}": {"type": "integer"} for i in range(520)},
                "additionalProperties": False,
            },
            "too complex",
        ),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 100_000}, "takes longer|more memory|too complex"),
        ({"type": "foo"}, "Invalid type: foo"),
    ],
)
def test_what_cannot_be_followed_has_a_reason(prover: SchemaChecker, schema: Any, reason: str) -> None:
    began = time.monotonic()
    complaint = prover.complaint(json.dumps(schema))
    assert any(each in complaint for each in reason.split("|")), complaint
    assert "\n" not in complaint
    assert time.monotonic() - began < 30
    assert prover.known(json.dumps(schema)) == complaint
    assert prover.complaint('{"type": "integer"}') == ""


def test_what_takes_all_memory_is_ended_within_its_bounds(tokens: TokenText) -> None:
    """Without the bounds on numbers, too: the process keeps the rest."""
    hostile = json.dumps({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000_000})
    before = psutil.Process().memory_info().rss
    children = set(psutil.Process().children())
    prover = SchemaChecker(tokens, seconds=5.0, memory=512 * MEBIBYTE)
    most = 0
    try:
        thread = threading.Thread(target=prover.complaint, args=(hostile,))
        thread.start()
        while thread.is_alive():
            for child in set(psutil.Process().children()) - children:
                try:
                    if str(WORKER) in child.cmdline():  # before that, it is a copy of this process, and as large
                        most = max(most, child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.02)
        assert "memory" in (prover.known(hostile) or "")
        assert 0 < most < 600 * MEBIBYTE
        assert psutil.Process().memory_info().rss - before < 100 * MEBIBYTE
    finally:
        prover.close()
    assert not set(psutil.Process().children()) - children  # some of other tests may have ended


def test_one_schema_is_tried_once(tokens: TokenText) -> None:
    prover = SchemaChecker(tokens, seconds=2.0, memory=1024 * MEBIBYTE)
    tried: list[str] = []
    real = prover._try

    def counted(schema: str) -> tuple[str, bool]:
        tried.append(schema)
        return real(schema)

    prover._try = counted  # type: ignore[method-assign]
    try:
        threads = [threading.Thread(target=prover.complaint, args=('{"type": "boolean"}',)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(tried) == 1
    finally:
        prover.close()
