"""DiffAdapt: what the probe decides, how a strategy changes a job, controls, and what is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.policies.looking import Played, answer, asking, only
from waver.engines.base import EngineError, Sampling, Unsupported
from waver.engines.probe import Probe, Record, reference_ids
from waver.engines.tokens import TokenText
from waver.policies.job import Job, UserTurn
from waver.policies.registry import PolicyError, check_engines, describe, parse
from waver.policies.report import Report
from waver.policies.switch.route import Route
from waver.policies.think.diffadapt import DiffAdapt
from waver.policies.think.difficulty import usual_difficulty
from waver.policies.think.oracle import pick
from waver.policies.think.strategies import Easy, Hard, Normal, asked, opening

MODELS = Path(__file__).parents[3] / "models"
ASKS = "Before I answer: this question is"
SAID = "The answer is 72."


@pytest.fixture(scope="module")
def thinker() -> TokenText:
    """The same with think tags, as Qwen3 has them: added tokens that are no control tokens."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "small")
    tokenizer.add_tokens(["<think>", "</think>"])
    return TokenText(tokenizer)


def engine(tokens: TokenText, text: str = SAID, **options: Any) -> Played:
    given = {"exposes": frozenset({"hidden_state"}), "state": torch.tensor([1.0, 0.0])}
    return Played(tokens, text, **given | options)


def reading(played: Played, logits: tuple[float, float, float], labels: str = "paper", words: str = ASKS) -> Probe:
    """A probe that always says the same of this engine."""
    weights = {
        "W1": torch.zeros(2, 2),
        "b1": torch.zeros(2),
        "W2": torch.zeros(3, 2),
        "b2": torch.tensor(logits),
    }
    assert played.state is not None
    record = Record(model=played.name, words=words, labels=labels)
    return Probe(weights, record, reference_ids(played, words), played.state)  # type: ignore[arg-type]


def judging(played: Played, logits: tuple[float, float, float], **sampling: Any) -> Job:
    job = asking(only(played), played.name, "What is 27 + 58 - 13?", None, **sampling)
    return replace(job, services=replace(job.services, probes={"mine": reading(played, logits)}))


@pytest.mark.parametrize(
    ("whole", "easy", "hard"), [(2048, 819, 1024), (8096, 3238, 4048), (32768, 13107, 16384), (1, 1, 1)]
)
def test_the_card_s_budgets(tokens: TokenText, whole: int, easy: int, hard: int) -> None:
    job = asking(only(engine(tokens, context_length=100_000)), "played", "hello", None, max_tokens=whole)
    limits = [asked(job, strategy).sampling.max_tokens for strategy in (Easy(), Normal(), Hard())]
    assert limits == [easy, whole, hard]


def test_what_a_strategy_sets(tokens: TokenText) -> None:
    job = asking(only(engine(tokens)), "played", "hello", None, temperature=0.3, top_p=0.7, max_tokens=100)
    drawn = [asked(job, strategy).sampling for strategy in (Easy(), Normal(), Hard(), Hard(temperature=None))]
    assert [(each.temperature, each.top_p) for each in drawn] == [(0.5, 0.7), (0.8, 0.95), (0.4, 0.7), (0.3, 0.7)]
    demanded = replace(job, sampling=replace(job.sampling, min_tokens=60))
    assert asked(demanded, Easy()).sampling.max_tokens == 60, "what is demanded goes over the share"


def test_words_follow_the_prompt_and_stay_behind_passages(tokens: TokenText) -> None:
    job = asking(only(engine(tokens)), "played", "hello", None)
    inner = asked(job, Easy())
    words = tuple(tokens.encode(Easy().words, add_special_tokens=False))
    assert inner.prompt_ids == (*job.prompt_ids, *words)
    assert job.question is not None
    assert inner.question is not None
    assert tuple(inner.question.with_context("[1] Passage.\n")) == (
        *job.question.with_context("[1] Passage.\n"),
        *words,
    )
    spelt = asked(job, Easy(words="<|im_end|>"))
    assert not any(tokens.is_special(token) for token in spelt.prompt_ids[len(job.prompt_ids) :])


