"""POST /v1/rerank and /v1/score: how well texts answer a question, by a cross-encoder, in vLLM's format."""

from __future__ import annotations

import time
import uuid
from typing import Any

from fastapi import APIRouter, Request, Response

from waver.retrieval.reranker import Scored
from waver.server.accounting import account_reading
from waver.server.auth import SCOPE_KEY
from waver.server.bodies import BodyRoute
from waver.server.collections import deadline, load_reranker
from waver.server.disconnect import while_connected
from waver.server.errors import invalid
from waver.server.fields import ignored_fields, ignored_header
from waver.server.runtime import ready_runtime
from waver.server.schemas import Body, RerankRequest, ScoreRequest
from waver.server.tenants.meter import current_hold
from waver.server.texts import check_characters

router = APIRouter(route_class=BodyRoute)

MOST_PAIRS = 2048
QUICK = 16
"""Pairs that are scored among the searches; more are scored among the documents that come in."""


@router.post("/v1/rerank", summary="Order documents by how well they answer a question")
@router.post("/v2/rerank", include_in_schema=False)
@router.post("/rerank", include_in_schema=False)
async def rerank(request: Request, response: Response, body: RerankRequest) -> dict[str, Any]:
    ignored = without_effect(request, response, body)
    texts = [each if isinstance(each, str) else each.text for each in body.documents]
    name, scored = await scores(request, body.model, [(body.query, text) for text in texts], "documents")
    order = sorted(range(len(texts)), key=lambda i: -scored.scores[i])
    results = [
        {"index": i, "relevance_score": float(scored.scores[i])}
        | ({"document": {"text": texts[i]}} if body.return_documents else {})
        for i in order[: body.top_n or len(order)]
    ]
    return {"id": f"rerank-{uuid.uuid4().hex}", "model": name, "results": results, **told(scored), **ignored}


@router.post("/v1/score", summary="Scores of pairs of texts")
@router.post("/score", include_in_schema=False)
async def score(request: Request, response: Response, body: ScoreRequest) -> dict[str, Any]:
    ignored = without_effect(request, response, body)
    first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(first) == 1:
        first = first * len(second)
    if not first or len(first) != len(second):
        raise invalid("text_1 should be one text, or as many as text_2, and at least one.", "text_1")
    name, scored = await scores(request, body.model, list(zip(first, second, strict=True)), "text_2")
    return {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": name,
        "data": [{"index": i, "object": "score", "score": float(each)} for i, each in enumerate(scored.scores)],
        **told(scored),
        **ignored,
    }


def without_effect(request: Request, response: Response, body: Body) -> dict[str, Any]:
    """Name the fields that change nothing in a header, and return them for the answer.

    Raises:
        APIError: 400, there are some, and the server is strict.
    """
    ignored = ignored_fields(body, None, ready_runtime(request).config.server.strict)
    response.headers.update(ignored_header(ignored))
    return {"waver": {"ignored": ignored}} if ignored else {}


async def scores(request: Request, model: str | None, pairs: list[tuple[str, str]], param: str) -> tuple[str, Scored]:
    """Score pairs; return the reranker's name, too.

    Raises:
        APIError: 400, too many or too long; 404, no such reranker.
    """
    here = ready_runtime(request)
    if len(pairs) > MOST_PAIRS:
        raise invalid(f"{param} should be at most {MOST_PAIRS} texts.", param)
    for i, pair in enumerate(pairs):
        for text in pair:
            check_characters(text, here.config.server.max_text_characters, f"{param}[{i}]")
    reranker = await load_reranker(here, model)
    quick = len(pairs) <= QUICK
    if (hold := current_hold()) is not None:
        hold.used = await hold.reserve_exactly(await here.library.compute(reranker.count, pairs, quick=quick))
    work = here.jobs.run(
        here.searches if quick else here.ingests,
        lambda token: here.library.compute(reranker.score, pairs, token, quick=quick),
        deadline(here),
    )
    scored = await while_connected(request, work)
    account_reading(here, request.scope.get(SCOPE_KEY), "rerank", reranker.name, scored.tokens)
    return reranker.name, scored


def told(scored: Scored) -> dict[str, Any]:
    """Return the usage, and `warnings` where texts were cut."""
    found: dict[str, Any] = {"usage": {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens}}
    if scored.cut:
        found["warnings"] = [f"{scored.cut} of the texts were longer than the reranker reads, and were cut."]
    return found
