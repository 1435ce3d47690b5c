"""Tokenise and detokenise in vLLM's format, under `/v1` and at the root, where evaluation harnesses look."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from waver.engines.base import forwards_pictures
from waver.engines.vision import vision_of
from waver.server.bodies import BodyRoute
from waver.server.chat_prompt import chat_ids
from waver.server.chat_schemas import TokenizeRequest
from waver.server.errors import invalid
from waver.server.fields import ignored_fields, ignored_header
from waver.server.pictures import sent
from waver.server.piecewise import PiecewiseResponse, pieces
from waver.server.runtime import ready_runtime
from waver.server.sampling import check_ids
from waver.server.schemas import DetokenizeRequest
from waver.server.texts import CHARACTERS_A_TOKEN, check_characters

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/tokenize", summary="Text or messages to token ids")
@router.post("/tokenize", include_in_schema=False)
async def tokenize(request: Request, body: TokenizeRequest) -> Response:
    runtime = ready_runtime(request)
    engine = runtime.engines[runtime.route(body.model).engine]
    ignored = ignored_fields(body, engine.tokens, runtime.config.server.strict)
    most = max(runtime.config.server.max_text_characters, CHARACTERS_A_TOKEN * engine.context_length)
    if (body.prompt is None) == (body.messages is None):
        raise invalid("Either prompt or messages is required.", "prompt")

    def named(ids: list[int]) -> bytes:
        names = engine.tokens.tokenizer.convert_ids_to_tokens(ids) if body.return_token_strs else None
        found = {"count": len(ids), "max_model_len": engine.context_length, "tokens": ids, "token_strs": names}
        return b"".join(pieces(found))

    async with asyncio.timeout_at(runtime.deadline(None)):
        if body.messages is not None:
            tools = [tool.for_template() for tool in body.tools]
            given = sent(body.messages)
            if given and forwards_pictures(engine):
                raise invalid(
                    f"{given[0].place}: only the upstream of engine '{engine.name}' can count a picture's tokens.",
                    given[0].place,
                )
            if given and vision_of(engine) is None:
                raise invalid(f"{given[0].place}: engine '{engine.name}' takes no pictures.", given[0].place)
            pictures = await runtime.pictures.read(given) if given else ()
            ids = (await chat_ids(body, body.messages, engine, runtime.texts, most, tools, pictures)).ids
        else:
            check_characters(body.prompt or "", most, "prompt")
            ids = await runtime.texts.run(engine.tokens.encode, body.prompt or "", body.add_special_tokens)
        return PiecewiseResponse(await runtime.shaping.run(named, ids), headers=ignored_header(ignored))


@router.post("/v1/detokenize", summary="Token ids to text")
@router.post("/detokenize", include_in_schema=False)
async def detokenize(request: Request, body: DetokenizeRequest) -> dict[str, str]:
    runtime = ready_runtime(request)
    tokens = runtime.engines[runtime.route(body.model).engine].tokens
    if len(body.tokens) > (most := runtime.config.server.max_text_characters):
        raise invalid(f"tokens should have at most {most} items.", "tokens")
    check_ids(body.tokens, tokens.vocab_size, "tokens")
    async with asyncio.timeout_at(runtime.deadline(None)):
        return {"prompt": await runtime.texts.run(lambda: str(tokens.tokenizer.decode(body.tokens)))}


@router.get("/v1/tokenizer_info", include_in_schema=False)
@router.get("/tokenizer_info", summary="What a harness must know about the tokenizer")
async def tokenizer_info(request: Request, model: str | None = None) -> dict[str, Any]:
    runtime = ready_runtime(request)
    engine = runtime.engines[runtime.route(model).engine]
    tokenizer = engine.tokens.tokenizer
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": engine.tokens.vocab_size,
        "model_max_length": engine.context_length,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "unk_token": tokenizer.unk_token,
        "chat_template": tokenizer.chat_template,
    }
