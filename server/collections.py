"""Collections of documents: make, list, describe, delete and search them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Request

from waver.retrieval.base import RetrievalError
from waver.server.errors import APIError
from waver.server.runtime import Runtime, ready_runtime, runtime
from waver.server.schemas import CollectionRequest, SearchRequest

router = APIRouter()


@router.post("/v1/collections", summary="Make a collection")
async def create(request: Request, body: CollectionRequest) -> dict[str, Any]:
    here = ready_runtime(request)
    overlap = min(32, body.chunk_tokens // 4) if body.chunk_overlap is None else body.chunk_overlap
    made = await here.library.run(here.library.create, body.name, body.embedder, body.chunk_tokens, overlap)
    return await describe(here, made.spec.name)


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
    await here.library.run(here.library.delete, name)
    return {"object": "collection.deleted", "name": name, "deleted": True}


@router.delete("/v1/collections/{name}/documents/{document:path}", summary="Delete a document")
async def delete_document(request: Request, name: str, document: str) -> dict[str, Any]:
    here = runtime(request)
    if not await here.library.run(lambda: here.library.open(name).remove(document)):
        message = f"The collection '{name}' has no document '{document[:80]}'."
        raise APIError(404, message, param="document", code="document_not_found")
    return {"object": "document.deleted", "id": document, "deleted": True}


@router.post("/v1/collections/{name}/search", summary="Find passages")
async def search(request: Request, name: str, body: SearchRequest) -> dict[str, Any]:
    here = ready_runtime(request)
    found = await here.library.run(here.library.open, name)
    async with here.searches.slot(), deadline(here):
        with here.metrics.searches.time():
            passages = await found.search(body.query, body.top_k, body.filter, body.mode)
    here.metrics.passages.inc(len(passages))
    return {
        "passages": [
            {"document": each.document, "chunk": each.chunk, "score": each.score, "text": each.text}
            | ({"title": each.title} if each.title else {})
            | ({"metadata": dict(each.metadata)} if each.metadata else {})
            for each in passages
        ]
    }


async def describe(here: Runtime, name: str, listed: bool = False) -> dict[str, Any]:
    """A collection's counts and sizes; a damaged one that is `listed` is shown with what is wrong."""
    try:
        info = await here.library.run(lambda: here.library.open(name).info())
    except RetrievalError as error:
        if not listed:
            raise
        return {"object": "collection", "name": name, "error": str(error)}
    return {"object": "collection", **info.as_dict()}


@asynccontextmanager
async def deadline(here: Runtime) -> AsyncIterator[None]:
    """The server's limit on a request's time.

    Raises:
        TimeoutError: it has passed.
    """
    async with asyncio.timeout(here.config.server.timeout):
        yield
