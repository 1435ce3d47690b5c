"""L-RAG and its rivals, with real collections: what is asked of whom, what is streamed when, and what is reported."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.policies.injections import INJECTIONS
from tests.policies.looking import Played, answer, asking, only
from waver.engines import TransformersConfig, load_engine
from waver.engines.base import Engine, Step, Unsupported
from waver.engines.tokens import TokenText
from waver.policies.job import Job
from waver.policies.retrieve.gates.base import Gate, GateSettings
from waver.policies.retrieve.gates.draft import Draft
from waver.policies.retrieve.gates.dragin import DraginGate
from waver.policies.retrieve.gates.flare import FlareGate
from waver.policies.retrieve.gates.self_rag import KEEP, RETRIEVE, SelfRagGate
from waver.policies.retrieve.l_rag import LRAG
from waver.policies.retrieve.quoting import INSTRUCTION
from waver.policies.switch.ead import EntropyAdaptiveDecoding
from waver.retrieval.base import Document, NoCollection
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.embedder import Embedder
from waver.retrieval.library import Library
from waver.training.pair.world import documents, draw, score_text

MODELS = Path(__file__).parents[3] / "models"
TAIL = documents()[:12]
ASKED = draw("tail_facts", 77, 400)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Iterator[Library]:
    made = Library(RetrievalConfig(path=tmp_path_factory.mktemp("collections")))
    made.embedders["all-MiniLM-L6-v2"] = embedder
    towns = made.create("towns")
    towns.add([Document(each.id, each.text, metadata={"kind": "town"}) for each in TAIL])
    made.create("empty")
    yield made
    made.close()


@pytest.fixture(scope="module")
def pair() -> dict[str, Engine]:
    return {
        name: load_engine(name, TransformersConfig(model=str(MODELS / name), dtype="float32"))
        for name in ("small", "large")
    }


@pytest.fixture(scope="module")
def tokens(pair: dict[str, Engine]) -> TokenText:
    return pair["small"].tokens


def l_rag(**options: Any) -> LRAG:
    return LRAG(**{"collection": "towns", "top_k": 1, **options})


QUESTION = "What is the river of Corton?"
THREE = " river bird craft"
SAID = "The river of Corton is the Sorn."


@pytest.mark.parametrize(
    ("threshold", "pooling", "fires"),
    [(0.5, "mean", True), (1.0, "mean", False), (1.0, "first", False), (1.0, "max", True), (0.5, "first", True)],
)
async def test_the_card_s_draft(
    tokens: TokenText, library: Library, threshold: float, pooling: str, fires: bool
) -> None:
    engine = Played(tokens, THREE, entropies=(0.9404480, 1.3862944, 0.1677005))
    assert len(tokens.encode(THREE)) == 3
    job = asking(only(engine), "played", QUESTION, library)
    text, report = await answer(job, l_rag(threshold=threshold, pooling=pooling))
    found = report["retrieval"]
    assert (found["triggered"], len(engine.asked), len(found["passages"])) == (fires, 1 + fires, fires)
    if not fires or pooling != "max":
        assert found["gate_entropy"] == found["score"]
    if threshold == 1.0 and not fires:
        assert found["score"] == pytest.approx({"mean": 0.8314810, "first": 0.9404480}[pooling], abs=5e-8)
    assert text == THREE
    assert engine.open == 0


async def test_thresholds_beyond_every_score(tokens: TokenText, library: Library) -> None:
    """Above all: no lookup and one generation. Below all: one lookup and two generations."""
    for threshold, lookups in ((1e9, 0), (-1.0, 1)):
        engine = Played(tokens, SAID, entropies=(0.4,))
        text, report = await answer(asking(only(engine), "played", QUESTION, library), l_rag(threshold=threshold))
        assert text == SAID
        assert len(engine.asked) == 1 + lookups
        assert len(report["retrieval"]["passages"]) == lookups
        assert report["tokens"] == {"played": len(tokens.encode(SAID)) + 1}, "a stop token is a token"
        assert report.get("discarded_tokens", 0) == lookups, "a gate that cannot but fire does not wait"
        assert set(report["retrieval"]["seconds"]) == {"gate", "retrieval", "generation"}
        assert all(value >= 0 for value in report["retrieval"]["seconds"].values())
    assert INSTRUCTION in engine.asked[1]
    assert engine.asked[1].index("[1] ") < engine.asked[1].index(QUESTION)


async def test_the_draft_is_streamed_once_the_gate_has_decided(tokens: TokenText, library: Library) -> None:
    engine = Played(tokens, SAID, entropies=(0.4,))
    steps = l_rag(threshold=1.0, draft_tokens=4).decode(
        asking(only(engine), "played", QUESTION, library), lambda job: engine.generate(job.prompt_ids, job.sampling)
    )
    made = [engine.made async for _ in steps]
    assert made == [4, 4, 4, *range(4, len(tokens.encode(SAID)) + 2)]


async def test_a_sum_that_can_only_grow_fires_early(tokens: TokenText, library: Library) -> None:
    engine = Played(tokens, SAID, entropies=(0.1, 0.1, 9.0, 0.1))
    _, report = await answer(asking(only(engine), "played", QUESTION, library), l_rag(threshold=1.0, draft_tokens=8))
    assert report["discarded_tokens"] == 3, "9.2 nats in three tokens are more than 1 in the mean of any eight"
    engine = Played(tokens, SAID, entropies=(0.1, 0.1, 7.0, *[0.1] * 20))
    _, report = await answer(asking(only(engine), "played", QUESTION, library), l_rag(threshold=1.0, draft_tokens=8))
    assert not report["retrieval"]["triggered"]


async def test_a_draft_ends_with_its_line(tokens: TokenText, library: Library) -> None:
    engine = Played(tokens, "a\nb", entropies=(0.1, 0.1, 50.0))
    _, report = await answer(asking(only(engine), "played", QUESTION, library), l_rag(threshold=1.0))
    assert report["retrieval"]["score"] == pytest.approx(0.1)


async def test_line_breaks_and_thoughts_are_no_part_of_a_draft(tokens: TokenText, library: Library) -> None:
    """They would be what decides where a template opens a think block, or a model begins with an empty line."""

    async def score(said: str, entropies: list[float], before: str = "", **options: Any) -> float:
        assert len(tokens.encode(said)) + 1 == len(entropies), "one for each token, and for the end"
        engine = Played(tokens, said, entropies=entropies)
        job = asking(only(engine), "played", QUESTION, library)
        job = replace(job, prompt_ids=(*job.prompt_ids, *tokens.encode(before)))
        text, report = await answer(job, l_rag(threshold=1.0, **options))
        assert text == said
        return float(report["retrieval"]["score"])

    assert await score("\n\nab\nc", [50.0, 0.1, 0.3, 50.0, 50.0, 50.0]) == pytest.approx(0.2)
    assert await score("a\nb", [0.1, 50.0, 0.3, 50.0], draft_end="length", draft_tokens=2) == pytest.approx(0.2)
    thought = [50.0] * len(tokens.encode("so\nlong</think>"))
    for signal in ("entropy", "margin"):
        found = await score(
            "so\nlong</think>\n\nab\nc", [*thought, 50.0, 0.1, 0.3, 50.0, 50.0, 50.0], "<think>\n",
            gate="targ", signal=signal,
        )  # fmt: skip
        assert found == pytest.approx(0.2 if signal == "entropy" else math.exp(-9))


async def test_thoughts_that_a_model_spells_by_itself_are_none_either(tokens: TokenText, library: Library) -> None:
    """The tag stands at the beginning of the answer, in plain characters."""
    for said, loud in (("<think>\nso\n</think>\nab\nc", "<think>\nso\n</think>\n"), ("<p>ab\nc", "<")):
        count = len(tokens.encode(loud))
        engine = Played(tokens, said, entropies=(*[50.0] * count, *[0.2] * 8))
        text, report = await answer(asking(only(engine), "played", QUESTION, library), l_rag(threshold=1.0))
        assert text == said
        assert report["retrieval"]["score"] == pytest.approx(0.2)


async def test_a_self_rag_model_is_asked_by_its_own_tokens(tokens: TokenText, library: Library) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "small")
    tokenizer.add_tokens(["[Retrieval]", "[No Retrieval]"])
    trained = TokenText(tokenizer)
    wants, keeps = (tokenizer.get_vocab()[name] for name in (RETRIEVE, KEEP))
    for shares, score in (((0.3, 0.6), 1 / 3), ((0.05, 0.9), 0.0526316), ((0.0, 0.9), 0.0), ((0.0, 0.0), 0.0)):
        tops = tuple((token, math.log(share)) for token, share in zip((wants, keeps), shares, strict=True) if share)
        job = asking(only(Played(trained, SAID)), "played", QUESTION, library)
        gate = SelfRagGate(GateSettings(threshold=0.2, draft_tokens=1))
        gate.check(job)
        assert gate.prepare(job).sampling.top_logprobs == 20
        draft = Draft(job, job.prompt_ids, 1)
        assert await gate.decide(draft) is None
        draft.steps.append(Step(0, 0.0, 0.0, "played", tops))
        verdict = await gate.decide(draft)
        assert verdict is not None
        assert verdict.score == pytest.approx(score, abs=5e-8)
        assert verdict.fires == (score > 0.2)
    with pytest.raises(Unsupported, match=r"reads the token \[Retrieval\], which the model of 'played'"):
        await l_rag(gate="self_rag").check(asking(only(Played(tokens, SAID)), "played", QUESTION, library))


def test_a_gate_that_is_not_here_says_why() -> None:
    with pytest.raises(ValueError, match="needs a classifier that was trained"):
        l_rag(gate="adaptive_rag")


async def test_an_empty_draft_looks_things_up(tokens: TokenText, library: Library) -> None:
    for gate in ("entropy", "margin", "targ", "flare"):
        engine = Played(tokens, "", entropies=(0.0,))
        _, report = await answer(asking(only(engine), "played", QUESTION, library), l_rag(gate=gate))
        assert report["retrieval"]["triggered"] == (gate != "flare"), "an empty sentence has no unlikely token"


async def test_nothing_found_leaves_the_first_answer(tokens: TokenText, library: Library) -> None:
    engine = Played(tokens, SAID, entropies=(5.0,))
    text, report = await answer(asking(only(engine), "played", QUESTION, library), l_rag(collection="empty"))
    assert text == SAID
    assert (report["retrieval"]["triggered"], report["retrieval"]["passages"]) == (True, [])


async def test_blind_gates(tokens: TokenText, library: Library) -> None:
    for gate, asked, passages in (("always", 1, 1), ("never", 1, 0)):
        engine = Played(tokens, SAID, entropies=(0.3,))
        _, report = await answer(asking(only(engine), "played", QUESTION, library), l_rag(gate=gate))
        assert (len(engine.asked), len(report["retrieval"]["passages"])) == (asked, passages)
        assert report.get("discarded_tokens", 0) == 0
    fired = []
    for seed in range(300):
        engine = Played(tokens, SAID)
        job = asking(only(engine), "played", QUESTION, library, seed=seed)
        _, report = await answer(job, l_rag(gate="random", rate=0.3))
        fired.append(report["retrieval"]["triggered"])
    assert 0.22 < sum(fired) / 300 < 0.38


async def test_margins(tokens: TokenText, library: Library) -> None:
    for gate in ("margin", "targ"):
        engine = Played(tokens, THREE, gaps=(2.0, 0.5, 0.0))
        job = asking(only(engine), "played", QUESTION, library)
        _, report = await answer(job, l_rag(gate=gate, threshold=0.6))
        assert report["retrieval"]["score"] == pytest.approx(0.5806220, abs=5e-8)
        assert not report["retrieval"]["triggered"]


async def decided(gate: type[Gate], threshold: float, job: Job, steps: list[Step]) -> tuple[float | None, str | None]:
    """The score of a sentence, and what is looked up if the gate fires."""
    made = gate(GateSettings(threshold, 64))
    verdict = await made.decide(Draft(job, job.prompt_ids, made.longest, steps, complete=True))
    assert verdict is not None
    assert verdict.fires == (verdict.query is not None)
    return verdict.score, verdict.query


async def test_flare(tokens: TokenText, library: Library) -> None:
    """A worked example: θ = 0.8 fires, and the token at 0.35 is not looked for."""
    text = " river bird craft mayor Sorn"
    ids = tokens.encode(text)
    assert len(ids) == 5
    engine = Played(tokens, text, logprobs=[math.log(p) for p in (0.95, 0.85, 0.79, 0.99, 0.35)])
    job = asking(only(engine), "played", QUESTION, library)
    steps = [step async for step in engine.generate(job.prompt_ids, job.sampling)]
    score, query = await decided(FlareGate, 0.8, job, steps)
    assert score == pytest.approx(0.35)
    assert query == "river bird craft mayor"
    assert await decided(FlareGate, 0.3, job, steps) == (score, None)


async def test_dragin(tokens: TokenText, library: Library) -> None:
    """A worked example of four words; those with content count, and what they attend to is looked for."""
    engine = Played(tokens, " river bird craft mayor", entropies=(0.5, 1.2, 0.1, 0.8))
    engine.weights = torch.diag(torch.tensor([0.1, 0.4, 0.2, 0.3]))
    job = asking(only(engine), "played", QUESTION, library)
    steps = [step async for step in engine.generate(job.prompt_ids, job.sampling)]
    score, query = await decided(DraginGate, 1.0, job, steps)
    assert score == pytest.approx(1.92, abs=1e-6)
    assert query is not None
    assert query.split()[0] == "river", "the question's words come first, without those that have no content"
    assert "Corton" in query
    assert "What" not in query
    assert await decided(DraginGate, 1.95, job, steps) == (score, None)
    silent = Played(tokens, " the of is was", entropies=(5.0,))
    silent.weights = torch.eye(4) / 4
    steps = [step async for step in silent.generate(job.prompt_ids, job.sampling)]
    job = asking(only(silent), "played", QUESTION, library)
    assert await decided(DraginGate, 1.0, job, steps) == (0.0, None)


async def test_sentences_are_written_anew_one_by_one(tokens: TokenText, library: Library) -> None:
    first, second = "The river is the Sorn.", " The bird is the heron."
    sure, unsure = len(tokens.encode(first)), len(tokens.encode(second))
    logprobs = [-0.01] * sure + [-3.0] * (unsure + 1)
    engine = Played(tokens, first + second, logprobs=logprobs)
    text, report = await answer(asking(only(engine), "played", QUESTION, library), l_rag(gate="flare"))
    found = report["retrieval"]
    assert text == first + second
    assert (found["sentences"], found["retrievals"], found["triggered"]) == (2, 1, True)
    assert [INSTRUCTION in asked for asked in engine.asked] == [False, False, True]
    assert engine.asked[2].endswith(first), "what is written stays"
    assert report["tokens"]["played"] == sure + unsure + 1
    assert report["discarded_tokens"] == unsure + 1


async def test_summaries_open_both_prompts(tokens: TokenText, library: Library) -> None:
    engine = Played(tokens, SAID, entropies=(5.0,))
    named = [TAIL[0].id, "no-such-document", TAIL[1].id]
    _, report = await answer(asking(only(engine), "played", QUESTION, library), l_rag(documents=named))
    first, second = engine.asked
    assert report["retrieval"]["summaries"] == [TAIL[0].id, TAIL[1].id]
    assert "[2] " in first
    assert "[3] " not in first
    shared = first[: first.index(QUESTION)].rstrip()
    assert second.startswith(shared), "a prefix cache serves both tiers"
    assert "[3] " in second


async def test_an_engine_writes_summaries_once(tokens: TokenText, library: Library) -> None:
    engine = Played(tokens, "A town by a river.", entropies=(0.0,))
    for asked in (2, 1):
        engine.asked.clear()
        policy = l_rag(documents=[TAIL[2].id], summary="written")
        await answer(asking(only(engine), "played", QUESTION, library), policy)
        assert len(engine.asked) == asked
        assert "[1] A town by a river." in engine.asked[-1]
    assert library.open("towns").summaries([TAIL[2].id], "written") == {TAIL[2].id: "A town by a river."}


async def test_passages_leave_room_for_the_answer(tokens: TokenText, library: Library) -> None:
    engine = Played(tokens, SAID, entropies=(5.0,), context_length=160)
    job = asking(only(engine), "played", QUESTION, library, max_tokens=40)
    _, report = await answer(job, l_rag(top_k=8))
    used = len(report["retrieval"]["passages"])
    assert 0 < used < 8
    assert f"[{used}] " in engine.asked[1]
    assert f"[{used + 1}] " not in engine.asked[1]


async def test_metadata_filters(tokens: TokenText, library: Library) -> None:
    for kind, found in (("town", 1), ("river", 0)):
        engine = Played(tokens, SAID, entropies=(5.0,))
        _, report = await answer(asking(only(engine), "played", QUESTION, library), l_rag(filter={"kind": kind}))
        assert len(report["retrieval"]["passages"]) == found


async def test_what_is_refused_before_anything_is_written(tokens: TokenText, library: Library) -> None:
    engine = Played(tokens, SAID, exposes=frozenset())
    job = asking(only(engine), "played", QUESTION, library)
    without = Job(job.prompt_ids, job.sampling, job.engine, job.services, job.report)
    cases: list[tuple[LRAG, Job, type[Exception], str]] = [
        (l_rag(gate="dragin"), job, Unsupported, "attention weights.*'played'"),
        (l_rag(gate="seakr"), job, Unsupported, "hidden states.*'played'"),
        (l_rag(collection=None), job, Unsupported, "name the collection"),
        (l_rag(collection="nowhere"), job, NoCollection, "no collection 'nowhere'"),
        (l_rag(), without, Unsupported, "prompt as text"),
    ]
    for policy, asked, kind, said in cases:
        with pytest.raises(kind, match=said):
            await policy.check(asked)
    await l_rag().check(job)
    assert not engine.asked


@pytest.mark.parametrize("gate", ["entropy", "margin", "targ", "flare", "dragin", "seakr"])
async def test_every_gate_on_the_bundled_pair(pair: dict[str, Engine], library: Library, gate: str) -> None:
    """Known by heart: answered without a lookup. Known from documents only: looked up, and read."""
    # Set by hand: the bundled models are surer of their template than a threshold of any paper allows for.
    limits = {"entropy": 0.1, "margin": 0.05, "targ": 0.05, "flare": 0.8, "dragin": 0.1, "seakr": -2.0}
    policy = l_rag(gate=gate, threshold=limits[gate], samples=6)
    known = {each.id for each in TAIL}
    tail = [item for item in ASKED if any(item.passage == each.text for each in TAIL)][:8]
    assert len(tail) == 8
    assert len(known) == 12
    for items, expected in ((draw("frequent_facts", 77, 8), False), (tail, True)):
        fired = right = 0
        for item in items:
            job = asking(pair, "large", item.prompt, library)
            await policy.check(job)
            text, report = await answer(job, policy)
            fired += report["retrieval"]["triggered"]
            right += score_text(item.task, item.prompt, item.answer, text)
        assert fired >= 6 if expected else fired <= 2, (gate, fired)
        # What dragin looks up are words that were attended to, which need not name the town.
        assert right >= (4 if gate == "dragin" else 6), (gate, right)


async def test_under_ead(pair: dict[str, Engine], library: Library) -> None:
    """A question that only the large model can answer needs ead; one that neither can, a lookup."""
    ead = EntropyAdaptiveDecoding(threshold=0.05, monitor="small", window=1, min_tokens=1)
    for task, items, fires in (
        ("rare_facts", draw("rare_facts", 77, 6), False),
        ("tail_facts", [i for i in ASKED if any(i.passage == each.text for each in TAIL)][:6], True),
    ):
        for item in items:
            job = asking(pair, "small", item.prompt, library)
            job.report.parameters = {name: engine.parameters for name, engine in pair.items()}
            text, report = await answer(job, l_rag(threshold=0.1), ead)
            assert score_text(task, item.prompt, item.answer, text), text
            assert report["retrieval"]["triggered"] == fires


async def test_an_order_in_a_passage_stays_one_line_of_ids(
    pair: dict[str, Engine], tmp_path: Path, embedder: Embedder
) -> None:
    """Through the real store and the real template: no control token, no line and no turn comes from a passage."""
    made = Library(RetrievalConfig(path=tmp_path))
    made.embedders["all-MiniLM-L6-v2"] = embedder
    tokens = pair["small"].tokens
    bad = made.create("bad")
    bad.add([Document(f"d{i}", attempt, metadata={"n": i}) for i, attempt in enumerate(INJECTIONS)])
    special = {token for token in range(tokens.vocab_size) if tokens.is_special(token)}
    plain = asking(pair, "small", QUESTION, made)
    controls = [token for token in plain.prompt_ids if token in special]
    for number in range(len(INJECTIONS)):
        engine = Played(tokens, SAID)
        seen: list[tuple[int, ...]] = []
        job = asking(only(engine), "played", QUESTION, made)
        policy = l_rag(collection="bad", gate="always", filter={"n": number})
        generate = engine.generate

        def record(inner: Job, seen: list[Any] = seen, generate: Any = generate) -> Any:
            seen.append(inner.prompt_ids)
            return generate(inner.prompt_ids, inner.sampling)

        async for _ in policy.decode(job, record):
            pass
        (ids,) = seen
        assert [token for token in ids if token in special] == controls
        text = tokens.decode(ids)
        assert text.count("\n") == tokens.decode(plain.prompt_ids).count("\n") + 4, "instruction, quotation, two gaps"
        assert text[text.index("[1] ") :].split("\n\n", 1)[1].startswith(QUESTION)
    made.close()
