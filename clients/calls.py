"""Describe the requests of Waver's own endpoints: collections, memories and facts, for blocking and for async clients.

A function here makes a `Call`; `blocking` and `awaited` turn it into a method of a client's resource, with the same
arguments, so that both kinds of clients are one text.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, cast
from urllib.parse import quote

import openai
from pydantic import BaseModel, ConfigDict

T = TypeVar("T")
P = ParamSpec("P")
OMITTED: tuple[Any, ...] = (None, {}, [])
"""Values that are left out of a request."""


class Reply(BaseModel):
    """Something that a server answers with. Keys that this release does not know are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)


class CollectionInfo(Reply):
    """A collection of documents. `error`: why it cannot be read, in a listing."""

    name: str
    documents: int = 0
    chunks: int = 0
    embedder: str | None = None
    error: str | None = None


class AddedDocument(Reply):
    """A document that was brought in. `warnings` say what of it was lost or guessed."""

    id: str
    chunks: int
    unchanged: bool = False
    warnings: list[str] = []


class ListedDocument(Reply):
    """A document of a collection, without its text."""

    id: str
    title: str = ""
    chunks: int = 0
    metadata: dict[str, Any] = {}


class Passage(Reply):
    """A piece of a document that was found for a question; how scores compare depends on the mode of the search."""

    document: str
    chunk: int
    score: float
    text: str
    title: str = ""
    metadata: dict[str, Any] = {}


class Memory(Reply):
    """A memory, or an episode: of a memory, `content` is a sentence that can be understood alone."""

    id: int
    object: str = "memory"
    content: str = ""
    created: str | None = None
    score: float | None = None


class Fact(Reply):
    """A fact that corrects a model, from `begun` until `ended`."""

    id: int
    text: str
    subject: str | None = None
    relation: str | None = None
    begun: str | None = None
    ended: str | None = None


class Count(Reply):
    """The number of things that were added, with those that were known already, or that were deleted."""

    added: int = 0
    known: int = 0
    deleted: int = 0


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how its answer is read. `query` and `body` go out without what is not set."""

    method: Literal["get", "post", "delete"]
    path: str
    read: Callable[[Any], T]
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    files: Sequence[Any] | None = None
    text: bool = False
    """True if the answer is text and no JSON."""

    def arguments(self) -> dict[str, Any]:
        """Return what the `openai` client's method is called with besides the path."""
        out: dict[str, Any] = {"cast_to": str if self.text else object, "options": {"params": _given(self.query)}}
        if self.body is not None:
            out["body"] = _given(self.body)
        if self.files is not None:
            out["files"] = self.files
            out["options"]["headers"] = {"Content-Type": "multipart/form-data"}
        return out


class Resource:
    """A part of a client's interface. Errors are those of the `openai` package, such as `openai.NotFoundError`."""

    def __init__(self, client: openai.OpenAI | openai.AsyncOpenAI) -> None:
        self._client = client


def blocking(make: Callable[P, Call[T]]) -> Callable[Concatenate[Any, P], T]:
    """Turn a description of a request into a method that sends it and waits for the answer."""

    @wraps(make)
    def send(resource: Any, /, *args: P.args, **named: P.kwargs) -> T:
        call = make(*args, **named)
        return call.read(getattr(resource._client, call.method)(call.path, **call.arguments()))

    return send


def awaited(make: Callable[P, Call[T]]) -> Callable[Concatenate[Any, P], Awaitable[T]]:
    """Turn a description of a request into a coroutine method."""

    @wraps(make)
    async def send(resource: Any, /, *args: P.args, **named: P.kwargs) -> T:
        call = make(*args, **named)
        return call.read(await getattr(resource._client, call.method)(call.path, **call.arguments()))

    return send


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in OMITTED}


def _one(model: type[T]) -> Callable[[Any], T]:
    return lambda found: cast(Any, model).model_validate(found)


def _many(model: type[T], key: str) -> Callable[[Any], list[T]]:
    return lambda found: [cast(Any, model).model_validate(each) for each in found[key]]


def _lines(model: type[T]) -> Callable[[str], list[T]]:
    return lambda text: [cast(Any, model).model_validate(json.loads(line)) for line in text.splitlines() if line]


def _nothing(_: Any) -> None:
    return None


def _collection(name: str, *rest: str) -> str:
    return "/".join(["/collections", quote(name, safe=""), *rest])


def create_collection(
    name: str,
    *,
    embedder: str | None = None,
    chunk_tokens: int | None = None,
    chunk_overlap: int | None = None,
    rerank: str | None = None,
) -> Call[CollectionInfo]:
    """Make a collection. None: the server's defaults."""
    body = {"name": name, "embedder": embedder, "chunk_tokens": chunk_tokens, "chunk_overlap": chunk_overlap}
    return Call("post", "/collections", _one(CollectionInfo), body={**body, "rerank": rerank})


def list_collections() -> Call[list[CollectionInfo]]:
    """Return all collections."""
    return Call("get", "/collections", _many(CollectionInfo, "data"))


def get_collection(name: str) -> Call[CollectionInfo]:
    """Return one collection."""
    return Call("get", _collection(name), _one(CollectionInfo))


def delete_collection(name: str) -> Call[None]:
    """Delete a collection with its documents."""
    return Call("delete", _collection(name), _nothing)


