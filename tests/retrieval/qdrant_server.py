"""Start a Qdrant for a test: the real server where one is installed, else the client's own embedded mode behind the
server's REST interface, as no package of Debian or of the Python index holds the server."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Body, FastAPI
from qdrant_client import QdrantClient, models

from tests.conftest import until
from waver.benchmarks.processes import free_port
from waver.benchmarks.processes import running as process


@contextmanager
def qdrant(folder: Path) -> Iterator[str]:
    """Yield the address of a fresh Qdrant."""
    if (program := shutil.which("qdrant")) is None:
        with _stand_in() as url:
            yield url
        return
    port, other = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "QDRANT__SERVICE__HOST": "127.0.0.1",
        "QDRANT__SERVICE__HTTP_PORT": str(port),
        "QDRANT__SERVICE__GRPC_PORT": str(other),
        "QDRANT__STORAGE__STORAGE_PATH": str(folder / "storage"),
        "QDRANT__TELEMETRY_DISABLED": "true",
    }
    with process([program], folder / "qdrant.log", f"{url}/readyz", 60, {**os.environ, **settings}):
        yield url


@contextmanager
def _stand_in() -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(_application(), port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "the stand-in for Qdrant")
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


def _application() -> FastAPI:
    """Return the part of Qdrant's REST interface that Waver uses. Calls run one after the other, as each handler runs
    on the event loop: the embedded mode is not made for threads."""
    app, client = FastAPI(), QdrantClient(":memory:")
    _collections(app, client)
    _points(app, client)
    return app


ONE = "/collections/{name}"


def said(result: Any) -> dict[str, Any]:
    return {"result": result, "status": "ok", "time": 0.0}


def _collections(app: FastAPI, client: QdrantClient) -> None:
    @app.get("/collections")
    async def names() -> Any:
        return said({"collections": [{"name": each.name} for each in client.get_collections().collections]})

    @app.get(f"{ONE}/exists")
    async def exists(name: str) -> Any:
        return said({"exists": client.collection_exists(name)})

    @app.get(ONE)
    async def info(name: str) -> Any:
        return said(client.get_collection(name).model_dump(mode="json", exclude_none=True))

    @app.put(ONE)
    async def create(name: str, body: models.CreateCollection) -> Any:
        return said(
            client.create_collection(
                name,
                vectors_config=body.vectors,
                sparse_vectors_config=body.sparse_vectors,
                metadata=body.metadata,
            )
        )

    @app.delete(ONE)
    async def delete(name: str) -> Any:
        return said(client.delete_collection(name))

    @app.put(f"{ONE}/index")
    async def index(name: str, body: dict[str, Any] = Body()) -> Any:  # noqa: B008
        return said({"operation_id": 0, "status": "completed"})


def _points(app: FastAPI, client: QdrantClient) -> None:
    @app.put(f"{ONE}/points")
    async def upsert(name: str, body: models.PointsList) -> Any:
        return said(client.upsert(name, body.points).model_dump(mode="json"))

    @app.post(f"{ONE}/points/delete")
    async def remove(name: str, body: models.FilterSelector) -> Any:
        return said(client.delete(name, body).model_dump(mode="json"))

    @app.post(f"{ONE}/points/payload")
    async def payload(name: str, body: models.SetPayload) -> Any:
        return said(client.set_payload(name, body.payload, points=body.filter, key=body.key).model_dump(mode="json"))

    @app.post(f"{ONE}/points/query")
    async def query(name: str, body: models.QueryRequest) -> Any:
        found = client.query_points(
            name, query=body.query, using=body.using, limit=body.limit or 10, query_filter=body.filter
        )
        return said(found.model_dump(mode="json"))

    @app.post(f"{ONE}/points/scroll")
    async def scroll(name: str, body: models.ScrollRequest) -> Any:
        points, offset = client.scroll(
            name, scroll_filter=body.filter, limit=body.limit or 10, offset=body.offset, with_payload=body.with_payload
        )
        return said({"points": [each.model_dump(mode="json") for each in points], "next_page_offset": offset})

    @app.post(f"{ONE}/points/count")
    async def count(name: str, body: models.CountRequest) -> Any:
        return said({"count": client.count(name, body.filter, exact=True).count})
