"""Create, list, describe, delete and search collections of documents."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from waver.retrieval.base import Exists, Passage, RetrievalError
from waver.retrieval.cancellation import CancelToken
from waver.retrieval.collection import check_filter
from waver.retrieval.library import check_name
from waver.retrieval.reranker import Reranker
from waver.server.bodies import BodyRoute
from waver.server.collection_access import require
from waver.server.disconnect import while_connected
from waver.server.errors import APIError, invalid
from waver.server.permissions import check_model, denied, reserved
from waver.server.runtime import Runtime, ready_runtime, runtime
from waver.server.schemas import CollectionRequest, SearchRequest, ShareRequest
from waver.server.tenants.grant import current
from waver.server.tenants.owners import ALL, LEVELS, OWN, READ, WRITE, Ownership, TooMany
from waver.server.texts import check_characters

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/collections", summary="Make a collection")
async def create(request: Request, body: CollectionRequest) -> dict[str, Any]:
    here = ready_runtime(request)
    overlap = min(32, body.chunk_tokens // 4) if body.chunk_overlap is None else body.chunk_overlap
    embedder = here.library.embedder(body.embedder)
    if not embedder.loaded:  # which takes too long for a thread that reads
        async with asyncio.timeout_at(deadline(here)):
            await here.library.compute(lambda: embedder.model)
    if body.rerank is not None:
        await load_reranker(here, body.rerank)
    await make(here, body.name, body.embedder, body.chunk_tokens, overlap, body.rerank)
    return await describe(here, body.name)


async def make(here: Runtime, name: str, *settings: Any) -> None:
    """Make a collection that belongs to the key, or to the server where the key operates it.

    Raises:
        Exists: there is one of the name, whosever it is.
        APIError: 403, the key may own no more, or the configuration uses the name.
    """
    who, library = current(), here.library
    check_name(name)
    if who.operates or who.name is None:
        await library.run(library.create, name, *settings)
        await here.owners.drop(name)  # of one that was deleted elsewhere
        return
    if name in reserved(here.config):
        raise denied(f"The configuration uses a collection '{name}': an administrator makes it.", "name")
    there = name in await library.run(library.names)
    try:
        free = not there and await here.owners.claim(name, who.name, who.grant.max_collections)
    except TooMany as error:
        raise denied(str(error)) from error
    if not free:
        raise Exists(f"There is a collection '{name}' already.")
    try:
        await library.run(library.create, name, *settings)
    except BaseException:
        await asyncio.shield(here.owners.drop(name))
        raise


@router.get("/v1/collections", summary="List the collections")
async def collections(request: Request) -> dict[str, Any]:
    here = runtime(request)
    names, owned = await here.library.run(here.library.names), await here.owners.all()
    who = current()
    seen = [name for name in names if owned.get(name, Ownership()).level(who, name) >= READ]
    return {"object": "list", "data": [await describe(here, name, owned.get(name, Ownership())) for name in seen]}


@router.get("/v1/collections/{name}", summary="One collection")
async def collection(request: Request, name: str) -> dict[str, Any]:
    here = runtime(request)
    await require(here, name, READ)
    return await describe(here, name)


@router.delete("/v1/collections/{name}", summary="Delete a collection")
async def delete(request: Request, name: str) -> dict[str, Any]:
    here = runtime(request)
    await require(here, name, OWN)
    await here.jobs.run(None, lambda token: here.library.discard(name, token), deadline(here))
    await here.owners.drop(name, **acting(request))
    return {"object": "collection.deleted", "name": name, "deleted": True}


@router.post("/v1/collections/{name}/shares", summary="Share a collection with a key")
async def share(request: Request, name: str, body: ShareRequest) -> dict[str, Any]:
    here = runtime(request)
    await require(here, name, OWN)
    if body.key != ALL and body.key not in here.keys.names:
        await here.keys.refresh()
        if body.key not in here.keys.names:
            message = f"There is no key '{body.key[:64]}'; '*' stands for all."
            raise APIError(404, message, param="key", code="key_not_found")
    await here.library.run(here.library.open, name)
    await here.owners.share(name, body.key, body.access, **acting(request))
    return await describe(here, name)


@router.delete("/v1/collections/{name}/shares/{key}", summary="End a key's share in a collection")
async def unshare(request: Request, name: str, key: str) -> dict[str, Any]:
    here = runtime(request)
    await require(here, name, OWN)
    if not await here.owners.share(name, key, None, **acting(request)):
        message = f"The collection '{name}' is not shared with the key '{key[:64]}'."
        raise APIError(404, message, param="key", code="share_not_found")
    return {"object": "share.deleted", "name": name, "key": key, "deleted": True}


@router.delete("/v1/collections/{name}/documents/{document:path}", summary="Delete a document")
async def delete_document(request: Request, name: str, document: str) -> dict[str, Any]:
    here = runtime(request)
    await require(here, name, WRITE)
    found = await here.library.run(here.library.open, name)
    # What is not there needs no turn to write.
    removed = await here.library.run(found.store.digest, document) is not None and await here.jobs.run(
        None, lambda token: here.library.write(found, lambda writer: writer.remove(document), token), deadline(here)
    )
    if not removed:
        message = f"The collection '{name}' has no document '{document[:80]}'."
        raise APIError(404, message, param="document", code="document_not_found")
    return {"object": "document.deleted", "id": document, "deleted": True}


@router.post("/v1/collections/{name}/search", summary="Find passages")
async def search(request: Request, name: str, body: SearchRequest) -> dict[str, Any]:
    here = ready_runtime(request)
    until = deadline(here)
    try:
        check_filter(body.filter)
    except RetrievalError as error:
        raise invalid(str(error), "filter") from error
    check_characters(body.query, here.config.server.max_text_characters, "query")
    await require(here, name, READ)
    found = await here.library.run(here.library.open, name)

    async def look(_: CancelToken) -> tuple[list[Passage], tuple[str, ...]]:
        with here.metrics.searches.time():
            passages = await found.search(body.query, body.top_k, body.filter, body.mode, body.rerank)
        return passages, await here.library.compute(found.unread, body.query, body.mode, quick=True)

    passages, warnings = await while_connected(request, here.jobs.run(here.searches, look, until))
    here.metrics.passages.inc(len(passages))
    return ({"warnings": list(warnings)} if warnings else {}) | {
        "passages": [
            {"document": each.document, "chunk": each.chunk, "score": each.score, "text": each.text}
            | ({"title": each.title} if each.title else {})
            | ({"metadata": dict(each.metadata)} if each.metadata else {})
            for each in passages
        ]
    }


async def load_reranker(here: Runtime, name: str | None) -> Reranker:
    """Return a reranker, loaded.

    Raises:
        APIError: 404, it is not configured.
    """
    try:
        found = here.library.reranker(name)
    except RetrievalError as error:
        raise APIError(404, str(error), param="model", code="model_not_found") from error
    check_model(found.name, here.library.rerankers)
    if not found.loaded:  # which takes too long for a thread that reads
        async with asyncio.timeout_at(deadline(here)):
            await here.library.compute(lambda: found.model)
    return found


async def describe(here: Runtime, name: str, listed: Ownership | None = None) -> dict[str, Any]:
    """Return a collection's counts and sizes, and where keys are asked for what this one may do with it.

    Args:
        listed: its owner, where it stands in a listing: there a damaged one is returned with the reason.
    """
    try:
        info = await here.library.run(lambda: here.library.open(name).info())
    except RetrievalError as error:
        if listed is None:
            raise
        return {"object": "collection", "name": name, "error": str(error)}
    under_way = here.library.under_way(name)
    shown = {"object": "collection", **info.as_dict()} | ({"ingesting": under_way} if under_way else {})
    if not here.keys.asks:
        return shown
    return shown | rights(name, await here.owners.of(name) if listed is None else listed)


def rights(name: str, ownership: Ownership) -> dict[str, Any]:
    """Return what the key may do with a collection; to whom it belongs, also its owner and with whom it is shared."""
    level = ownership.level(current(), name)
    access = {level: access for access, level in LEVELS.items()}.get(level, "own")
    own = {"owner": ownership.owner, "shares": ownership.shares} if level >= OWN else {}
    return {"access": access, **own}


def acting(request: Request) -> dict[str, Any]:
    """Return who acts, and in which request, for the audit log."""
    return {"actor": current().name or "nobody", "request": request.scope.get("waver.request_id")}


def deadline(here: Runtime) -> float:
    """Return the time by which a request that begins now must be answered, on the event loop's clock."""
    return asyncio.get_running_loop().time() + here.config.server.timeout