def test_think_tags(thinker: TokenText, tokens: TokenText) -> None:
    assert tokens.think is None
    assert thinker.think is not None
    opens, closes = thinker.think
    prompt = thinker.chat([{"role": "user", "content": "<think> is a tag"}])
    easy, normal = (opening(thinker, prompt, strategy) for strategy in (Easy(), Normal()))
    assert thinker.decode(easy) == f"<think>\n{Easy().words}\n</think>\n\n"
    assert thinker.decode(normal) == f"<think>\n{Normal().words}"
    assert (easy[0], easy.count(closes), normal[0], normal.count(closes)) == (opens, 1, opens, 0)
    begun = [*prompt, opens, *thinker.encode_plain("\n")]  # the template opens the block by itself
    assert thinker.decode(opening(thinker, begun, Hard())) == Hard().words
    assert thinker.decode(opening(thinker, begun, Easy())) == f"{Easy().words}\n</think>\n\n"
    off = [*begun, *thinker.encode_plain("\n"), closes, *thinker.encode_plain("\n\n")]  # thinking was switched off
    for strategy in (Easy(), Hard()):
        assert thinker.decode(opening(thinker, off, strategy)) == strategy.words


@pytest.mark.parametrize(
    ("logits", "options", "chosen"),
    [
        ((2.0, 0.0, 0.0), {}, "easy"),
        ((0.0, 0.0, 2.0), {}, "hard"),
        ((0.85, 1.0, 0.15), {}, "normal"),
        ((0.1, 0.0, 0.0), {}, "normal"),  # less than half sure
        ((0.1, 0.0, 0.0), {"min_confidence": 0.3}, "easy"),
        ((2.0, 0.0, 0.0), {"bonus": {"hard": 4.0}}, "hard"),
        ((2.0, 0.0, 0.0), {"bonus": {"easy": -9.0, "normal": -9.0}}, "hard"),
        ((2.0, 0.0, 0.0), {"strategy": "hard"}, "hard"),
    ],
)
async def test_what_is_chosen(
    tokens: TokenText, logits: tuple[float, float, float], options: dict[str, Any], chosen: str
) -> None:
    played = engine(tokens)
    job = judging(played, logits)
    policy = DiffAdapt(**options)
    await policy.check(job)
    text, report = await answer(job, policy)
    assert text == SAID
    assert report["strategy"] == chosen
    strategy = {"easy": Easy(), "normal": Normal(), "hard": Hard()}[chosen]
    assert played.asked == [tokens.decode(job.prompt_ids) + strategy.words]
    if "strategy" in options:
        assert "difficulty" not in report
        return
    told = report["difficulty"]
    bonus = [options.get("bonus", {}).get(name, 0.0) for name in ("easy", "normal", "hard")]
    wanted = (torch.tensor(logits) + torch.tensor(bonus)).softmax(-1).tolist()
    assert list(told["probabilities"].values()) == pytest.approx(wanted)
    assert (told["probe"], told["engine"], set(told["probabilities"])) == ("mine", "played", {"easy", "normal", "hard"})
    assert told["seconds"] > 0
    assert played.read[-1] == (*job.prompt_ids, *tokens.encode(ASKS, add_special_tokens=False))
    assert report["tokens"] == {"played": len(tokens.encode(SAID)) + 1}, "words are no tokens of the answer"


