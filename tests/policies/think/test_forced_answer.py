"""Forced answers: within the limit, beside every other policy, and in the trace like all that was written."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.policies.looking import Played, asking, only
from waver.engines import TransformersConfig, load_engine
from waver.engines.base import Engine, Sampling, Step, Unsupported
from waver.engines.tokens import TokenText
from waver.policies.base import Policy, Proceed
from waver.policies.job import Job
from waver.policies.registry import check_engines, parse
from waver.policies.retrieve.l_rag import LRAG
from waver.policies.switch.ead import EntropyAdaptiveDecoding
from waver.policies.switch.random_switch import RandomSwitch
from waver.policies.think.diffadapt import DiffAdapt
from waver.policies.think.forced_answer import ForcedAnswer
from waver.policies.think.strategies import Easy, Hard
from waver.retrieval.base import Document
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.embedder import Embedder
from waver.retrieval.library import Library
from waver.training.pair.world import documents

MODELS = Path(__file__).parents[3] / "models"
QUESTION = "What is 40 + 41 + 87 - 34 + 21 - 83?"
PAIR = {"words": " The answer is", "tokens": 8, "temperature": None, "until": "."}


@pytest.fixture(scope="module")
def pair() -> dict[str, Engine]:
    config = {name: TransformersConfig(model=str(MODELS / name), dtype="float32") for name in ("small", "large")}
    return {name: load_engine(name, each) for name, each in config.items()}


@pytest.fixture(scope="module")
def tokens(pair: dict[str, Engine]) -> TokenText:
    return pair["small"].tokens


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Iterator[Library]:
    made = Library(RetrievalConfig(path=tmp_path_factory.mktemp("collections")))
    made.embedders["all-MiniLM-L6-v2"] = embedder
    made.create("towns").add([Document(each.id, each.text) for each in documents()[:12]])
    yield made
    made.close()


@dataclass
class Rambling(Played):
    """Goes on and on, until its answer has these words: then it says `text`."""

    words: str = " The answer is"

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        start = len(prompt_ids) if sampling.answer_start is None else sampling.answer_start
        _, told, after = self.tokens.decode(prompt_ids[start:]).partition(self.words)
        text = self.text.removeprefix(after) if told else " one" * 2000
        own = replace(sampling, answer_start=None, max_tokens=sampling.max_tokens - len(prompt_ids) + start)
        self.sampled.append(sampling)
        async for step in Played(self.tokens, text, name=self.name, context_length=10_000).generate(prompt_ids, own):
            yield step


async def steps_of(job: Job, *policies: Policy) -> list[Step]:
    steps = []
    async for step in Proceed(policies)(job):
        job.report.observe(step)
        steps.append(step)
    return steps


@pytest.mark.parametrize("limit", [16, 40, 41, 100, 1000])
async def test_an_answer_comes_within_the_limit(tokens: TokenText, limit: int) -> None:
    played = Rambling(tokens, " 72. And more.")
    job = asking(only(played), "played", QUESTION, None, max_tokens=limit, temperature=0.7)
    policy = ForcedAnswer(**PAIR | {"temperature": 0.2})
    steps = await steps_of(job, policy)
    words = tokens.encode(PAIR["words"], add_special_tokens=False)  # type: ignore[arg-type]
    text = tokens.decode([step.token for step in steps])
    assert text.endswith(" one The answer is 72.")
    assert len(steps) <= limit
    assert [step.finish for step in steps[:-1]] == [None] * (len(steps) - 1)
    assert steps[-1].finish == "stop"
    reserve = min(len(words) + 8, limit // 2)
    said = job.report.as_dict()["forced_answer"]
    assert said == {"forced": True, "after": limit - reserve}
    assert {(step.entropy, step.logprob) for step in steps[limit - reserve :][: len(words)]} == {(2.0, -3.0)}
    assert sum(job.report.tokens.values()) == len(steps)
    assert [sampling.temperature for sampling in played.sampled] == [0.7, 0.2]


async def test_an_answer_that_ends_by_itself_is_left_alone(tokens: TokenText) -> None:
    for policies in ((), (ForcedAnswer(**PAIR),)):
        played = Played(tokens, "The answer is 72.")
        job = asking(only(played), "played", QUESTION, None, max_tokens=40)
        steps = await steps_of(job, *policies)
        assert tokens.decode([step.token for step in steps]) == "The answer is 72."
        assert steps[-1].finish == "stop"
    assert job.report.as_dict()["forced_answer"] == {"forced": False}
    assert len(played.asked) == 1


async def test_it_too_has_its_limit(tokens: TokenText) -> None:
    played = Rambling(tokens, " two" * 50)
    job = asking(only(played), "played", QUESTION, None, max_tokens=60)
    steps = await steps_of(job, ForcedAnswer(**PAIR))
    assert tokens.decode([step.token for step in steps]).endswith(" one The answer is" + " two" * 8)
    assert steps[-1].finish == "length"
    assert len(steps) == 60


async def test_braces_are_counted(tokens: TokenText) -> None:
    played = Rambling(tokens, "\\frac{1}{2}} and so on", words="boxed{")
    job = asking(only(played), "played", QUESTION, None, max_tokens=400)
    steps = await steps_of(job, ForcedAnswer())
    assert tokens.decode([step.token for step in steps]).endswith("\nThe final answer is \\boxed{\\frac{1}{2}}")


def with_think_tags() -> TokenText:
    """The bundled tokenizer with think tags, as Qwen3 has them: added tokens that are no control tokens."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "small")
    tokenizer.add_tokens(["<think>", "</think>"])
    return TokenText(tokenizer)


