"""Export, import, search and erase memories. Each request sees those of its own key and of the `user` that it names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import StreamingResponse

from waver.policies.registry import parse
from waver.policies.remember.recall import best, by_words
from waver.policies.remember.simplemem import SimpleMem
from waver.retrieval.base import BadDocument
from waver.retrieval.memory.memories import OwnMemories
from waver.retrieval.memory.rows import Span, as_line
from waver.retrieval.memory.turns import Turn
from waver.retrieval.memory.unit import Time, Unit, read_unit
from waver.server.bodies import BodyRoute
from waver.server.collections import deadline
from waver.server.errors import APIError, invalid
from waver.server.plan import owner_name
from waver.server.runtime import ready_runtime, runtime
from waver.server.schemas import MemoriesRequest, MemorySearchRequest
from waver.server.texts import check_characters

router = APIRouter(route_class=BodyRoute)

PAGE = 500
"""Memories that are read at a time for an export."""
User = Annotated[str | None, Query(max_length=4096, description="the `user` whose memories these are")]
Id = Annotated[int, Path(ge=0, lt=2**63)]
Moment = Annotated[Time | None, Query(description="ISO 8601; without a time zone it is UTC")]


@router.get("/v1/memories", summary="Export memories as JSON lines")
async def export(request: Request, user: User = None, after: Moment = None, before: Moment = None) -> StreamingResponse:
    own, span = owner(request, user), within(after, before)
    first = await own.page(span, most=PAGE)  # a failure is a status, not half a file

    async def lines() -> AsyncIterator[str]:
        page = first
        while page:
            yield "".join(as_line(each.as_dict()) for each in page)
            page = await own.page(span, page[-1].id, PAGE)
        yield "".join(as_line(each) for each in await own.waiting(span))

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.post("/v1/memories", summary="Remember memories, or the turns of a conversation")
async def remember(request: Request, body: MemoriesRequest) -> dict[str, Any]:
    here = ready_runtime(request)
    own = owner(request, body.user)
    if (body.memories is None) == (body.turns is None):
        raise invalid("Send 'memories', or the 'turns' of a conversation.", "memories")
    if body.memories is not None:
        units = [_unit(each, i) for i, each in enumerate(body.memories)]
        made = await here.jobs.run(here.ingests, lambda _: own.add(units), deadline(here))
        return {"object": "memories.added", "added": len(made), "known": len(units) - len(made)}
    (policy,) = parse([{**body.policy, "name": "simplemem"}], here.engines, here.config.policies, here.probes)
    assert isinstance(policy, SimpleMem)
    if policy.engine is not None and policy.engine not in here.engines:
        raise invalid(f"unknown engine '{policy.engine[:64]}'; there are {', '.join(here.engines)}.", "policy.engine")
    now = here.memories.clock()
    said = [
        Turn(each.speaker, each.text, now if each.time is None else each.time.timestamp(), each.source)
        for each in body.turns or ()
    ]
    settings = policy.settings(here.route(None, []).engine)
    new = await own.say(said, settings, policy.sizes[0], policy.idle, body.conversation)
    return {"object": "turns.added", "added": new, "known": len(said) - new}


@router.post("/v1/memories/search", summary="Find memories for a question")
async def search(request: Request, body: MemorySearchRequest) -> dict[str, Any]:
    here = ready_runtime(request)
    check_characters(body.query, here.config.server.max_text_characters, "query")
    own = owner(request, body.user)

    async def look(_: Any) -> list[dict[str, Any]]:
        index = await own.index()
        if not index.memories:
            return []
        vector = await own.question(body.query)
        found = await here.memories.run(best, index, body.query, vector, by_words(body.query), body.top_k)
        return [each.memory.as_dict() | {"score": each.score} for each in found]

    return {"memories": await here.jobs.run(here.searches, look, deadline(here))}


@router.get("/v1/memories/{memory}", summary="One memory")
async def one(request: Request, memory: Id, user: User = None) -> dict[str, Any]:
    found = await owner(request, user).page(after_id=memory - 1, most=1)
    if not found or found[0].id != memory:
        raise _not_there(memory)
    return found[0].as_dict()


@router.delete("/v1/memories", summary="Erase memories")
async def erase(request: Request, user: User = None, after: Moment = None, before: Moment = None) -> dict[str, Any]:
    count = await owner(request, user).erase(within(after, before))
    return {"object": "memories.deleted", "deleted": count}


@router.delete("/v1/memories/{memory}", summary="Erase one memory")
async def forget(request: Request, memory: Id, user: User = None) -> dict[str, Any]:
    if not await owner(request, user).forget(memory):
        raise _not_there(memory)
    return {"object": "memory.deleted", "id": memory, "deleted": True}


def owner(request: Request, user: str | None) -> OwnMemories:
    """Return the memories of the request's key and a user."""
    return runtime(request).memories.of(owner_name(request, user))


def within(after: Moment, before: Moment) -> Span:
    """Return a stretch of time; without a time zone it is UTC."""
    return Span(*(None if each is None else each.timestamp() for each in (after, before)))


def _unit(data: Any, place: int) -> Unit:
    try:
        return read_unit(data)
    except BadDocument as error:
        raise invalid(str(error), f"memories[{place}]") from error


def _not_there(memory: int) -> APIError:
    return APIError(404, f"There is no memory {memory}.", param="memory", code="memory_not_found")