async def test_entropies_of_thinking_and_answer_are_told_apart(thinker: TokenText, tokens: TokenText) -> None:
    said = "so be it</think>\n\nThe answer is 72."
    thought = len(thinker.encode("so be it</think>"))
    rest = len(thinker.encode(said)) + 1 - thought
    for strategy, inside in (("hard", True), ("easy", False)):
        played = engine(
            thinker, said if inside else SAID, entropies=(*[2.0] * thought, *[0.5] * 30) if inside else (0.5,)
        )
        job = asking(only(played), "played", "hello", None)
        _, report = await answer(job, DiffAdapt(strategy=strategy))  # type: ignore[arg-type]
        parts = report["trace_entropy"]
        assert parts["answer"]["mean"] == pytest.approx(0.5)
        assert ("thinking" in parts) == inside, "easy closes the block by itself"
        if inside:
            assert parts["thinking"] == {"mean": pytest.approx(2.0), "tokens": thought}
            assert parts["answer"]["tokens"] == rest
    _, report = await answer(asking(only(engine(tokens)), "played", "hello", None), DiffAdapt(strategy="normal"))
    assert set(report["trace_entropy"]) == {"answer"}, "a model without think blocks"


async def test_choices_of_one_prompt_share_the_reading(tokens: TokenText) -> None:
    played = engine(tokens)
    job, policy = judging(played, (2.0, 0.0, 0.0)), DiffAdapt()
    for seed in range(4):
        own = replace(job, report=Report(parameters=job.report.parameters), sampling=Sampling(seed=seed))
        _, report = await answer(own, policy)
        assert report["strategy"] == "easy"
    assert len(played.read) == 2, "the reference, and the prompt"


def wordless(played: Played, logits: tuple[float, float, float], **sampling: Any) -> Job:
    job = judging(played, logits, **sampling)
    return replace(job, services=replace(job.services, probes={"mine": reading(played, logits, words="")}))


async def test_one_pass_serves_the_probe_and_the_answer(tokens: TokenText) -> None:
    """A probe without words of its own reads its hidden state along with the first token of the likely strategy."""
    played = engine(tokens)
    job = wordless(played, (0.0, 2.0, 0.0))
    text, report = await answer(job, DiffAdapt())
    assert (text, report["strategy"], report["difficulty"]["head_start"]) == (SAID, "normal", "normal")
    assert len(played.asked) == 1
    assert played.read[1:] == [job.prompt_ids], "the reference, and the prompt in passing"
    assert "discarded_tokens" not in report
    assert played.open == 0
    assert played.sampled[0] == replace(asked(job, Normal()).sampling, state_of=job.prompt_ids)


async def test_a_strategy_that_was_begun_in_vain_leaves_no_trace_but_its_token(tokens: TokenText) -> None:
    played = engine(tokens)
    job = wordless(played, (2.0, 0.0, 0.0))
    for at, begun in enumerate(("normal", "easy")):  # what it came to before is what it begins with next
        own = replace(job, report=Report(parameters=job.report.parameters))
        own.report.extra["before"] = 1
        text, report = await answer(own, DiffAdapt())
        assert (text, report["strategy"], report["difficulty"]["head_start"]) == (SAID, "easy", begun)
        assert (report.get("discarded_tokens", 0), report["before"]) == (1 - at, 1)
        assert report["tokens"] == {"played": len(tokens.encode(SAID)) + 1}
    words = [Normal().words, Easy().words, Easy().words]
    assert played.asked == [tokens.decode(job.prompt_ids) + each for each in words]
    assert (played.open, len(played.read)) == (0, 3)


async def test_choices_share_a_head_start_too(tokens: TokenText) -> None:
    played = engine(tokens)
    job, policy = wordless(played, (0.0, 0.0, 2.0)), DiffAdapt()
    owns = [replace(job, report=Report(), sampling=Sampling(seed=seed)) for seed in range(4)]
    reports = [report for _, report in await asyncio.gather(*(answer(own, policy) for own in owns))]
    assert {report["strategy"] for report in reports} == {"hard"}
    assert [report.get("discarded_tokens", 0) for report in reports] == [1, 0, 0, 0]
    assert (len(played.asked), len(played.read), played.open) == (5, 2, 0)


