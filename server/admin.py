"""/v1/admin: keys, the owners of collections, the audit log and reloads, for admin keys and servers without keys."""

from __future__ import annotations

from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field, ValidationError

from waver.server.bodies import BodyRoute
from waver.server.collections import acting
from waver.server.errors import APIError, ReloadRefused, invalid
from waver.server.problems import ConfigError
from waver.server.reload import reload
from waver.server.runtime import Runtime, runtime
from waver.server.schemas import ClosedBody
from waver.server.tenants.audit import entries, record
from waver.server.tenants.budget import State
from waver.server.tenants.database import DatabaseError
from waver.server.tenants.grant import Grant
from waver.server.tenants.stored_keys import KeyRefused, StoredKey
from waver.server.validation import explain

log = structlog.get_logger("waver")
router = APIRouter(route_class=BodyRoute)

CONFIG = ("config.reload", "configuration")
"""Action and subject in the audit log where the configuration was read again."""
STATUS = {"key_exists": 409, "key_not_found": 404, "key_revoked": 409, "invalid_name": 400}


class RotateRequest(ClosedBody):
    """`grace`: seconds for which the old key is still good."""

    grace: float = Field(0.0, ge=0, le=30 * 86_400)


class OwnerRequest(ClosedBody):
    """`owner`: the name of a key; null: the server itself."""

    owner: str | None = Field(None, max_length=64)


@router.get("/v1/admin/keys", summary="List the stored keys")
async def keys(request: Request) -> dict[str, Any]:
    here = runtime(request)
    found = await here.database.in_thread(here.keys.stored.all)
    return {"object": "list", "data": [each.as_dict() for each in found]}


@router.post("/v1/admin/keys", summary="Add a key; it is shown this once")
async def add(request: Request, body: dict[str, Any]) -> dict[str, Any]:
    here = runtime(request)
    name = body.pop("name", None)
    if not isinstance(name, str):
        raise invalid("name is required.", "name")
    made, secret = await change(here, here.keys.stored.add, name, granted(body), *who(request))
    return made.as_dict() | {"key": secret}


@router.get("/v1/admin/keys/{name}", summary="One key, with what it has used")
async def one(request: Request, name: str) -> dict[str, Any]:
    here = runtime(request)
    try:
        found: StoredKey = await here.database.in_thread(here.keys.stored.get, name)
    except KeyRefused as error:
        raise answer(error) from error
    state, running, used = await here.database.in_thread(here.meter.budgets.state, name, found.grant)
    return found.as_dict() | {"usage": {**used, "running": running, "left": left(state)}}


@router.post("/v1/admin/keys/{name}", summary="Change what a key may do")
async def update(request: Request, name: str, body: dict[str, Any]) -> dict[str, Any]:
    here = runtime(request)
    try:
        changed = await change(here, here.keys.stored.change, name, body, *who(request))
    except ValidationError as error:
        raise readable(error, body) from error
    return changed.as_dict()


@router.post("/v1/admin/keys/{name}/rotate", summary="Give a key a new secret; it is shown this once")
async def rotate(request: Request, name: str, body: RotateRequest) -> dict[str, Any]:
    here = runtime(request)
    actor, request_id = who(request)
    made, secret = await change(here, here.keys.stored.rotate, name, actor, body.grace, request_id)
    return made.as_dict() | {"key": secret}


@router.delete("/v1/admin/keys/{name}", summary="Revoke a key")
async def revoke(request: Request, name: str) -> dict[str, Any]:
    here = runtime(request)
    await change(here, here.keys.stored.revoke, name, *who(request))
    return {"object": "key.revoked", "name": name, "revoked": True}


@router.post("/v1/admin/collections/{name}/owner", summary="Make a key the owner of a collection")
async def owner(request: Request, name: str, body: OwnerRequest) -> dict[str, Any]:
    here = runtime(request)
    await here.library.run(here.library.open, name)
    if body.owner is not None and body.owner not in here.keys.names:
        await here.keys.refresh()
        if body.owner not in here.keys.names:
            message = f"There is no key '{body.owner}'."
            raise APIError(404, message, param="owner", code="key_not_found")
    await here.owners.give(name, body.owner, **acting(request))
    return {"object": "collection.owner", "name": name, "owner": body.owner}


@router.get("/v1/admin/audit", summary="The audit log, newest first")
async def audit(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="the id of an entry: older ones")] = None,
) -> dict[str, Any]:
    here = runtime(request)
    found = await here.database.in_thread(entries, here.database, limit, before)
    return {"object": "list", "data": found}


async def without_fields(request: Request) -> None:
    """Refuse a body that says something, where there is nothing to say: a FastAPI dependency.

    Raises:
        APIError: 400.
    """
    if (await request.body()).strip() not in (b"", b"{}"):
        raise invalid("This request has no fields: leave its body out.")


@router.post(
    "/v1/admin/reload", summary="Read the configuration again, as SIGHUP does", dependencies=[Depends(without_fields)]
)
async def read_again(request: Request) -> dict[str, Any]:
    """Take over what may change while the server runs; all of it or, with 409, nothing.

    Raises:
        APIError: 409, the configuration is wrong, or changes what only a new start can.
    """
    here = runtime(request)
    try:
        applied = await reload(here)
    except ConfigError as error:
        reasons = [(".".join(map(str, each.place)) or None, str(each)) for each in error.problems]
        await note(request, *CONFIG, {"refused": [name or reason for name, reason in reasons]})
        raise ReloadRefused(reasons) from error
    await note(request, *CONFIG, {"applied": applied})
    return {"object": "config.reload", "applied": applied, "refused": []}


async def note(request: Request, action: str, subject: str, detail: dict[str, Any]) -> None:
    """Add a reload to the audit log; a database that cannot be used does not undo it."""
    actor, request_id = who(request)
    try:
        await runtime(request).database.writing(lambda db: record(db, actor, action, subject, detail, request_id))
    except DatabaseError as error:
        log.error("a reload is not in the audit log", reason=str(error))


def who(request: Request) -> tuple[str, str | None]:
    """Return who acts, and in which request."""
    acts = acting(request)
    return acts["actor"], acts["request"]


async def change(here: Runtime, work: Any, *arguments: Any) -> Any:
    """Change a key, and see to it that the change holds for the next request.

    Raises:
        APIError: 404, there is no such key; 409, it cannot be changed so.
    """
    try:
        done = await here.database.in_thread(work, *arguments)
    except KeyRefused as error:
        raise answer(error) from error
    await here.keys.refresh()
    return done


def answer(error: KeyRefused) -> APIError:
    return APIError(STATUS[error.code], str(error), param="name", code=error.code)


def granted(body: dict[str, Any]) -> Grant:
    """Read what a key may do.

    Raises:
        APIError: 400.
    """
    try:
        return Grant.model_validate(body)
    except ValidationError as error:
        raise readable(error, body) from error


def readable(error: ValidationError, body: dict[str, Any]) -> APIError:
    message, param = explain([{**each, "loc": ("body", *each["loc"])} for each in error.errors()], body)
    return invalid(message, param)


def left(state: State) -> dict[str, int]:
    """Return what is left of each budget."""
    windows = {"requests": state.requests, "tokens": state.tokens}
    return {f"{what}_per_{each.span}": each.left for what, some in windows.items() for each in some}
