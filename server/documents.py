"""List a collection's documents, and add some: texts as JSON or files as multipart. They are searchable and on disk
when the request is answered."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ConfigDict, TypeAdapter, ValidationError
from starlette.datastructures import UploadFile

from waver.extras import how_to_install
from waver.retrieval.base import BadDocument, Document, NoDocument, Scalar, TooLarge, Unavailable
from waver.retrieval.cancellation import CancelToken
from waver.retrieval.collection import Stored
from waver.retrieval.formats import clean
from waver.retrieval.ingest import document_of, file_digest
from waver.retrieval.parsing import Parsers
from waver.server.collection_access import require
from waver.server.collections import deadline
from waver.server.disconnect import while_connected
from waver.server.errors import APIError, invalid
from waver.server.multipart import form
from waver.server.runtime import Runtime, ready_runtime, runtime
from waver.server.schemas import MOST_METADATA, DocumentBody, DocumentsRequest, Metadata
from waver.server.tenants.owners import READ, WRITE

router = APIRouter()

MOST_FILES = 1000
MOST_LISTED = 1000
METADATA: TypeAdapter[dict[str, Scalar]] = TypeAdapter(Metadata, config=ConfigDict(allow_inf_nan=False))
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["documents"],
                    "properties": {"documents": {"type": "array", "items": DocumentBody.model_json_schema()}},
                }
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "metadata": {"type": "string", "description": "a JSON object, for all files"},
                    },
                }
            },
        },
    }
}


@router.get("/v1/collections/{name}/documents", summary="List the documents")
async def listed(
    request: Request,
    name: str,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED, description="at most so many")] = 100,
    after: Annotated[str | None, Query(description="go on after the document of this id")] = None,
) -> dict[str, Any]:
    """List documents with their titles, chunks and metadata, in an order that stays; `has_more` says whether to ask
    again with the last one's id as `after`."""
    here = runtime(request)
    await require(here, name, READ)
    collection = await here.library.run(here.library.open, name)
    try:
        found = await here.library.run(collection.store.listed, after, limit + 1)
    except NoDocument as error:
        raise APIError(404, str(error), param="after", code="document_not_found") from error
    entries = [{"object": "document", **asdict(each)} for each in found[:limit]]
    return {"object": "list", "data": entries, "has_more": len(found) > limit}


@router.post("/v1/collections/{name}/documents", summary="Add documents", openapi_extra=BODY)
async def add(request: Request, name: str) -> dict[str, Any]:
    here = ready_runtime(request)
    library, until = here.library, deadline(here)
    await require(here, name, WRITE)
    collection = await library.run(library.open, name)
    async with asyncio.timeout_at(until):
        match request.headers.get("content-type", "").partition(";")[0].strip().lower():
            case "multipart/form-data":
                files, metadata = await uploads(request, library.config.max_file_bytes)
                read: Any = partial(read_files, library.parsers, files, metadata)
            case "application/json":
                read = partial(read_texts, await parsed(request, here), library.config.max_text_bytes)
            case _:
                raise invalid(
                    "The body should be JSON, sent with the header 'Content-Type: application/json', or "
                    "'multipart/form-data'."
                )
    work = here.jobs.run(here.ingests, lambda token: library.add(collection, partial(read, token), token), until)
    stored = await while_connected(request, work)
    for each in stored:
        here.metrics.documents.labels("stored" if each.changed else "unchanged").inc()
    here.jobs.spawn(partial(library.tidy, collection), f"rebuilding the index of '{name}'")
    return {"documents": [shown(each) for each in stored]}


def shown(stored: Stored) -> dict[str, Any]:
    """A document as it is answered: with `unchanged`, if it was there already, and `warnings`, if anything was lost or
    guessed."""
    found: dict[str, Any] = {"id": stored.id, "chunks": stored.chunks} | ({} if stored.changed else {"unchanged": True})
    return {**found, "warnings": list(stored.warnings)} if stored.warnings else found