async def test_where_there_is_no_head_start(tokens: TokenText) -> None:
    """Nobody begins with an unlikely strategy, nor before a lookup or a switch, whose first pass reads other things; an
    engine that has not read the prompt this time is asked for its state."""
    played = engine(tokens)
    even = wordless(played, (0.0, 2.0, 0.0))
    even.services.probes["mine"].recent.extend(["easy", "hard", "normal"])
    for job, inner in ((even, ()), (wordless(played, (0.0, 2.0, 0.0)), (Route(small="played", large="played"),))):
        played.read.clear()
        _, report = await answer(job, DiffAdapt(), *inner)
        assert "head_start" not in report["difficulty"]
        assert played.read[-1] == job.prompt_ids
    cached = engine(tokens, passing=False)
    job = wordless(cached, (0.0, 2.0, 0.0))
    text, report = await answer(job, DiffAdapt())
    assert (text, report["difficulty"]["head_start"]) == (SAID, "normal")
    assert (cached.read[1:], len(cached.asked)) == ([job.prompt_ids], 1)


async def test_a_head_start_ends_with_what_goes_wrong(tokens: TokenText, monkeypatch: pytest.MonkeyPatch) -> None:
    played = engine(tokens, passing=False)
    job = wordless(played, (0.0, 2.0, 0.0))
    await DiffAdapt().check(job)

    async def broken(ids: Any, depth: float | None = None) -> torch.Tensor:
        raise EngineError("the engine died")

    monkeypatch.setattr(played, "hidden_state", broken)
    with pytest.raises(EngineError, match="died"):
        await answer(job, DiffAdapt())
    assert (played.open, len(played.asked), job.report.discarded) == (0, 1, 1)


@pytest.mark.parametrize(
    ("chosen", "usual"),
    [([], "normal"), (["hard"], "hard"), (["hard", "easy"], "hard"), (["easy", "normal", "hard"], None)],
)
def test_what_a_probe_usually_says(tokens: TokenText, chosen: list[Any], usual: str | None) -> None:
    probe = reading(engine(tokens), (0.0, 0.0, 0.0))
    probe.recent.extend(chosen)
    assert usual_difficulty(probe.recent) == usual
    probe.recent.extend(["easy"] * 100)
    assert usual_difficulty(probe.recent) == "easy", "only the last ones count"


@pytest.mark.parametrize("classes", [("hard", "normal", "easy"), ("calm", "upset")])
async def test_a_probe_for_other_classes_is_refused(tokens: TokenText, classes: tuple[str, ...]) -> None:
    played = engine(tokens)
    job = judging(played, (0.0, 2.0, 0.0))
    probe = job.services.probes["mine"]
    other = replace(probe, record=probe.record.model_copy(update={"classes": classes}))
    job = replace(job, services=replace(job.services, probes={"mine": other}))
    with pytest.raises(
        Unsupported, match=f"the probe 'mine' tells {', '.join(classes)} apart, and not easy, normal, hard"
    ):
        await DiffAdapt().check(job)


async def test_probes_are_found_by_label_and_engine(tokens: TokenText) -> None:
    first, second = engine(tokens), engine(tokens, name="other", state=torch.tensor([0.0, 1.0]))
    engines: dict[str, Any] = {"played": first, "other": second}
    job = asking(engines, "played", "hello", None)
    probes = {
        "strict": reading(first, (0.0, 0.0, 9.0), "strict_easy"),
        "paper": reading(first, (9.0, 0.0, 0.0)),
        "another": reading(second, (0.0, 9.0, 0.0), "oracle"),
    }
    job = replace(job, services=replace(job.services, probes=probes))
    for options, probe in (({}, "paper"), ({"labels": "strict_easy"}, "strict"), ({"probe": "strict"}, "strict")):
        own = replace(job, report=Report(parameters={"played": 1}))
        _, report = await answer(own, DiffAdapt(**options))
        assert report["difficulty"]["probe"] == probe
    alone = replace(job, report=Report(parameters={"played": 1}))
    for options, says in (({"labels": "oracle"}, "does not run"), ({"probe": "another"}, "'played' does not run")):
        with pytest.raises(Unsupported, match=says):
            await DiffAdapt(**options).check(alone)
    both = replace(job, report=Report(parameters={"played": 1, "other": 2}))
    await DiffAdapt(labels="oracle").check(both)
    _, report = await answer(both, DiffAdapt(labels="oracle"))
    assert (report["difficulty"]["engine"], report["strategy"]) == ("other", "normal")


