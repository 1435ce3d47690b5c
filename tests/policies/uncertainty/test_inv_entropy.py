"""Inv-Entropy as a policy: what is drawn for each measure, what is done above a level, bounds and refusals."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.policies.looking import asking
from waver.engines.base import Sampling, Step, Unsupported
from waver.engines.fingerprint import fingerprint
from waver.engines.tokens import TokenText
from waver.isotonic import Isotonic
from waver.policies.base import Proceed
from waver.policies.job import Job
from waver.policies.registry import PolicyError, parse
from waver.policies.report import Report
from waver.policies.uncertainty.calibration import Calibration
from waver.policies.uncertainty.inv_entropy import InvEntropy
from waver.policies.uncertainty.measures import MEASURES

MODELS = Path(__file__).parents[3] / "models"
QUESTION = "What is the capital of Velmora?"


@dataclass
class Speaker:
    """An engine that knows an answer or guesses: to any other wording, and at every draw, something else."""

    tokens: TokenText
    knows: bool
    name: str = "speaker"
    parameters: int = 1
    context_length: int = 1024
    exposes: frozenset[str] = frozenset()
    patience: float = 0.0
    asked: list[str] = field(default_factory=list)
    sampled: list[Sampling] = field(default_factory=list)
    open: int = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        prompt = self.tokens.decode(prompt_ids)
        self.asked.append(prompt)
        self.sampled.append(sampling)
        if "other ways to ask" in prompt:
            said = "\n".join(f"{i}. Which town number {i} is it?" for i in range(1, 12))
        elif "List up to" in prompt:
            said = "city, town, place"
        elif "(A) True" in prompt:
            said = "A"
        else:
            guess = random.Random(f"{prompt}:{sampling.seed}").choice(["Arn", "Bel", "Cor", "Dun", "Eth", "Fen"])
            said = "Oster." if self.knows else f"{guess}."
        ids = [*self.tokens.encode(said, add_special_tokens=False), self.tokens.eos_ids[0]][: sampling.max_tokens]
        self.open += 1
        try:
            for i, token in enumerate(ids, 1):
                await asyncio.sleep(self.patience)
                finish: Any = None if i < len(ids) else "stop" if token in self.tokens.eos_ids else "length"
                b = self.tokens.encode("B", add_special_tokens=False)[0]
                top = ((token, math.log(0.6)), (b, math.log(0.2)))[: sampling.top_logprobs]
                yield Step(token, -0.5, 0.01 if self.knows else 1.5, self.name, top, finish=finish)
        finally:
            self.open -= 1

    async def score(self, ids: Sequence[int], top_logprobs: int = 0) -> list[Step]:
        return [Step(token, -3.0, 2.0, self.name) for token in ids[1:]]


def job_of(*engines: Speaker, extra: int = 10**6, **sampling: Any) -> Job:
    named: dict[str, Any] = {each.name: each for each in engines}
    job = asking(named, engines[0].name, QUESTION, None, **sampling)
    services = replace(job.services, extra_tokens=extra)
    report = Report(parameters=dict.fromkeys(named, 1))
    return replace(job, services=services, report=report, messages=[{"role": "user", "content": QUESTION}])


async def play(job: Job, **options: Any) -> tuple[str, dict[str, Any]]:
    (policy,) = parse([{"name": "inv_entropy", "similarity": "words", **options}], job.services.engines)
    await policy.check(job)
    ids, last = [], None
    async for step in Proceed((policy,))(job):
        job.report.observe(step)
        ids.append(step.token)
        last = step
    assert last is not None
    assert last.finish in ("stop", "length", "content_filter")
    return job.writer.tokens.decode(ids), job.report.as_dict()


async def test_every_measure_tells_guessing_from_knowing(tokens: TokenText) -> None:
    found = {}
    for knows in (True, False):
        engine = Speaker(tokens, knows)
        _, report = await play(job_of(engine), also=list(MEASURES))
        found[knows] = report["uncertainty"]["scores"]
        assert len(engine.asked) == 1 + 1 + 10 * 5 + 1, "the answer, one list of paraphrases, answers, a verdict"
    assert set(found[True]) == set(MEASURES)
    rising = set(MEASURES) - {"p_true", "predictive_entropy", "max_py_x", "wd_px_py"}
    for name in rising:
        assert found[False][name] > found[True][name], name
    assert found[True]["semantic_entropy"] == found[True]["self_consistency"] == found[True]["deg_mat"] == 0
    assert found[True]["inv_entropy"] == pytest.approx(found[True]["nr_inv_entropy"]), "all answers are the same"
    assert found[True]["p_true"] == pytest.approx(1 - 0.6 / 0.8)
    assert found[True]["predictive_entropy"] == pytest.approx(0.5)
    assert (found[True]["mean_entropy"], found[False]["max_entropy"]) == (0.01, 1.5)


@pytest.mark.parametrize(
    ("measure", "draws"),
    [("mean_entropy", 0), ("p_true", 1), ("semantic_entropy", 5), ("inv_entropy", 51)],
)
async def test_a_measure_draws_what_it_needs(tokens: TokenText, measure: str, draws: int) -> None:
    engine = Speaker(tokens, knows=False)
    text, report = await play(job_of(engine), measure=measure)
    assert len(engine.asked) == 1 + draws
    told = report["uncertainty"]
    assert (told["action"], told["above"]) == ("reported", False)
    assert sum(told["tokens"].values()) == report.get("discarded_tokens", 0)
    assert report["tokens"] == {"speaker": len(tokens.encode(text, add_special_tokens=False)) + 1}
    assert InvEntropy(measure=measure).extra_sequences in range(draws, draws + 3)


async def test_prompts_and_settings_of_the_evidence(tokens: TokenText) -> None:
    engine = Speaker(tokens, knows=False)
    job = replace(
        job_of(engine), messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": QUESTION}]
    )
    _, report = await play(job, perturbations=3, replications=2, temperature=0.9, details=True)
    assert len(report["uncertainty"]["variants"]) == 4
    assert [len(own) for own in report["uncertainty"]["answers"]] == [2, 2, 2, 2]
    answers = [(p, s) for p, s in zip(engine.asked, engine.sampled, strict=True) if "Answer concisely" in p]
    assert len(answers) == 8
    assert all("Be kind." in prompt for prompt, _ in answers)
    assert {own.temperature for _, own in answers} == {0.9}
    assert len({own.seed for _, own in answers}) == 8
    assert sum("Which town number 2" in prompt for prompt, _ in answers) == 2


async def test_gaap_makes_wordings(tokens: TokenText) -> None:
    engine = Speaker(tokens, knows=False)
    _, report = await play(job_of(engine), perturb="gaap", perturbations=6, replications=1, details=True)
    variants = report["uncertainty"]["variants"]
    assert variants[0] == QUESTION
    assert len(variants) == 7
    assert any("city" in each or "place" in each for each in variants)


@pytest.mark.parametrize("level", [0.2, 99.0])
async def test_it_says_so_behind_the_answer(tokens: TokenText, level: float) -> None:
    engine = Speaker(tokens, knows=False)
    job = job_of(engine)
    text, report = await play(job, measure="self_consistency", level=level, then="say")
    above = level < 1
    assert text.endswith("(I am not certain of this answer.)") is above
    assert report["uncertainty"]["action"] == ("said" if above else "reported")
    assert engine.open == 0


async def test_another_engine_answers_instead(tokens: TokenText) -> None:
    small, large = Speaker(tokens, knows=False), Speaker(tokens, knows=True, name="large")
    options = {"measure": "self_consistency", "level": 0.2, "then": "engine", "engine": "large"}
    text, report = await play(job_of(small, large), **options)
    assert (text, report["tokens"]["speaker"], report["uncertainty"]["action"]) == ("Oster.", 0, "engine")
    assert report["discarded_tokens"] == sum(report["uncertainty"]["tokens"].values())
    sure = Speaker(tokens, knows=True)
    text, report = await play(job_of(sure, Speaker(tokens, knows=False, name="large")), **options)
    assert (text, report["tokens"]["large"]) == ("Oster.", 0)
    assert report["discarded_tokens"] == sum(report["uncertainty"]["tokens"].values()) - report["tokens"]["speaker"]


async def test_it_refuses(tokens: TokenText) -> None:
    job = job_of(Speaker(tokens, knows=False))
    text, report = await play(job, measure="max_entropy", level=1.0, then="refuse")
    assert text == "I am not certain enough to answer this."
    assert report["content_filter"] == {"policy": "inv_entropy"}


async def test_a_calibration_turns_scores_into_probabilities(tokens: TokenText) -> None:
    engine = Speaker(tokens, knows=False)
    job = job_of(engine)
    settings = InvEntropy(similarity="words")._settings()
    made = Calibration(
        model="speaker",
        fingerprint=await fingerprint(engine),
        settings=settings,
        measures={"max_entropy": Isotonic(x=(1.0, 2.0), y=(0.2, 0.8))},
    )
    job = replace(job, services=replace(job.services, calibrations={"mine": made}))
    text, report = await play(job, measure="max_entropy", level=0.6, then="refuse")
    assert report["uncertainty"]["probability"] == pytest.approx(0.5), "the level is one of the probability"
    assert report["uncertainty"]["calibration"] == "mine"
    assert "not certain" not in text
    assert "probability" not in (await play(replace(job, report=Report()), measure="mean_entropy"))[1]["uncertainty"]
    for options, words in (
        ({"measure": "mean_entropy"}, "it has the measures max_entropy, and not mean_entropy"),
        ({"measure": "max_entropy", "replications": 2}, "it was made with replications 5, and not 2"),
    ):
        with pytest.raises(Unsupported, match=words):
            await play(job, calibration="mine", **options)


async def test_bounds_and_leaving(tokens: TokenText) -> None:
    engine = Speaker(tokens, knows=False, patience=0.0005)
    text, report = await play(job_of(engine, extra=60), level=0.0, then="say")
    told = report["uncertainty"]
    assert (told["score"], told["ended"], told["above"]) == (None, "extra_tokens", False)
    assert text
    assert engine.open == 0
    for options in ({}, {"level": 0.1, "then": "refuse"}):
        engine = Speaker(tokens, knows=False, patience=0.002)
        running = asyncio.create_task(play(job_of(engine), **options))
        async with asyncio.timeout(30):
            while len(engine.asked) < 6:  # noqa: ASYNC110  # the engine has no event for it
                await asyncio.sleep(0.001)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert engine.open == 0


async def test_what_is_refused(tokens: TokenText) -> None:
    engine = Speaker(tokens, knows=True)
    for given, words in (
        ({"measure": "guess"}, "unknown measure 'guess'"),
        ({"level": 0.5}, "belong together"),
        ({"level": 0.5, "then": "engine"}, "needs a name"),
        ({"level": 0.5, "then": "engine", "engine": "nobody"}, "unknown engine 'nobody'"),
    ):
        with pytest.raises(PolicyError, match=words):
            await play(job_of(engine), **given)
    for given, words in (
        ({"similarity": "embedding"}, "there is no embedder here"),
        ({"calibration": "mine"}, "unknown calibration 'mine'; there are none"),
    ):
        with pytest.raises(Unsupported, match=words):
            await play(job_of(engine), **given)
    with pytest.raises(Unsupported, match="there is no question"):
        await play(replace(job_of(engine), question=None))