async def uploads(request: Request, most: int) -> tuple[list[tuple[str, str, bytes]], dict[str, Scalar]]:
    """Return the `file` parts as `(name, content type, bytes)`, and the part `metadata`.

    Raises:
        APIError: 400, other parts or none; 413, a file is larger than `most` bytes.
    """
    if importlib.util.find_spec("python_multipart") is None:
        raise Unavailable(f"Uploading files needs the package python-multipart: {how_to_install('retrieval')}")
    check_charset(request.headers.get("content-type", ""))
    parts = await form(request, MOST_FILES, 8)
    files, metadata = [], {}
    try:
        for field, part in parts.multi_items():
            if field == "file" and isinstance(part, UploadFile):
                if (part.size or 0) > most:
                    raise TooLarge(f"The file '{(part.filename or '')[:80]}' is larger than {most} bytes.")
                files.append((part.filename or "", part.content_type or "", await part.read()))
            elif field == "metadata" and isinstance(part, str):
                try:
                    metadata = METADATA.validate_json(part, strict=True)
                except ValidationError:
                    raise invalid(
                        "metadata should be a JSON object of at most 64 strings, numbers, true, false and null, of "
                        f"{MOST_METADATA} characters together.",
                        "metadata",
                    ) from None
            elif field == "file":
                raise invalid("A part 'file' should have a filename=\"...\".", "file")
            else:
                raise invalid(f"There is no part '{field[:80]}': 'file', once or more, and 'metadata'.", field[:80])
    finally:
        await parts.close()
    if not files:
        raise invalid("At least one part 'file' is required.", "file")
    return files, metadata


def check_charset(content_type: str) -> None:
    """Refuse a form in another encoding than UTF-8: of those that Python knows, some take time that grows with the
    square of the length.

    Raises:
        APIError: 400.
    """
    from python_multipart.multipart import parse_options_header

    charset = parse_options_header(content_type)[1].get(b"charset", b"utf-8")
    if charset.lower() not in (b"utf-8", b"utf8", b"us-ascii"):
        raise invalid("The form should be in UTF-8; a file's own encoding is named by the part that holds it.", "file")


def read_files(
    parsers: Parsers, files: Sequence[tuple[str, str, bytes]], metadata: dict[str, Scalar], token: CancelToken
) -> list[Document]:
    """Read files as documents of their names."""
    documents = []
    for name, content_type, data in files:
        token.check()
        try:
            found = parsers.parse(data, name, content_type)
        except (BadDocument, TooLarge) as error:
            raise type(error)(f"The file '{name[:80]}' cannot be taken in: {error}.") from error
        documents.append(document_of(name, found, metadata, file_digest(data, metadata)))
    return documents


async def parsed(request: Request, here: Runtime) -> Any:
    """Parse the body as JSON.

    Raises:
        RequestValidationError: the body is not JSON.
    """
    try:
        return await here.bodies.parse(await request.body())
    except json.JSONDecodeError as error:
        found = {"type": "json_invalid", "loc": ("body", error.pos), "ctx": {"error": error.msg}}
        raise RequestValidationError([found], body={}) from None


def read_texts(body: Any, most: int, token: CancelToken) -> list[Document]:
    """Return the documents of a JSON body, each at most `most` bytes of text.

    Raises:
        RequestValidationError: the body is not what it should be.
    """
    try:
        wanted = DocumentsRequest.model_validate(body)
    except ValidationError as error:
        found_all = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(found_all, body=body) from None
    documents = []
    for i, each in enumerate(wanted.documents):
        if len(each.text.encode()) > most:
            raise APIError(
                413, f"The document '{each.id[:80]}' is larger than {most} bytes.", param=f"documents[{i}].text",
                code="document_too_large",
            )  # fmt: skip
        token.check()
        documents.append(Document(each.id, clean(each.text), each.title, each.metadata))
    return documents