async def test_a_draft_decides_where_no_probe_can_be_read(tokens: TokenText) -> None:
    for entropy, chosen in ((0.05, "easy"), (0.3, "normal"), (0.9, "hard")):
        played = engine(tokens, exposes=frozenset(), entropies=(entropy,))
        job = judging(played, (9.0, 0.0, 0.0))
        with pytest.raises(Unsupported, match="'played' does not hand out hidden states"):
            await DiffAdapt().check(job)
        policy = DiffAdapt(fallback="draft", draft_tokens=4)
        await policy.check(job)
        text, report = await answer(job, policy)
        assert (text, report["strategy"], report["discarded_tokens"]) == (SAID, chosen, 4)
        assert report["difficulty"]["draft_entropy"] == pytest.approx(entropy)
        assert "probabilities" not in report["difficulty"]


async def test_a_blind_mix(tokens: TokenText) -> None:
    policy = DiffAdapt(strategy="shuffled", mix={"easy": 3.0, "hard": 1.0})
    played = engine(tokens)

    async def drawn(seed: int) -> str:
        _, report = await answer(asking(only(played), "played", "hello", None, seed=seed), policy)
        return str(report["strategy"])

    found = [await drawn(seed) for seed in range(200)]
    assert found[:20] == [await drawn(seed) for seed in range(20)]
    share = Counter(found)
    assert set(share) == {"easy", "hard"}
    assert 0.65 < share["easy"] / 200 < 0.85


def test_the_card_s_oracle() -> None:
    assert pick({"easy": (False, 300), "normal": (True, 2400), "hard": (True, 900)}) == "hard"
    assert pick({"easy": (True, 300), "normal": (True, 2400), "hard": (True, 900)}) == "easy"
    assert pick({"easy": (False, 300), "normal": (False, 2400), "hard": (False, 200)}) == "hard"


class Strategic(Played):
    """Says something else for each strategy's words."""

    async def generate(self, prompt_ids: Any, sampling: Sampling) -> Any:
        prompt = self.tokens.decode(prompt_ids)
        said = {Easy().words: "The answer is 7.", Normal().words: "1 + 2 + 69 = 72. The answer is 72."}
        self.text = next((text for words, text in said.items() if prompt.endswith(words)), "70 + 2 = 72.")
        async for step in super().generate(prompt_ids, sampling):
            yield step


async def test_an_oracle_knows(tokens: TokenText) -> None:
    for known, chosen in (("72", "hard"), ("7", "easy"), ("5", "easy")):
        job = asking(only(Strategic(tokens, "")), "played", "What is 70 + 2?", None)
        text, report = await answer(job, DiffAdapt(strategy="oracle", answer=known))
        runs = report["difficulty"]["runs"]
        assert report["strategy"] == chosen
        assert text == ("70 + 2 = 72." if chosen == "hard" else "The answer is 7.")
        assert {name: run["right"] for name, run in runs.items()} == {
            "easy": known == "7",
            "normal": known == "72",
            "hard": known == "72",
        }
        lengths = {name: run["tokens"] for name, run in runs.items()}
        assert report["tokens"]["played"] == lengths.pop(chosen)
        assert report["discarded_tokens"] == sum(lengths.values())


async def test_an_oracle_looks_behind_the_thinking(thinker: TokenText) -> None:
    said = "The town? Corton.\n</think>\n\nIt is Brill."
    for known, right in (("Corton", False), ("brill", True)):
        job = asking(only(engine(thinker, said)), "played", "Which town?", None)
        _, report = await answer(job, DiffAdapt(strategy="oracle", answer=known))
        assert report["difficulty"]["runs"]["normal"]["right"] == right


