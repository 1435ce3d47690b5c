"""Add, list and erase the facts that the policy `scr` uses. Those without a `user` are for all users of a key."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from waver.retrieval.memory.facts import OwnFacts
from waver.retrieval.memory.rows import as_line
from waver.server.bodies import BodyRoute
from waver.server.collections import deadline
from waver.server.errors import APIError
from waver.server.memories import LINES, Id, Moment, User
from waver.server.plan import owner_name
from waver.server.runtime import ready_runtime, runtime
from waver.server.schemas import FactsRequest

router = APIRouter(route_class=BodyRoute)

History = Annotated[bool, Query(description="also facts that were replaced")]


@router.post("/v1/facts", summary="Add facts, in place of earlier ones about the same")
async def add(request: Request, body: FactsRequest) -> dict[str, Any]:
    here = ready_runtime(request)
    own = owner(request, body.user)
    made = await here.jobs.run(here.ingests, lambda _: own.add(body.facts), deadline(here))
    return {"object": "list", "data": [each.as_dict() for each in made]}


@router.get("/v1/facts", summary="Export facts as JSON lines", responses=LINES)
async def export(request: Request, user: User = None, at: Moment = None, history: History = False) -> Response:
    found = await owner(request, user).listed(None if at is None else at.timestamp(), history)
    lines = "".join(as_line(each.as_dict()) for each in found)
    return Response(lines, media_type="application/x-ndjson")


@router.get("/v1/facts/{fact}", summary="One fact")
async def one(request: Request, fact: Id, user: User = None) -> dict[str, Any]:
    found = await owner(request, user).get(fact)
    if found is None:
        raise _not_there(fact)
    return found.as_dict()


@router.delete("/v1/facts", summary="Erase all facts")
async def erase(request: Request, user: User = None) -> dict[str, Any]:
    return {"object": "facts.deleted", "deleted": await owner(request, user).erase()}


@router.delete("/v1/facts/{fact}", summary="Erase one fact")
async def forget(request: Request, fact: Id, user: User = None) -> dict[str, Any]:
    if not await owner(request, user).forget(fact):
        raise _not_there(fact)
    return {"object": "fact.deleted", "id": fact, "deleted": True}


def owner(request: Request, user: str | None) -> OwnFacts:
    """Return the facts of the request's key and a user."""
    return runtime(request).facts.of(owner_name(request, user))


def _not_there(fact: int) -> APIError:
    return APIError(404, f"There is no fact {fact}.", param="fact", code="fact_not_found")
