"""Entropy Judger: which runs are drawn, how one is chosen, what they cost, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.policies.looking import asking, only
from waver.engines.base import Sampling, Step, Unsupported
from waver.engines.boosting import Trees
from waver.engines.fingerprint import REFERENCE, Fingerprint
from waver.engines.judge import Convention, Judge, Record
from waver.engines.tokens import TokenText
from waver.policies.base import Proceed
from waver.policies.job import Job
from waver.policies.registry import PolicyError, engines_used, parse
from waver.policies.select.entropy_judger import EntropyJudger
from waver.policies.select.runs import within
from waver.policies.select.topologies import Said, seen

MODELS = Path(__file__).parents[3] / "models"


@dataclass
class Chorus:
    """An engine that says another text at each call, each token with an entropy of its own; `prompts` holds what it
    was asked, `open` how many texts are in the making."""

    tokens: TokenText
    said: Sequence[tuple[str, float]]
    name: str = "chorus"
    parameters: int = 1
    context_length: int = 1024
    patience: float = 0.0
    prompts: list[str] = field(default_factory=list)
    sampled: list[Sampling] = field(default_factory=list)
    open: int = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        text, entropy = self.said[len(self.prompts) % len(self.said)]
        self.prompts.append(self.tokens.decode(prompt_ids))
        self.sampled.append(sampling)
        ids = [*self.tokens.encode(text), self.tokens.eos_ids[0]][: sampling.max_tokens]
        self.open += 1
        try:
            for i, token in enumerate(ids, 1):
                await asyncio.sleep(self.patience)
                finish = None if i < len(ids) else "stop" if token in self.tokens.eos_ids else "length"
                yield Step(token, -1.0, 9.0, self.name, finish=finish, kept=2, crop_entropy=entropy)  # type: ignore[arg-type]
        finally:
            self.open -= 1

    async def score(self, ids: Sequence[int], top_logprobs: int = 0) -> list[Step]:
        return [Step(token, -3.0, 2.0, self.name) for token in ids[1:]]


def job_of(engine: Chorus, judge: Judge | None = None, extra: int = 10**6, **sampling: Any) -> Job:
    job = asking(only(engine), engine.name, "What is 2 + 2?", None, **{"temperature": 1.0, **sampling})  # type: ignore[arg-type]
    judges = {} if judge is None else {"mine": judge}
    services = replace(job.services, judges=judges, extra_tokens=extra)
    return replace(job, services=services, messages=[{"role": "user", "content": "What is 2 + 2?"}])


async def play(job: Job, **options: Any) -> tuple[str, dict[str, Any]]:
    policy = EntropyJudger(**options)
    await policy.check(job)
    ids = []
    async for step in Proceed((policy,))(job):
        job.report.observe(step)
        ids.append(step.token)
    return job.writer.tokens.decode(ids), job.report.as_dict()


def judge_of(engine: Chorus, convention: Convention | None = None, likes: float = 0.5) -> Judge:
    """A judge that takes runs whose mean entropy is at most `likes` for right (0.88), and others for wrong (0.12)."""
    arrays = {
        "roots": np.array([0]),
        "feature": np.array([0, -1, -1]),
        "threshold": np.array([likes, 0, 0]),
        "left": np.array([1, 0, 0]),
        "right": np.array([2, 0, 0]),
        "value": np.array([0, 2.0, -2.0]),
        "base": np.array([0.0]),
    }
    ids = tuple(engine.tokens.chat([{"role": "user", "content": REFERENCE}]))
    own = Fingerprint(ids=ids, entropies=(2.0,) * (len(ids) - 1))
    convention = convention or Convention()
    record = Record(model="chorus", convention=convention, features=("sample_mean",), models={"solver": own})
    return Judge(Trees.of(arrays, 1), np.array([0.0]), record)


SAID = (("It is 5.", 0.9), ("It is 4.", 0.7), ("It is 6.", 0.2), ("It is 4.", 0.6))


@pytest.mark.parametrize(
    ("select", "chosen", "by"),
    [("vote", 1, "vote"), ("min_entropy", 2, "min_entropy"), ("oracle", 1, "oracle"), ("auto", 1, "vote")],
)
async def test_rules(tokens: TokenText, select: str, chosen: int, by: str) -> None:
    engine = Chorus(tokens, SAID)
    job = job_of(engine)
    text, report = await play(job, samples=4, select=select, **({"answer": "4"} if select == "oracle" else {}))
    told = report["selection"]
    assert (text, told["chosen"], told["by"], told["rule"]) == (SAID[chosen][0], chosen, by, select)
    assert [run["answer"] for run in told["runs"]] == ["5", "4", "6", "4"]
    assert [run["entropy"] for run in told["runs"]] == pytest.approx([0.9, 0.7, 0.2, 0.6])
    counts = [run["tokens"] for run in told["runs"]]
    assert told["tokens"] == {"chorus": sum(counts)}
    assert report["tokens"] == {"chorus": counts[chosen]}
    assert report["discarded_tokens"] == sum(counts) - counts[chosen]
    assert engine.open == 0


async def test_runs_have_their_own_seeds_and_the_convention_s_sampling(tokens: TokenText) -> None:
    engine = Chorus(tokens, SAID)
    await play(job_of(engine, seed=7), samples=3)
    first, *others = engine.sampled
    assert (first.temperature, first.top_p, [t.as_data() for t in first.transforms]) == (
        0.6,
        1.0,
        [{"name": "top_p", "p": 0.95}],
    )
    assert first.seed == 7
    assert len({own.seed for own in others} | {7}) == 3
    again = Chorus(tokens, SAID)
    await play(job_of(again, seed=7), samples=3)
    assert [own.seed for own in again.sampled] == [own.seed for own in engine.sampled]
    raw = Chorus(tokens, SAID)
    _, report = await play(job_of(raw), samples=2, entropy="raw")
    assert (raw.sampled[0].top_p, raw.sampled[0].transforms) == (0.95, ())
    assert report["selection"]["runs"][0]["entropy"] == 9.0


async def test_a_judge_chooses_stops_early_and_is_refused_elsewhere(tokens: TokenText) -> None:
    engine = Chorus(tokens, SAID)
    judge = judge_of(engine)
    text, report = await play(job_of(engine, judge), samples=4, select="judge")
    assert (text, report["selection"]["judge"]) == ("It is 6.", "mine")
    assert [round(run["probability"], 2) for run in report["selection"]["runs"]] == [0.12, 0.12, 0.88, 0.12]

    engine = Chorus(tokens, SAID)
    text, report = await play(job_of(engine, judge), samples=4, threshold=0.8)
    assert (text, len(engine.prompts), report["selection"]["ended"]) == ("It is 6.", 3, "threshold")
    engine = Chorus(tokens, SAID)
    text, report = await play(job_of(engine, judge), samples=4, threshold=0.95)
    assert (text, len(engine.prompts)) == ("It is 4.", 4), "the last run where none reaches the threshold"
    assert "ended" not in report["selection"]

    for options, words in (
        ({"temperature": 1.0}, "temperature 0.6 and not 1.0"),
        ({"rounds": 2}, "rounds 1 and not 2"),
        ({"topology": "debate"}, "topology single and not debate"),
    ):
        with pytest.raises(Unsupported, match=words):
            await play(job_of(Chorus(tokens, SAID), judge), select="judge", **options)
    text, report = await play(job_of(Chorus(tokens, SAID[:3]), judge), samples=3, temperature=1.0)
    assert report["selection"]["by"] == "min_entropy", "auto does without a judge that does not fit"
    with pytest.raises(Unsupported, match="no judge is configured"):
        await play(job_of(Chorus(tokens, SAID)), select="judge")
    with pytest.raises(Unsupported, match="unknown judge 'other'; there are mine"):
        await play(job_of(Chorus(tokens, SAID), judge), judge="other")


async def test_auto_lets_the_judge_break_a_tie(tokens: TokenText) -> None:
    said = (("It is 5.", 0.9), ("It is 4.", 0.3))
    engine = Chorus(tokens, said)
    text, report = await play(job_of(engine, judge_of(engine)), samples=2)
    assert (text, report["selection"]["by"]) == ("It is 4.", "judge")


async def test_topologies(tokens: TokenText) -> None:
    calls = {"single": 2, "sequential": 8, "centralized": 8, "debate": 6, "hybrid": 8}
    for topology, count in calls.items():
        engine = Chorus(tokens, [(f"It is {i}.", 0.1 * i) for i in range(count)], context_length=4096)
        text, report = await play(job_of(engine), samples=1, topology=topology, rounds=2, features=True)
        told = report["selection"]
        assert len(engine.prompts) == count
        assert told["runs"][0]["features"]["sample_agents"] == count
        assert told["runs"][0]["text"] == text
        assert text == ("It is 3." if topology == "debate" else f"It is {count - 1}.")
        assert EntropyJudger(topology=topology, rounds=2, samples=3).extra_sequences == 3 * count - 1  # type: ignore[arg-type]
        assert told["convention"]["topology"] == topology
        assert "What is 2 + 2?" in engine.prompts[-1]
        assert ("It is 0." in engine.prompts[-1]) is (topology in ("single", "sequential", "debate"))
    vote = Chorus(tokens, [("It is 1.", 0.1), ("It is 2.", 0.1), ("It is 2.", 0.1)])
    assert (await play(job_of(vote), samples=1, topology="debate"))[0] == "It is 2."


def test_a_debater_sees_the_last_three_texts() -> None:
    said = [Said(role, r, f"{role}{r}") for r in (1, 2) for role in ("math", "science", "code")]
    assert seen("debate", "math", 1, []) == []
    assert seen("debate", "math", 2, said[:2]) == [], "only once there are three"
    assert [each.text for each in seen("debate", "math", 2, said[:3])] == ["math1", "science1", "code1"]
    assert [each.text for each in seen("debate", "math", 3, said)] == ["math2", "science2", "code2"]


async def test_a_reference_run_is_compared_with(tokens: TokenText) -> None:
    engine = Chorus(tokens, [("It is 4.", 0.5), *[("It is 4 too.", 0.25)] * 3], context_length=4096)
    _, report = await play(job_of(engine), samples=1, topology="debate", reference=True, features=True)
    own = report["selection"]["runs"][0]["features"]
    assert (own["alone_per_token"], own["sample_per_token"]) == (0.5, 0.25)
    assert own["alone_answer_mean"] == 0.5
    assert report["selection"]["convention"]["compared"] is True


async def test_a_spent_allowance_ends_what_is_not_finished(tokens: TokenText) -> None:
    long = ("It is " + "4 " * 30, 0.5)
    engine = Chorus(tokens, [("It is 5.", 0.9), ("It is 4.", 0.1), long, long], patience=0.0005)
    text, report = await play(job_of(engine, extra=20), samples=4, select="min_entropy")
    assert text == "It is 4."
    told = report["selection"]
    assert (told["ended"], len(told["runs"])) == ("extra_tokens", 2)
    whole = sum(run["tokens"] for run in told["runs"])
    first = told["runs"][0]["tokens"]
    assert whole < told["tokens"]["chorus"] <= first + 20 + 3, "what was thrown away is counted"
    assert report["discarded_tokens"] == told["tokens"]["chorus"] - told["runs"][1]["tokens"]
    assert engine.open == 0
    engine = Chorus(tokens, SAID)
    text, report = await play(job_of(engine, extra=0), samples=4)
    assert (text, len(report["selection"]["runs"])) == ("It is 5.", 1), "the first run is always finished"


async def test_a_client_that_leaves_aborts_every_run(tokens: TokenText) -> None:
    engine = Chorus(tokens, [("It is " + "4 " * 200, 0.5)], patience=0.001)
    running = asyncio.create_task(play(job_of(engine, max_tokens=400), samples=6))
    async with asyncio.timeout(30):
        while engine.open < 6:  # noqa: ASYNC110  # the engine has no event for it
            await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert engine.open == 0


def test_the_answer_s_tokens_are_those_that_spell_it(tokens: TokenText) -> None:
    ids = tokens.encode("So it is 123.", add_special_tokens=False)
    steps = [Step(token, 0.0, float(i), "e", crop_entropy=float(i)) for i, token in enumerate(ids)]
    found = within(tokens, steps, 9, 12, "drawn")
    spelt = tokens.decode([ids[int(i)] for i in found])
    assert "123" in spelt
    assert len(spelt) <= 5


async def test_what_is_refused(tokens: TokenText) -> None:
    engine = Chorus(tokens, SAID, context_length=64)
    for sampling in ({"top_k": 5}, {"min_p": 0.1}):
        with pytest.raises(Unsupported, match="leave out top_k and min_p"):
            await play(job_of(engine, **sampling))
    with pytest.raises(Unsupported, match="no room for what it would say"):
        await play(job_of(engine), samples=1, topology="sequential", rounds=5)
    with pytest.raises(Unsupported, match="send messages"):
        await play(replace(job_of(engine), messages=()), topology="debate")
    for given, words in (
        ({"roles": {"planner": "chorus"}}, "single has no role 'planner'"),
        ({"select": "oracle"}, "the oracle needs the right answer"),
        ({"select": "vote", "threshold": 0.5}, "a threshold is one of a judge's probability"),
        ({"topology": "debate", "roles": {"math": "nobody"}}, "unknown engine 'nobody'"),
    ):
        with pytest.raises(PolicyError, match=words):
            parse([{"name": "entropy_judger", **given}], only(engine))  # type: ignore[arg-type]


def test_roles_take_part_beside_the_request_s_engine() -> None:
    policy = EntropyJudger(topology="debate", roles={"math": "small", "code": "large"})
    assert engines_used((policy,), "large") == ("large", "small")
