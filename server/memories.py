"""Export, import, search and erase memories. Each request sees those of its own key and of the `user` that it names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import StreamingResponse

from waver.policies.registry import parse
from waver.policies.remember.memgas import MemGAS
from waver.policies.remember.recall import best, by_words
from waver.policies.remember.simplemem import SimpleMem
from waver.retrieval.base import BadDocument
from waver.retrieval.memory.episode import Episode, read_episode
from waver.retrieval.memory.episodes import Linking, OwnEpisodes
from waver.retrieval.memory.memories import OwnMemories
from waver.retrieval.memory.rows import as_line
from waver.retrieval.memory.span import Span
from waver.retrieval.memory.turns import Turn
from waver.retrieval.memory.unit import Time, Unit, read_unit
from waver.server.bodies import BodyRoute
from waver.server.collections import deadline
from waver.server.errors import APIError, invalid
from waver.server.permissions import check_model
from waver.server.plan import owner_name
from waver.server.runtime import ready_runtime, runtime
from waver.server.schemas import MemoriesRequest, MemorySearchRequest
from waver.server.texts import check_characters

LINES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}}
"""Entry of a route's description for JSON lines."""

router = APIRouter(route_class=BodyRoute)

PAGE, EPISODES = 500, 20
"""Memories, and episodes, that are read at a time for an export."""
User = Annotated[str | None, Query(max_length=4096, description="the `user` whose memories these are")]
Id = Annotated[int, Path(ge=0, lt=2**63)]
Moment = Annotated[Time | None, Query(description="ISO 8601; without a time zone it is UTC")]


@router.get("/v1/memories", summary="Export memories as JSON lines", responses=LINES)
async def export(request: Request, user: User = None, after: Moment = None, before: Moment = None) -> StreamingResponse:
    own, whole, span = owner(request, user), episodes_of(request, user), within(after, before)
    first = await own.page(span, most=PAGE)  # a failure is a status, not half a file
    episodes = await whole.page(span, most=EPISODES)

    async def lines() -> AsyncIterator[str]:
        page = first
        while page:
            yield "".join(as_line(each.as_dict()) for each in page)
            page = await own.page(span, page[-1].id, PAGE)
        yield "".join(as_line(each) for each in await own.waiting(span))
        some = episodes
        while some:
            yield "".join(as_line(each.as_dict()) for each in some)
            some = await whole.page(span, some[-1].id, EPISODES)
        yield "".join(as_line(each) for each in await whole.waiting(span))

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.post("/v1/memories", summary="Remember memories, or the turns of a conversation")
async def remember(request: Request, body: MemoriesRequest) -> dict[str, Any]:
    here = ready_runtime(request)
    own = owner(request, body.user)
    if (body.memories is None) == (body.turns is None):
        raise invalid("Send 'memories', or the 'turns' of a conversation.", "memories")
    if body.memories is not None:
        given = [_read(each, i) for i, each in enumerate(body.memories)]
        units = [each for each in given if isinstance(each, Unit)]
        episodes = [each for each in given if isinstance(each, Episode)]
        whole = episodes_of(request, body.user)

        async def add(_: Any) -> int:
            return len(await own.add(units)) + len(await whole.add(episodes, Linking()))

        count = await here.jobs.run(here.ingests, add, deadline(here))
        return {"object": "memories.added", "added": count, "known": len(given) - count}
    policies = [{"name": "simplemem", **body.policy}]
    (policy,) = parse(policies, here.engines, here.config.policies, here.probes)
    if not isinstance(policy, SimpleMem | MemGAS):
        raise invalid(f"the policy '{policy.name}' remembers nothing; use simplemem or memgas.", "policy.name")
    if policy.engine is not None and policy.engine not in here.engines:
        raise invalid(f"unknown engine '{policy.engine[:64]}'; there are {', '.join(here.engines)}.", "policy.engine")
    if policy.engine is not None:
        check_model(policy.engine, here.engines)
    now = here.memories.clock()
    said = [
        Turn(each.speaker, each.text, now if each.time is None else each.time.timestamp(), each.source)
        for each in body.turns or ()
    ]
    settings = policy.settings(policy.engine or here.route(None, []).engine)
    if isinstance(policy, MemGAS):
        new = await episodes_of(request, body.user).say(said, settings, policy.idle, body.conversation)
    else:
        new = await own.say(said, settings, policy.sizes[0], policy.idle, body.conversation)
    return {"object": "turns.added", "added": new, "known": len(said) - new}


