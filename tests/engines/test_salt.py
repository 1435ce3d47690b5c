"""Salts: what one key's prompts leave in a cache is nobody else's, in a slot as in an upstream or in vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest

from tests.engines.driving import generated, prompts, tokens
from waver.engines.base import Sampling
from waver.engines.salt import set_salt
from waver.engines.transformers import TransformersEngine
from waver.engines.upstream.request import Capabilities, body


async def salted(salt: str, work: Callable[[], Any]) -> Any:
    """Do work in a task with a salt."""
    context = copy_context()
    context.run(set_salt, salt)
    return await asyncio.create_task(work(), context=context)


async def test_slots_are_shared_within_a_salt_only(load: Callable[..., TransformersEngine]) -> None:
    engine, prompt = load(), prompts(1, seed=31)[0] + list(range(300, 420))

    async def read(salt: str) -> int:
        before = engine.read_tokens
        answer = await salted(salt, lambda: tokens(engine, prompt, max_tokens=4, ignore_eos=True))
        assert answer == generated(engine, prompt, 4, ignore_eos=True)
        return engine.read_tokens - before

    cold, warm = len(prompt) + 3, 4
    assert [await read(salt) for salt in ("", "a", "b")] == [cold] * 3
    assert [await read(salt) for salt in ("a", "b", "")] == [warm] * 3
    # So it is where the prompt is read for a hidden state, and beside a sequence that runs.
    before = engine.read_tokens
    await salted("c", lambda: engine.hidden_state(prompt))
    assert engine.read_tokens - before == len(prompt)


@pytest.mark.parametrize(("extras", "sent"), [(True, "secret"), (False, None)])
async def test_an_upstream_that_takes_vllms_fields_is_told(
    load: Callable[..., TransformersEngine], extras: bool, sent: str | None
) -> None:
    engine = load()

    async def asked() -> dict[str, Any]:
        return body("m", [1, 2, 3], Sampling(), engine.tokens, Capabilities(extras=extras), 10)

    assert (await salted("secret", asked)).get("cache_salt") == sent
    assert "cache_salt" not in await asked()
