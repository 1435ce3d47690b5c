"""Create, list, describe, delete and search collections of documents."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from waver.retrieval.base import Passage, RetrievalError
from waver.retrieval.cancellation import CancelToken
from waver.retrieval.collection import check_filter
from waver.retrieval.reranker import Reranker
from waver.server.bodies import BodyRoute
from waver.server.disconnect import while_connected
from waver.server.errors import APIError, invalid
from waver.server.runtime import Runtime, ready_runtime, runtime
from waver.server.schemas import CollectionRequest, SearchRequest
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
    await here.library.run(here.library.create, body.name, body.embedder, body.chunk_tokens, overlap, body.rerank)
    return await describe(here, body.name)


@router.get("/v1/collections", summary="List the collections")
async def collections(request: Request) -> dict[str, Any]:
    here = runtime(request)
    names = await here.library.run(here.library.names)
    return {"object": "list", "data": [await describe(here, name, listed=True) for name in names]}


@router.get("/v1/collections/{name}", summary="One collection")
async def collection(request: Request, name: str) -> dict[str, Any]:
    return await describe(runtime(request), name)


@router.delete("/v1/collections/{name}", summary="Delete a collection")
async def delete(request: Request, name: str) -> dict[str, Any]:
    here = runtime(request)
    await here.jobs.run(None, lambda token: here.library.discard(name, token), deadline(here))
    return {"object": "collection.deleted", "name": name, "deleted": True}


@router.delete("/v1/collections/{name}/documents/{document:path}", summary="Delete a document")
async def delete_document(request: Request, name: str, document: str) -> dict[str, Any]:
    here = runtime(request)
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
    if not found.loaded:  # which takes too long for a thread that reads
        async with asyncio.timeout_at(deadline(here)):
            await here.library.compute(lambda: found.model)
    return found


async def describe(here: Runtime, name: str, listed: bool = False) -> dict[str, Any]:
    """Return a collection's counts and sizes; in a listing (`listed`) a damaged one is returned with the reason."""
    try:
        info = await here.library.run(lambda: here.library.open(name).info())
    except RetrievalError as error:
        if not listed:
            raise
        return {"object": "collection", "name": name, "error": str(error)}
    under_way = here.library.under_way(name)
    return {"object": "collection", **info.as_dict()} | ({"ingesting": under_way} if under_way else {})


def deadline(here: Runtime) -> float:
    """Return the time by which a request that begins now must be answered, on the event loop's clock."""
    return asyncio.get_running_loop().time() + here.config.server.timeout
