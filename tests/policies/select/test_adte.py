"""ADTE as a policy: views of a question, the orders of labels from earlier requests, and what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.policies.looking import asking, only
from waver.engines.base import Sampling, Step, Unsupported
from waver.engines.tokens import TokenText
from waver.entropy.debiased import debiased_entropy, orders, stationary_prior
from waver.policies.answer import Answer
from waver.policies.base import Proceed
from waver.policies.job import Caller, Job
from waver.policies.registry import PolicyError, parse
from waver.policies.select.adte import Adte
from waver.policies.stores import Stores

OPTION = re.compile(r"^([A-Z])\. (.+)$", re.MULTILINE)
LABELS = ["fish", "bird", "cow"]


@dataclass
class Chooser:
    """An engine that gives each label a probability, a function of the label and of its place among the options; asked
    for more than a letter it thinks aloud."""

    tokens: TokenText
    belief: Mapping[str, float]
    first: float = 0.0
    """Added to the logit of what stands first."""
    name: str = "chooser"
    parameters: int = 1
    context_length: int = 1024
    asked: list[str] = field(default_factory=list)
    thoughts: int = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        prompt = self.tokens.decode(prompt_ids)
        if sampling.max_tokens > 1:
            self.thoughts += 1
            ids = self.tokens.encode("Well.", add_special_tokens=False)
            for i, token in enumerate(ids, 1):
                yield Step(token, -0.1, 0.3, self.name, finish="stop" if i == len(ids) else None)
            return
        self.asked.append(prompt)
        shown = OPTION.findall(prompt)
        logits = [math.log(self.belief[label]) + self.first * (i == 0) for i, (_, label) in enumerate(shown)]
        whole = sum(map(math.exp, logits))
        listed = [
            (self.tokens.encode(f" {letter}", add_special_tokens=False)[-1], logit - math.log(whole))
            for (letter, _), logit in zip(shown, logits, strict=True)
        ]
        listed.sort(key=lambda each: -each[1])
        yield Step(listed[0][0], listed[0][1], 0.5, self.name, tuple(listed[: sampling.top_logprobs]), "length")

    async def score(self, ids: Sequence[int], top_logprobs: int = 0) -> list[Step]:
        return [Step(token, -3.0, 2.0, self.name) for token in ids[1:]]


def job_of(engine: Chooser, stores: Stores | None = None, user: str = "anna", extra: int = 10**6, **how: Any) -> Job:
    job = asking(only(engine), engine.name, "What swims?", None, **how)  # type: ignore[arg-type]
    services = replace(job.services, stores=stores, extra_tokens=extra)
    messages = [{"role": "user", "content": "What swims?"}]
    return replace(job, services=services, messages=messages, caller=Caller("key", user))


async def play(job: Job, **options: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    policy = Adte(**{"labels": LABELS, **options})
    await policy.check(job)
    ids = []
    async for step in Proceed((policy,))(job):
        job.report.observe(step)
        ids.append(step.token)
    text = job.writer.tokens.decode(ids)
    await policy.after(job, Answer(text, tuple(ids), "stop"))
    report = job.report.as_dict()
    return text, report["label"], report


async def test_views_take_turns_with_the_order_of_options(tokens: TokenText) -> None:
    engine = Chooser(tokens, {"fish": 0.5, "bird": 0.3, "cow": 0.2}, first=1.5)
    text, told, report = await play(job_of(engine), views=12, keep=1.0)
    assert text == told["chosen"] == "fish"
    assert len(engine.asked) == told["views"] == 12
    assert "What swims?\n\nWhich of these is right?\nA. fish\nB. bird\nC. cow\n\nAnswer with" in engine.asked[0]
    assert len({tuple(OPTION.findall(prompt)) for prompt in engine.asked}) > 3
    odds = {label: math.exp(1.5) * p if i == 0 else p for i, (label, p) in enumerate(engine.belief.items())}
    assert told["probabilities"]["fish"] < odds["fish"] / sum(odds.values()), "what stands first gains less"
    assert sum(told["probabilities"].values()) == pytest.approx(1)
    assert report["discarded_tokens"] == 12
    again = Chooser(tokens, engine.belief, first=1.5)
    await play(job_of(again), views=12, keep=1.0)
    assert again.asked == engine.asked
    other = Chooser(tokens, engine.belief, first=1.5)
    await play(job_of(other, seed=5), views=12, keep=1.0)
    assert other.asked[0] == engine.asked[0]
    assert other.asked != engine.asked


async def test_the_most_confident_views_are_averaged(tokens: TokenText) -> None:
    engine = Chooser(tokens, {"fish": 0.4, "bird": 0.35, "cow": 0.25}, first=2.0)
    _, told, _ = await play(job_of(engine), views=10, keep=0.3, measure="shannon")
    leading = [OPTION.findall(prompt)[0][1] for prompt in engine.asked]
    assert len(told["kept"]) == 3
    assert {leading[i] for i in told["kept"]} == {"fish"}, "the views with the likeliest label first are the surest"
    _, told, _ = await play(job_of(engine), views=10, keep=0.05, measure="tsallis", q=0.5)
    assert len(told["kept"]) == 1
    assert "orders" not in told


async def test_orders_follow_earlier_predictions_of_one_caller(tokens: TokenText, tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    likes_fish = {"fish": 0.90, "bird": 0.06, "cow": 0.04}
    engine = Chooser(tokens, likes_fish)
    options = {"views": 2, "warmup": 2, "keep": 0.5}
    for number in range(2):
        _, told, _ = await play(job_of(engine, stores), **options)
        assert told["orders"] == dict.fromkeys(LABELS, 0.1)
        assert told["learned_from"] == number
    engine.belief = {"fish": 0.05, "bird": 0.90, "cow": 0.05}
    _, told, _ = await play(job_of(engine, stores), **options)
    m = [[likes_fish[label], 0.0, 0.0] for label in LABELS]
    expected = orders(stationary_prior(m))
    assert list(told["orders"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert told["orders"]["fish"] == pytest.approx(0.9)
    _, told, _ = await play(job_of(engine, stores, user="bert"), **options)
    assert told["learned_from"] == 0, "another user's predictions are another's"
    _, told, _ = await play(job_of(engine, stores), labels=["fish", "bird"], **options)
    assert told["learned_from"] == 0, "and so are those of other labels"
    unsure = Chooser(tokens, {"fish": 0.4, "bird": 0.35, "cow": 0.25})
    for _ in range(2):
        _, told, _ = await play(job_of(unsure, stores), **options)
        assert told["learned_from"] == 3, "an unsure prediction does not enter"
    await play(job_of(engine, stores), learn=False, **options)
    _, told, _ = await play(job_of(unsure, stores), **options)
    assert told["learned_from"] == 3
    stores.close()
    reopened = Stores(tmp_path)
    _, told, _ = await play(job_of(unsure, reopened), **options)
    assert told["learned_from"] == 3
    reopened.close()


async def test_a_given_prior_ranks_and_adjusts(tokens: TokenText) -> None:
    belief = {"fish": 0.6, "bird": 0.3, "cow": 0.1}
    prior = [0.8, 0.1, 0.1]
    engine = Chooser(tokens, belief, first=1.0)
    text, told, _ = await play(job_of(engine), views=6, keep=0.2, prior=prior)
    q = orders(prior)
    assert list(told["orders"].values()) == pytest.approx(q.tolist())
    assert "learned_from" not in told
    rows = []
    for prompt in engine.asked:
        shown = [label for _, label in OPTION.findall(prompt)]
        weights = {label: belief[label] * (math.e if i == 0 else 1) for i, label in enumerate(shown)}
        rows.append([weights[label] / sum(weights.values()) for label in LABELS])
    assert told["kept"] == [int(debiased_entropy(rows, q).argmin())]
    text, told, _ = await play(job_of(Chooser(tokens, belief)), views=2, prior=prior, adjust=True)
    assert text == "bird", "0.3 / 0.1 is more than 0.6 / 0.8"
    assert told["probability"] == pytest.approx(3 / (0.75 + 3 + 1))


async def test_reasoned_views_think_first(tokens: TokenText) -> None:
    engine = Chooser(tokens, {"fish": 0.5, "bird": 0.3, "cow": 0.2})
    _, told, report = await play(job_of(engine), views=4, view="reasoned", text_tokens=20)
    assert engine.thoughts == told["views"] == 4
    assert all("then say which option is right" in prompt for prompt in engine.asked)
    assert all(prompt.endswith("Well.\nThe letter is") for prompt in engine.asked)
    spoken = len(tokens.encode("Well.", add_special_tokens=False))
    assert report["discarded_tokens"] == 4 * (spoken + 1)
    assert Adte(views=5, view="reasoned").extra_sequences == 10


async def test_a_spent_allowance_ends_views(tokens: TokenText) -> None:
    engine = Chooser(tokens, {"fish": 0.5, "bird": 0.3, "cow": 0.2})
    text, told, _ = await play(job_of(engine, extra=2), views=6)
    assert (text, told["views"], told["ended"]) == ("fish", 3, "extra_tokens"), "the first view is always finished"


async def test_what_is_refused(tokens: TokenText) -> None:
    engine = Chooser(tokens, {"fish": 0.5, "bird": 0.3, "cow": 0.2})
    with pytest.raises(Unsupported, match="leave out other forms of structured output"):
        await play(job_of(engine, grammar="{}"))
    with pytest.raises(Unsupported, match="send a user's message"):
        await play(replace(job_of(engine), question=None))
    with pytest.raises(Unsupported, match="no room for a view"):
        await play(job_of(replace(engine, context_length=30)))
    for given, words in (
        ({"labels": ["a"]}, "at least 2 items"),
        ({"labels": ["a", "A "]}, "labels are all different"),
        ({"low": 0.5, "high": 0.2}, "low is at most high"),
        ({"prior": [0.5, 0.5], "labels": LABELS}, "prior has a number above 0 for each label"),
        ({"measure": "best"}, "one of|'adte'"),
    ):
        with pytest.raises(PolicyError, match=words):
            parse([{"name": "adte", **given}], only(engine))  # type: ignore[arg-type]
