"""POST /v1/embeddings: the vectors that retrieval uses, in OpenAI's format."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from waver.retrieval.base import Vectors
from waver.retrieval.cancellation import CancelToken
from waver.retrieval.embedder import Embedder
from waver.server.accounting import account_reading
from waver.server.auth import SCOPE_KEY
from waver.server.bodies import BodyRoute
from waver.server.collections import deadline
from waver.server.disconnect import while_connected
from waver.server.errors import APIError, invalid
from waver.server.fields import ignored_fields, ignored_header
from waver.server.permissions import check_model
from waver.server.piecewise import Listed, PiecewiseResponse, pieces
from waver.server.runtime import ready_runtime
from waver.server.schemas import EmbeddingsRequest
from waver.server.tenants.meter import current_hold

router = APIRouter(route_class=BodyRoute)

MOST_INPUTS = 2048
QUICK = 16
"""Texts that are embedded among the searches; more are embedded among the documents that come in."""


@router.post("/v1/embeddings", summary="Texts to vectors")
async def embeddings(request: Request, body: EmbeddingsRequest) -> Response:
    here = ready_runtime(request)
    ignored = ignored_fields(body, None, here.config.server.strict)
    embedders = here.library.embedders
    name = body.model or here.library.config.embedder
    if name not in embedders:
        message = f"There is no embedder '{name[:80]}'; there are: {', '.join(embedders)}."
        raise APIError(404, message, param="model", code="model_not_found")
    check_model(name, embedders)
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not texts or len(texts) > MOST_INPUTS:
        raise invalid(f"input should be one text, or 1 to {MOST_INPUTS} texts.", "input")
    wanted = [text for text in texts if isinstance(text, str)]
    if len(wanted) < len(texts):
        raise invalid("input should be texts: token ids of another tokenizer mean nothing to the embedder.", "input")
    quick = len(wanted) <= QUICK
    if (hold := current_hold()) is not None:
        hold.used = await hold.reserve_exactly(
            sum(await here.library.compute(embedders[name].count, wanted, quick=quick))
        )
    work = here.jobs.run(
        here.searches if quick else here.ingests,
        lambda token: here.library.compute(embed, embedders[name], wanted, body.dimensions, token, quick=quick),
        deadline(here),
    )
    vectors, tokens = await while_connected(request, work)
    account_reading(here, request.scope.get(SCOPE_KEY), "embedding", name, tokens)

    def entry(i: int) -> dict[str, Any]:
        return {"object": "embedding", "index": i, "embedding": encode(vectors[i], body.encoding_format)}

    def shown() -> bytes:
        data = Listed(range(len(vectors)), entry)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        report = {"waver": {"ignored": ignored}} if ignored else {}
        return b"".join(pieces({"object": "list", "data": data, "model": name, "usage": usage, **report}))

    return PiecewiseResponse(await here.shaping.run(shown), headers=ignored_header(ignored))


def embed(
    embedder: Embedder, texts: list[str], dimensions: int | None, token: CancelToken | None = None
) -> tuple[Vectors, int]:
    """Return unit vectors `[texts, dimension]` and the number of tokens read.

    Raises:
        APIError: 400, a text is empty or longer than the embedder reads, or its vectors have other dimensions.
    """
    if dimensions is not None and dimensions != embedder.dimension:
        raise invalid(f"dimensions should be {embedder.dimension}: '{embedder.name}' has no others.", "dimensions")
    for i, text in enumerate(texts):
        if not text:
            raise invalid(f"input[{i}] is empty.", "input")
        if len(text) > (most := embedder.most_characters):
            message = f"input[{i}] has {len(text)} characters; '{embedder.name}' reads {most} at most."
            raise invalid(message, "input", "context_length_exceeded")
    counts = embedder.count(texts)
    for i, count in enumerate(counts):
        if count > embedder.most_tokens:
            message = f"input[{i}] has {count} tokens; '{embedder.name}' reads {embedder.most_tokens} at most."
            raise invalid(message, "input", "context_length_exceeded")
    return embedder.embed(texts, token), sum(counts)


def encode(vector: Vectors, form: str) -> list[float] | str:
    """Encode a vector as numbers, or as base64 of little-endian float32, which the SDK asks for."""
    data = np.asarray(vector, "<f4")
    return base64.b64encode(data.tobytes()).decode() if form == "base64" else data.tolist()
