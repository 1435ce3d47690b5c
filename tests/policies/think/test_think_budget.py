"""A think block ends with its budget, whoever opened it, and the answer follows within the request's limit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.policies.looking import Played, asking, only
from tests.policies.think.test_forced_answer import MODELS, QUESTION, Rambling, steps_of, with_think_tags
from waver.engines.base import Step, Unsupported
from waver.engines.tokens import TokenText
from waver.policies.job import Job
from waver.policies.think.diffadapt import DiffAdapt
from waver.policies.think.forced_answer import ForcedAnswer
from waver.policies.think.think_budget import ThinkBudget

ENOUGH = " Enough."


@pytest.fixture(scope="module")
def thinker() -> TokenText:
    return with_think_tags()


def thinking(thinker: TokenText, opened: bool = True, **options: Any) -> Job:
    """A job for an engine that says one word until its block is closed, and then `Done.`"""
    job = asking(only(Rambling(thinker, "Done.", words="</think>\n\n")), "played", QUESTION, None, **options)
    assert thinker.think is not None
    return replace(job, prompt_ids=(*job.prompt_ids, thinker.think[0])) if opened else job


@pytest.mark.parametrize("budget", [0, 1, 7])
async def test_a_block_that_the_prompt_opened(thinker: TokenText, budget: int) -> None:
    job = thinking(thinker, max_tokens=100)
    steps = await steps_of(job, ThinkBudget(tokens=budget, words=ENOUGH))
    text = thinker.decode([step.token for step in steps])
    assert text.endswith(f"{ENOUGH}\n</think>\n\nDone.")
    thought = text.removesuffix(f"{ENOUGH}\n</think>\n\nDone.")
    assert len(thinker.encode_plain(thought)) == budget
    assert job.report.extra["think_budget"] == {"ended": True, "after": budget}
    said = steps[budget:][: len(thinker.encode_plain(ENOUGH))]
    assert {(step.entropy, step.logprob) for step in said} == {(2.0, -3.0)}
    assert [step.finish for step in steps].count(None) == len(steps) - 1
    assert steps[-1].finish == "stop"


async def test_a_block_that_a_strategy_opened(thinker: TokenText) -> None:
    job = thinking(thinker, opened=False, max_tokens=400)
    steps = await steps_of(job, DiffAdapt(strategy="hard"), ThinkBudget(tokens=9, words=ENOUGH))
    assert thinker.decode([step.token for step in steps]).endswith(f"{ENOUGH}\n</think>\n\nDone.")
    assert job.report.extra["think_budget"] == {"ended": True, "after": 9}


async def test_a_block_that_the_model_opened(thinker: TokenText) -> None:
    for budget, ended in ((3, True), (400, False)):
        text = "<think> one one one one one one</think> Done."
        job = asking(only(Played(thinker, text)), "played", QUESTION, None, max_tokens=100)
        steps = await steps_of(job, ThinkBudget(tokens=budget, words=""))
        written = thinker.decode([step.token for step in steps])
        assert (written == text) is not ended
        assert job.report.extra["think_budget"]["ended"] is ended
        assert thinker.think is not None
        inside = [step.token for step in steps].index(thinker.think[1]) - 1
        assert inside == budget + len(thinker.encode_plain("\n")) if ended else inside > 5


async def test_the_request_limit_holds(thinker: TokenText) -> None:
    for limit in (3, 12, 20):
        job = thinking(thinker, max_tokens=limit)
        steps = await steps_of(job, ThinkBudget(tokens=2, words=ENOUGH))
        assert len(steps) <= limit
        assert steps[-1].finish in ("stop", "length")
        if not job.report.extra["think_budget"]["ended"]:
            assert (len(steps), steps[-1].finish) == (limit, "length")


async def test_beside_a_forced_answer(thinker: TokenText) -> None:
    job = thinking(thinker, max_tokens=200)
    steps = await steps_of(job, ForcedAnswer(words=" So", tokens=8, until="."), ThinkBudget(tokens=6, words=ENOUGH))
    assert thinker.decode([step.token for step in steps]).endswith(f"{ENOUGH}\n</think>\n\nDone.")
    assert steps[-1].finish == "stop"


async def test_refused_where_it_cannot_be(thinker: TokenText) -> None:
    plain = TokenText.load(str(MODELS / "small"))
    with pytest.raises(Unsupported, match="'played' has not"):
        await ThinkBudget().check(asking(only(Played(plain, "")), "played", QUESTION, None))

    class Mute(Played):
        async def score(self, ids: Any, top_logprobs: int = 0) -> list[Step]:
            raise Unsupported("no", "echo")

    with pytest.raises(Unsupported, match="does not score"):
        await ThinkBudget().check(asking(only(Mute(thinker, "")), "played", QUESTION, None))
