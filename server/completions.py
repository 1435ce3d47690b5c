"""POST /v1/completions: continue prompts given as strings or token ids, one or many."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from waver.engines.base import ContextExceeded
from waver.engines.tokens import TokenText
from waver.policies.job import UserTurn
from waver.server.answer import Answer, FinishedChoice
from waver.server.assembly import Piece
from waver.server.auth import SCOPE_KEY
from waver.server.bodies import BodyRoute
from waver.server.errors import invalid
from waver.server.fields import ignored_fields, refuse_unserved
from waver.server.logprobs import text_entries
from waver.server.piecewise import Listed
from waver.server.plan import caller, make_plan
from waver.server.planned import Prompt
from waver.server.runtime import ready_runtime
from waver.server.sampling import check_ids, truncated
from waver.server.schemas import CompletionRequest
from waver.server.sse import STREAMED
from waver.server.texts import check_length, check_tokens

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/completions", summary="Continue a text", responses=STREAMED)
async def completions(request: Request, body: CompletionRequest) -> Response:
    runtime = ready_runtime(request)
    refuse_unserved(body)
    route = runtime.route(body.model, body.policy, request.scope.get(SCOPE_KEY))
    tokens = runtime.engines[route.engine].tokens
    ignored = ignored_fields(body, tokens, runtime.config.server.strict)
    given = as_list(body.prompt)
    if len(given) > runtime.config.server.max_choices:
        raise invalid(f"At most {runtime.config.server.max_choices} prompts can be sent at once.", "prompt")
    context, deadline = runtime.context(route), runtime.deadline(body.timeout)

    cut = body.truncate_prompt_tokens is not None

    def work() -> tuple[list[tuple[int, ...]], list[str | None]]:
        ids = [truncated(prompt_ids(prompt, tokens, context, cut), body, context, route) for prompt in given]
        texts = [prompt if isinstance(prompt, str) else tokens.decode(prompt) if body.echo else "" for prompt in given]
        return ids, [text if body.echo else None for text in texts]

    for prompt in given:
        check_prompt(prompt, context, cut)
    async with asyncio.timeout_at(deadline):
        ids, echoes = await runtime.texts.run(work)
    limit = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    limit = 16 if limit is None else limit
    wanted = body.logprobs is not None
    prompts = [
        Prompt(these, echo, text_question(prompt, tokens) if isinstance(prompt, str) else None)
        for these, echo, prompt in zip(ids, echoes, given, strict=True)
    ]
    who = caller(request, body)
    async with asyncio.timeout_at(deadline):
        plan = await make_plan(runtime, route, body, who, prompts, limit, wanted, body.logprobs or 0, deadline)
    formatter = TextFormatter(tokens, wanted, body.logprobs or 0, plan.choices > 1, body.return_tokens_as_token_ids)
    return await Answer(body, plan, formatter, runtime, ignored).respond(request)


def text_question(text: str, tokens: TokenText) -> UserTurn:
    """Make the user's turn of a prompt in plain text, which is the question itself."""

    def with_context(words: str) -> list[int]:
        opening = tokens.encode("")  # what every text begins with, such as a token for its beginning
        return [*opening, *tokens.encode_plain(words), *tokens.encode(text, add_special_tokens=False)]

    return UserTurn(text, with_context)


class TextFormatter:
    """Response objects of text completions: `text`, and log-probabilities in the older format."""

    prefix = "cmpl"
    whole = chunk = "text_completion"
    one_prompt = False

    def __init__(self, tokens: TokenText, logprobs: bool, top: int, several: bool, as_ids: bool = False) -> None:
        self._wanted = logprobs
        self._entries = text_entries(tokens, top, as_ids)
        self._several = several

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._choice(index, "", None) if self._several else None

    def part(self, piece: Piece) -> dict[str, Any]:
        tokens = (piece.ended_by,) if piece.ended_by else piece.tokens
        made = None
        if tokens and self._wanted:
            made = {name: list(map(entry, tokens)) for name, entry in self._entries.items()}
        return self._choice(piece.index, piece.text, made, piece.finish)

    def complete(self, choice: FinishedChoice) -> dict[str, Any]:
        # The token that ended the answer is listed too: harnesses count on one entry for each token.
        tokens = [*choice.tokens, *([choice.ended_by] if choice.ended_by else [])]
        made = {name: Listed(tokens, entry) for name, entry in self._entries.items()}
        return self._choice(choice.index, choice.text, made if self._wanted else None, choice.finish)

    def _choice(self, index: int, text: str, logprobs: Any, finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def as_list(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """List the prompts of a request.

    Raises:
        APIError: 400, there is none.
    """
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise invalid("prompt should not be an empty list.", "prompt")
    if isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def check_prompt(prompt: str | list[int], context: int, cut: bool) -> None:
    """Refuse, by its length alone, a prompt that cannot fit a context. `cut`: it will be truncated.

    Raises:
        ContextExceeded: it cannot.
    """
    if isinstance(prompt, str):
        check_length([prompt], context, "prompt")
    elif len(prompt) > context and not cut:
        raise ContextExceeded(context, f"the prompt has {len(prompt)} tokens")


def prompt_ids(prompt: str | list[int], tokens: TokenText, context: int, cut: bool) -> tuple[int, ...]:
    """Encode one prompt. `cut`: it will be truncated, so that it may be too long for the context.

    Raises:
        APIError: 400, an unknown id, or nothing to go on from.
    """
    if isinstance(prompt, str):
        if not cut:
            check_tokens([prompt], tokens, context, "prompt")
        ids = tokens.encode(prompt)
    else:
        check_ids(prompt, tokens.vocab_size, "prompt")
        ids = prompt
    if not ids:
        raise invalid("prompt should hold at least one token.", "prompt")
    return tuple(ids)