async def test_what_is_refused_before_anything_is_written(tokens: TokenText) -> None:
    played = engine(tokens)
    job = judging(played, (2.0, 0.0, 0.0))
    with pytest.raises(Unsupported, match="no probe with the labels oracle is configured; name a strategy"):
        await DiffAdapt(labels="oracle").check(job)
    with pytest.raises(Unsupported, match="no probe with the labels paper"):
        await DiffAdapt().check(replace(job, services=replace(job.services, probes={})))
    await DiffAdapt(strategy="easy").check(replace(job, services=replace(job.services, probes={})))
    assert job.question is not None
    begun = replace(job, question=UserTurn(job.question.text, job.question.with_context, opens=False))
    with pytest.raises(Unsupported, match="continue_final_message"):
        DiffAdapt(strategy="easy").possible_jobs(begun)
    small = only(engine(tokens, context_length=len(job.prompt_ids) + 5))
    short = replace(job, services=replace(job.services, engines=small))
    with pytest.raises(Unsupported, match="the strategy's words"):
        DiffAdapt(strategy="easy").possible_jobs(short)
    with pytest.raises(Unsupported, match="words of the probe 'mine'"):
        await DiffAdapt().check(short)
    assert not played.asked


def test_parameters_of_parameters(tokens: TokenText) -> None:
    engines = only(engine(tokens))

    def one(item: dict[str, Any], defaults: dict[str, Any] | None = None) -> DiffAdapt:
        (policy,) = parse([{"name": "diffadapt", **item}], engines, {"diffadapt": defaults or {}}, ["mine"])
        assert isinstance(policy, DiffAdapt)
        return policy

    assert one({"easy": {"share": 0.2}}, {"easy": {"words": "Now.", "temperature": None}}).easy == Easy(
        words="Now.", temperature=None, share=0.2
    )
    assert one({"probe": "mine", "hard": {"temperature": 1}}).hard == Hard(temperature=1.0)
    listed = next(each for each in describe({"diffadapt": {"easy": {"words": "Now."}}}) if each["name"] == "diffadapt")
    assert listed["defaults"]["easy"] == Easy(words="Now.").model_dump()
    for item, param, says in (
        ({"probe": "yours"}, "probe", "unknown probe 'yours'; there are mine"),
        ({"strategy": "medium"}, "strategy", "'auto', 'easy'"),
        ({"easy": {"share": 0}}, "easy.share", "a number at most 1.0, above 0"),
        ({"easy": {"temperature": 3}}, "easy.temperature", "at most 2"),
        ({"easy": {"wrods": ""}}, "easy.wrods", "there are words, think, temperature, top_p, share"),
        ({"easy": "now"}, "easy", "valid dictionary"),
        ({"easy": None}, "easy", "valid dictionary"),
        ({"bonus": {"medium": 1.0}}, "bonus.medium", "'easy', 'normal' or 'hard'"),
        ({"mix": {"easy": -1.0, "hard": 2.0}}, "", "must not be negative"),
        ({"mix": {}}, "", "one of them above 0"),
        ({"mix": {"easy": 1e308, "hard": 1e308}}, "", "the weights of mix"),
        ({"bonus": {"easy": -1e308}}, "", "between -1000 and 1000"),
        ({"strategy": "oracle"}, "", "needs the right answer"),
        ({"draft_easy": 1.0}, "", "draft_easy must not be above"),
    ):
        with pytest.raises(PolicyError, match=says) as refused:
            one(item)
        assert refused.value.param == f"policy[0].{param}".rstrip(".")


async def test_engines_are_asked_about_every_way(tokens: TokenText) -> None:
    seen: list[Sampling] = []

    class Asked(Played):
        def check(self, sampling: Sampling, begun: bool) -> None:
            seen.append(sampling)

    job = asking(only(Asked(tokens, SAID)), "played", "hello", None, max_tokens=100)
    check_engines([DiffAdapt()], job)
    assert [(s.temperature, s.max_tokens) for s in seen] == [(0.5, 40), (0.8, 100), (0.4, 50)]
    seen.clear()
    check_engines([DiffAdapt(strategy="hard")], job)
    assert [s.max_tokens for s in seen] == [50]
