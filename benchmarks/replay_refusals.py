"""List the requests of `waver bench replay` that are refused: wrong fields, types, ranges, names, too long prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Body = dict[str, Any]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTION = [{"role": "user", "content": "What is 1 + 1?"}]

GENERATION: tuple[Body, ...] = (
    {"model": "nobody"},
    {"model": "waver/nothing"},
    {"model": 7},
    {"temperature": -0.1},
    {"temperature": 2.5},
    {"temperature": "hot"},
    {"top_p": 0},
    {"top_p": 1.1},
    {"top_k": -2},
    {"top_k": 1.5},
    {"min_p": 2},
    {"presence_penalty": 3},
    {"frequency_penalty": -2.1},
    {"repetition_penalty": 0},
    {"logit_bias": {"99999": 1}},
    {"logit_bias": {"one": 1}},
    {"logit_bias": {"1": 101}},
    {"seed": 2**64},
    {"seed": "1"},
    {"n": 0},
    {"n": 33},
    {"n": True},
    {"max_tokens": 0},
    {"max_tokens": -1},
    {"max_tokens": 4, "min_tokens": 5},
    {"stop": ""},
    {"stop": ["a"] * 17},
    {"stop": ["a", 1]},
    {"stop": "a" * 5000},
    {"stop_token_ids": [1280]},
    {"stop_token_ids": [-1]},
    {"stream": "yes"},
    {"stream_options": {"include_usage": 1}},
    {"logprobs": 3},
    {"logprobs": True, "top_logprobs": 21},
    {"timeout": 0},
    {"trace": "yes"},
    {"response_format": {"type": "yaml"}},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "colour"}}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#/nowhere"}}}},
)
POLICIES: tuple[Any, ...] = (
    "nothing",
    7,
    {"name": "ead"},
    ["ead"],
    [{}],
    [{"name": "greed"}],
    [{"name": "ead", "threshold": -1}],
    [{"name": "ead", "threshold": "low"}],
    [{"name": "ead", "treshold": 1}],
    [{"name": "ead", "window": 0}],
    [{"name": "ead", "monitor": "large"}],
    [{"name": "ead", "small": "tiny"}],
    [{"name": "ead", "threshold": 0.1, "threshold_down": 0.2}],
    [{"name": "ead"}, {"name": "ead"}],
    [{"name": "ead"}, {"name": "route"}],
    [{"name": "top_p"}, {"name": "top_w"}],
    [{"name": "top_w", "pool": 0}],
    [{"name": "top_h", "alpha": 1.5}],
    [{"name": "top_h", "form": "short"}],
    [{"name": "eta", "epsilon": 0}],
    [{"name": "adaptive_temperature", "low": 2.0}],
    [{"name": "random_switch", "rate": 1.5}],
    [{"name": "route", "draft_tokens": 0}],
    [{"name": "l_rag"}],
    [{"name": "l_rag", "collection": "nowhere"}],
    [{"name": "l_rag", "collection": "towns", "gate": "coin"}],
    [{"name": "l_rag", "collection": "towns", "top_k": 0}],
    [{"name": "l_rag", "collection": "towns", "pooling": "sum"}],
    [{"name": "diffadapt", "probe": "nothing"}],
    [{"name": "diffadapt", "strategy": "lazy"}],
    [{"name": "diffadapt", "probe": "small-paper"}],
    [{"name": "diffadapt", "easy": {"temperature": 3}}],
    [{"name": "diffadapt", "strategy": "oracle"}],
    [{"name": "diffadapt", "draft_easy": 0.7, "draft_hard": 0.6}],
    [{"name": "forced_answer", "words": ""}],
    [{"name": "forced_answer", "tokens": 0}],
    [{"name": "top_p"}] * 17,
)
MESSAGES: tuple[Body, ...] = (
    {},
    {"messages": []},
    {"messages": "hello"},
    {"messages": [{"role": "user"}], "model": "nobody"},
    {"messages": [{"role": "wizard", "content": "hello"}]},
    {"messages": [{"role": "user", "content": 7}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    {"messages": [{"role": "user", "content": "half \ud83d"}]},
    {"messages": [{"role": "user", "content": "What is 1 + 1? " * 400}]},
    {"messages": QUESTION, "policy": [{"name": "forced_answer"}], "response_format": {"type": "json_object"}},
    {"messages": QUESTION, "policy": [{"name": "forced_answer"}], "max_tokens": 1},
)
PROMPTS: tuple[Body, ...] = (
    {},
    {"prompt": []},
    {"prompt": ""},
    {"prompt": [1280]},
    {"prompt": [-1]},
    {"prompt": ["a", 1]},
    {"prompt": [[1], []]},
    {"prompt": "1 + 1 = " * 800},
    {"prompt": [5] * 1024},
    {"prompt": ["a"] * 300, "n": 2},
    {"prompt": "a", "suffix": "b"},
    {"prompt": "a", "best_of": 3},
    {"prompt": "a", "logprobs": 21},
    {"prompt": "a", "echo": "yes"},
)
OTHERS: tuple[Body, ...] = (
    {"method": "POST", "path": CHAT, "text": "{"},
    {"method": "POST", "path": CHAT, "text": "[]"},
    {"method": "POST", "path": CHAT, "text": ""},
    {"method": "POST", "path": CHAT, "text": '{"messages": NaN}'},
    {"method": "POST", "path": CHAT, "body": {"messages": QUESTION}, "headers": {"authorization": "Bearer wrong"}},
    {"method": "GET", "path": "/v1/models", "headers": {"authorization": "none"}},
    {"method": "GET", "path": CHAT},
    {"method": "GET", "path": "/v1/nothing"},
    {"method": "GET", "path": "/v1/models/nobody"},
    {"method": "POST", "path": "/v1/tokenize", "body": {}},
    {"method": "POST", "path": "/v1/tokenize", "body": {"prompt": "a", "messages": QUESTION}},
    {"method": "POST", "path": "/v1/tokenize", "body": {"prompt": "a", "model": "nobody"}},
    {"method": "POST", "path": "/v1/detokenize", "body": {"tokens": [1280]}},
    {"method": "POST", "path": "/v1/detokenize", "body": {"tokens": "one"}},
    {"method": "POST", "path": "/v1/embeddings", "body": {"input": []}},
    {"method": "POST", "path": "/v1/embeddings", "body": {"input": "a", "model": "nobody"}},
    {"method": "POST", "path": "/v1/embeddings", "body": {"input": [1, 2]}},
    {"method": "POST", "path": "/v1/embeddings", "body": {"input": "a", "dimensions": 3}},
    {"method": "POST", "path": "/v1/embeddings", "body": {"input": ["a", ""]}},
    {"method": "POST", "path": "/v1/collections", "body": {"name": "towns"}},
    {"method": "POST", "path": "/v1/collections", "body": {"name": "../towns"}},
    {"method": "POST", "path": "/v1/collections", "body": {"name": "a", "embedder": "nothing"}},
    {"method": "POST", "path": "/v1/collections", "body": {"name": "a", "chunk_tokens": 0}},
    {"method": "POST", "path": "/v1/collections", "body": {"name": "a", "chunk_tokens": 8, "chunk_overlap": 8}},
    {"method": "GET", "path": "/v1/collections/nowhere"},
    {"method": "DELETE", "path": "/v1/collections/nowhere"},
    {"method": "POST", "path": "/v1/collections/nowhere/search", "body": {"query": "a"}},
    {"method": "POST", "path": "/v1/collections/towns/search", "body": {"query": ""}},
    {"method": "POST", "path": "/v1/collections/towns/search", "body": {"query": "a", "top_k": 101}},
    {"method": "POST", "path": "/v1/collections/towns/search", "body": {"query": "a", "mode": "psychic"}},
    {"method": "POST", "path": "/v1/collections/towns/documents", "body": {"documents": []}},
    {"method": "POST", "path": "/v1/collections/towns/documents", "body": {"documents": [{"id": "", "text": "a"}]}},
    {"method": "POST", "path": "/v1/collections/towns/documents", "body": {"documents": [{"id": "a"}]}},
    {"method": "DELETE", "path": "/v1/collections/towns/documents/nobody"},
)


def _all() -> Iterator[Body]:
    common = {"model": "large", "temperature": 0, "max_tokens": 8}  # for what is accepted after all
    for fields in GENERATION:
        yield {"method": "POST", "path": CHAT, "body": {**common, "messages": QUESTION, **fields}}
    for policy in POLICIES:
        yield {"method": "POST", "path": CHAT, "body": {**common, "messages": QUESTION, "policy": policy}}
    for fields in MESSAGES:
        yield {"method": "POST", "path": CHAT, "body": {**common, **fields}}
    for fields in PROMPTS:
        yield {"method": "POST", "path": TEXT, "body": {**common, **fields}}
    yield from OTHERS


REFUSALS: tuple[Body, ...] = tuple(_all())
"""Arguments of `Request`, but for its name."""