async def test_an_open_think_block_is_closed() -> None:
    thinker = with_think_tags()
    for strategy, closing in ((Hard(), "\n</think>\n\n"), (Easy(), "")):
        job = asking(only(Rambling(thinker, "72}", words="boxed{")), "played", QUESTION, None, max_tokens=400)
        name = type(strategy).__name__.lower()
        steps = await steps_of(job, DiffAdapt(strategy=name), ForcedAnswer())  # type: ignore[arg-type]
        text = thinker.decode([step.token for step in steps])
        assert text.endswith(f" one{closing}\nThe final answer is \\boxed{{72}}")
        assert len(steps) <= int(strategy.share * 400), "the strategy's share holds for both parts"


def test_refused_where_it_cannot_be(tokens: TokenText) -> None:
    job = asking(only(Played(tokens, "")), "played", QUESTION, None, max_tokens=4)
    with pytest.raises(Unsupported, match="limit of 4 tokens leaves no room"):
        ForcedAnswer(**PAIR).possible_jobs(job)
    demanding = replace(job, sampling=Sampling(max_tokens=40, min_tokens=38))
    with pytest.raises(Unsupported, match="no room"):
        ForcedAnswer(**PAIR).possible_jobs(demanding)


async def test_refused_beside_a_grammar_and_on_engines_that_do_not_score(tokens: TokenText) -> None:
    class Mute(Played):
        async def score(self, ids: Any, top_logprobs: int = 0) -> list[Step]:
            raise Unsupported("no", "echo")

    job = asking(only(Mute(tokens, "")), "played", QUESTION, None, grammar='{"type": "object"}')
    with pytest.raises(Unsupported, match="response_format"):
        await ForcedAnswer().check(job)
    with pytest.raises(Unsupported, match="'played' does not score a given text"):
        await ForcedAnswer().check(replace(job, sampling=Sampling()))
    await ForcedAnswer().check(asking(only(Played(tokens, "")), "played", QUESTION, None))


async def test_the_last_tokens_of_a_limit_that_no_reserve_fits_are_the_answer_s(tokens: TokenText) -> None:
    """A policy outside may lower the limit at run time, as passages do."""
    job = asking(only(Rambling(tokens, "")), "played", QUESTION, None, max_tokens=5)
    steps = await steps_of(job, ForcedAnswer(**PAIR))
    assert (len(steps), steps[-1].finish) == (5, "length")