def add_documents(name: str, documents: Sequence[Mapping[str, Any]]) -> Call[list[AddedDocument]]:
    """Bring texts into a collection: `id`, `text`, and perhaps `title` and `metadata`."""
    body = {"documents": list(documents)}
    return Call("post", _collection(name, "documents"), _many(AddedDocument, "documents"), body=body)


def upload_files(
    name: str, files: Sequence[str | Path], *, metadata: Mapping[str, Any] | None = None
) -> Call[list[AddedDocument]]:
    """Bring files into a collection, under their names; kinds of files are in docs/documents.md.

    Raises:
        OSError: a file cannot be read.
    """
    parts = [("file", (Path(file).name, Path(file).read_bytes(), "application/octet-stream")) for file in files]
    body = {"metadata": json.dumps(metadata)} if metadata else {}
    return Call("post", _collection(name, "documents"), _many(AddedDocument, "documents"), body=body, files=parts)


def list_documents(name: str, *, limit: int | None = None, after: str | None = None) -> Call[list[ListedDocument]]:
    """Return at most `limit` documents of a collection (100 if not told, at most 1,000), in an order that stays: the
    first ones, or those after the document `after`."""
    path = _collection(name, "documents")
    return Call("get", path, _many(ListedDocument, "data"), query={"limit": limit, "after": after})


def remove_document(name: str, document: str) -> Call[None]:
    """Remove a document from a collection."""
    return Call("delete", _collection(name, "documents", quote(document)), _nothing)


def search_collection(
    name: str,
    query: str,
    *,
    top_k: int | None = None,
    filter: Mapping[str, Any] | None = None,
    mode: Literal["hybrid", "dense", "lexical"] | None = None,
    rerank: bool | None = None,
) -> Call[list[Passage]]:
    """Find passages for a question, the best first."""
    body = {"query": query, "top_k": top_k, "filter": filter, "mode": mode, "rerank": rerank}
    return Call("post", _collection(name, "search"), _many(Passage, "passages"), body=body)


def add_memories(memories: Sequence[Mapping[str, Any]], *, user: str | None = None) -> Call[Count]:
    """Remember memories: `content`, and what else an export has. Those that are known are left out."""
    return Call("post", "/memories", _one(Count), body={"memories": list(memories), "user": user})


def say_turns(
    turns: Sequence[Mapping[str, Any]],
    *,
    user: str | None = None,
    conversation: str | None = None,
    policy: Mapping[str, Any] | None = None,
) -> Call[Count]:
    """Bring the turns of a conversation (`speaker`, `text`, `time`), to be remembered as a policy would."""
    body = {"turns": list(turns), "user": user, "conversation": conversation, "policy": policy}
    return Call("post", "/memories", _one(Count), body=body)


def search_memories(
    query: str,
    *,
    top_k: int | None = None,
    kind: Literal["memories", "episodes"] | None = None,
    user: str | None = None,
) -> Call[list[Memory]]:
    """Find memories, or episodes, for a question, the best first."""
    body = {"query": query, "top_k": top_k, "kind": kind, "user": user}
    return Call("post", "/memories/search", _many(Memory, "memories"), body=body)


def export_memories(
    *, user: str | None = None, after: str | None = None, before: str | None = None
) -> Call[list[dict[str, Any]]]:
    """Return everything that is remembered: memories, episodes, and turns that wait, by their `object`. Moments are ISO
    8601."""
    query = {"user": user, "after": after, "before": before}
    lines: Callable[[str], list[dict[str, Any]]] = lambda text: list(map(json.loads, filter(None, text.splitlines())))  # noqa: E731
    return Call("get", "/memories", lines, query=query, text=True)


def get_memory(memory: int, *, user: str | None = None) -> Call[Memory]:
    """Return one memory."""
    return Call("get", f"/memories/{memory}", _one(Memory), query={"user": user})


def forget_memory(memory: int, *, user: str | None = None) -> Call[None]:
    """Erase one memory."""
    return Call("delete", f"/memories/{memory}", _nothing, query={"user": user})


def erase_memories(*, user: str | None = None, after: str | None = None, before: str | None = None) -> Call[Count]:
    """Erase everything that is remembered, or what was remembered between two moments."""
    query = {"user": user, "after": after, "before": before}
    return Call("delete", "/memories", _one(Count), query=query)


def add_facts(facts: Sequence[Mapping[str, Any]], *, user: str | None = None) -> Call[list[Fact]]:
    """Add facts (`text`, `subject`, `relation`), each in place of the one that holds about the same."""
    return Call("post", "/facts", _many(Fact, "data"), body={"facts": list(facts), "user": user})


def export_facts(*, user: str | None = None, at: str | None = None, history: bool | None = None) -> Call[list[Fact]]:
    """Return the facts that hold now, those that held at a moment (ISO 8601), or with `history` all."""
    query = {"user": user, "at": at, "history": history}
    return Call("get", "/facts", _lines(Fact), query=query, text=True)


def forget_fact(fact: int, *, user: str | None = None) -> Call[None]:
    """Erase one fact."""
    return Call("delete", f"/facts/{fact}", _nothing, query={"user": user})


def erase_facts(*, user: str | None = None) -> Call[Count]:
    """Erase all facts."""
    return Call("delete", "/facts", _one(Count), query={"user": user})