@router.api_route("/v1/memories/search", methods=["GET", "DELETE"], include_in_schema=False)
async def no_search(request: Request) -> None:
    """Refuse other methods than POST: the path looks like that of a memory.

    Raises:
        APIError: 405.
    """
    raise APIError(405, "A search is a POST.", code="method_not_allowed", headers={"allow": "POST, OPTIONS"})


@router.post("/v1/memories/search", summary="Find memories for a question")
async def search(request: Request, body: MemorySearchRequest) -> dict[str, Any]:
    here = ready_runtime(request)
    check_characters(body.query, here.config.server.max_text_characters, "query")
    own, whole = owner(request, body.user), episodes_of(request, body.user)

    async def find(_: Any) -> list[dict[str, Any]]:
        index = await whole.index()
        if not index.episodes:
            return []
        vector = await whole.question(body.query)
        found, _grains = await here.episodes.run(MemGAS(episodes=min(body.top_k, 50)).best, index, vector)
        return [each.kept.as_dict() | {"score": each.score} for each in found]

    async def look(_: Any) -> list[dict[str, Any]]:
        index = await own.index()
        if not index.memories:
            return []
        vector = await own.question(body.query)
        found = await here.memories.run(best, index, body.query, vector, by_words(body.query), body.top_k)
        return [each.memory.as_dict() | {"score": each.score} for each in found]

    work = look if body.kind == "memories" else find
    return {"memories": await here.jobs.run(here.searches, work, deadline(here))}


@router.get("/v1/memories/{memory}", summary="One memory")
async def one(request: Request, memory: Id, user: User = None) -> dict[str, Any]:
    found = await owner(request, user).page(after_id=memory - 1, most=1)
    if not found or found[0].id != memory:
        raise _not_there(memory)
    return found[0].as_dict()


@router.delete("/v1/memories", summary="Erase memories")
async def erase(request: Request, user: User = None, after: Moment = None, before: Moment = None) -> dict[str, Any]:
    span = within(after, before)
    count = await owner(request, user).erase(span) + await episodes_of(request, user).erase(span)
    return {"object": "memories.deleted", "deleted": count}


@router.delete("/v1/memories/{memory}", summary="Erase one memory")
async def forget(request: Request, memory: Id, user: User = None) -> dict[str, Any]:
    if not await owner(request, user).forget(memory):
        raise _not_there(memory)
    return {"object": "memory.deleted", "id": memory, "deleted": True}


@router.get("/v1/memories/episodes/{episode}", summary="One episode")
async def one_episode(request: Request, episode: Id, user: User = None) -> dict[str, Any]:
    found = await episodes_of(request, user).page(after_id=episode - 1, most=1)
    if not found or found[0].id != episode:
        raise _no_episode(episode)
    return found[0].as_dict()


@router.delete("/v1/memories/episodes/{episode}", summary="Erase one episode")
async def forget_episode(request: Request, episode: Id, user: User = None) -> dict[str, Any]:
    if not await episodes_of(request, user).forget(episode):
        raise _no_episode(episode)
    return {"object": "episode.deleted", "id": episode, "deleted": True}


def owner(request: Request, user: str | None) -> OwnMemories:
    """Return the memories of the request's key and a user."""
    return runtime(request).memories.of(owner_name(request, user))


def episodes_of(request: Request, user: str | None) -> OwnEpisodes:
    """Return the episodes of the request's key and a user."""
    return runtime(request).episodes.of(owner_name(request, user))


def within(after: Moment, before: Moment) -> Span:
    """Return a stretch of time; without a time zone it is UTC."""
    return Span(*(None if each is None else each.timestamp() for each in (after, before)))


def _read(data: Any, place: int) -> Unit | Episode:
    try:
        return read_episode(data) if data.get("object") == "episode" else read_unit(data)
    except BadDocument as error:
        raise invalid(str(error), f"memories[{place}]") from error


def _not_there(memory: int) -> APIError:
    return APIError(404, f"There is no memory {memory}.", param="memory", code="memory_not_found")


def _no_episode(episode: int) -> APIError:
    return APIError(404, f"There is no episode {episode}.", param="episode", code="episode_not_found")