@pytest.mark.parametrize(("longest", "words"), [(4, " The answer is"), (1, " The answer is"), (64, "\nSo:\nit is")])
async def test_sentence_by_sentence(library: Library, longest: int, words: str) -> None:
    """A policy outside that takes an answer in parts, wherever it cuts them, gets the same one."""
    flare = LRAG(collection="towns", gate="flare", threshold=0.0, draft_tokens=longest)
    thinker = with_think_tags()
    played = Rambling(thinker, " 72. And", words=words)
    job = asking(only(played), "played", QUESTION, library, max_tokens=60)
    steps = await steps_of(job, DiffAdapt(strategy="normal"), flare, ForcedAnswer(**PAIR | {"words": words}))
    assert thinker.decode([step.token for step in steps]).endswith(f" one\n</think>\n\n{words} 72.")
    said = job.report.as_dict()["forced_answer"]
    assert (said["forced"], steps[said["after"]].entropy) == (True, 2.0)
    assert len(steps) < 60


@pytest.mark.parametrize(
    "inner",
    [None, EntropyAdaptiveDecoding(threshold=0.05, monitor="small", window=1, min_tokens=1), RandomSwitch(rate=0.5)],
    ids=lambda policy: policy and policy.name,
)
async def test_on_the_bundled_pair(pair: dict[str, Engine], inner: Policy | None) -> None:
    """The measured entropies of the forced words are those of the engine, and both engines can be cut off."""
    policies = [ForcedAnswer(**PAIR), *([inner] if inner else [])]
    job = asking(pair, "large", QUESTION, None, max_tokens=45)
    job.report.parameters = {name: engine.parameters for name, engine in pair.items()}
    check_engines(policies, job)
    await policies[0].check(job)
    steps = await steps_of(job, *policies)
    large = pair["large"]
    text = large.tokens.decode([step.token for step in steps])
    said = job.report.as_dict()["forced_answer"]
    words = large.tokens.encode(" The answer is", add_special_tokens=False)
    at = said["after"]
    assert said["forced"]
    assert [step.token for step in steps[at : at + len(words)]] == words
    assert text.endswith(".")
    assert len(steps) <= 45
    scored = await large.score([*job.prompt_ids, *(step.token for step in steps)])
    for mine, own in zip(steps[at : at + len(words)], scored[len(job.prompt_ids) - 1 + at :], strict=False):
        assert (mine.entropy, mine.logprob) == pytest.approx((own.entropy, own.logprob), abs=1e-4)
    if isinstance(inner, RandomSwitch):
        assert min(job.report.tokens.values()) > 0


async def test_beside_a_lookup(pair: dict[str, Engine], library: Library) -> None:
    """Behind the passages that were looked up, whichever gate did."""
    for gate, limit in product(("always", "entropy", "flare"), (8, 10, 60)):
        lookup = {"name": "l_rag", "collection": "towns", "top_k": 1, "gate": gate, "draft_tokens": 2}
        policies = parse([{"name": "forced_answer", **PAIR, "words": "..."}, lookup], pair)
        assert [policy.name for policy in policies] == ["l_rag", "forced_answer"]
        job = asking(pair, "large", "What is the bird of Wilfort?", library, max_tokens=limit)
        check_engines(policies, job)
        steps = await steps_of(job, *policies)
        assert len(steps) <= limit
        assert [step.finish for step in steps[:-1]] == [None] * (len(steps) - 1)
        assert steps[-1].finish in ("stop", "length")
        text = pair["large"].tokens.decode([step.token for step in steps])
        report = job.report.as_dict()
        assert ("..." in text) == report["forced_answer"]["forced"] == (limit < 12), (gate, limit)
        if gate == "always":
            assert report["retrieval"]["passages"]
