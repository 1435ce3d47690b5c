"""Never silently bypassed: gates and draws act on every token of who asked, however vLLM is run, or are refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

import pytest
import torch

from tests.engines.driving import ROOT, plain_logits
from tests.engines.vllm_here import needs_vllm
from waver.engines import VllmConfig, load_engine
from waver.engines.base import NO_TOKEN, EngineError, Gate, Sampling, Step, Unsupported
from waver.engines.sampling import Row, draw
from waver.engines.transformers import TransformersEngine
from waver.engines.transforms import AdaptiveTemperature, TopH, TopW
from waver.engines.vllm.ring import SLOTS, EntropyRing
from waver.entropy import shannon_entropy
from waver.entropy.geometry import whiten

pytestmark = [needs_vllm, pytest.mark.timeout(1500)]  # a compiling engine on a busy machine
T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture(scope="module")
def run() -> Iterator[Run[Any]]:
    """Run coroutines on one event loop of their own: vLLM's engines stay on the loop they were first asked on."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(timeout=600)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def engine(**args: Any) -> Any:
    return load_engine("small", VllmConfig(model=str(ROOT / "models" / "small"), args={"dtype": "float32", **args}))


async def answer(engine: Any, prompt: list[int], sampling: Sampling) -> list[Step]:
    return [step async for step in engine.generate(prompt, sampling)]


def requests(count: int) -> list[tuple[list[int], Sampling]]:
    """Prompts of many lengths; every kind of gate, draws, transforms, penalties, and rows without any of them."""
    gates = [
        None,
        Gate(3, 4.0, min_tokens=20),
        Gate(2, 3.0, timing="lagged", min_tokens=30),
        Gate(4, 2.0, above=False, min_tokens=5, history=(6.0, 6.0)),
    ]
    swaying = AdaptiveTemperature(span=0.3, low=0.5, pivot=3.0, high=6.0)
    transforms = [
        (),
        (TopW(),),
        (swaying, TopH(alpha=0.6)),
        (TopW(warm_mass=0.05, potential="knn"), TopH()),
        (swaying,),
    ]
    generator = torch.Generator().manual_seed(1)
    out = []
    for i in range(count):
        length = int(torch.randint(20, 180, (1,), generator=generator))
        prompt = torch.randint(3, 1270, (length,), generator=generator).tolist()
        out.append(
            (
                prompt,
                Sampling(
                    max_tokens=60,
                    temperature=(0.0, 1.0, 1.7)[i % 3],
                    seed=i,
                    ignore_eos=i % 4 == 0,
                    gate=gates[i % 4],
                    transforms=transforms[i // 3 % 5],
                    presence_penalty=0.3 if i % 5 == 0 else 0.0,
                    top_logprobs=i % 3,
                ),
            )
        )
    return out


def assert_same(
    ours: list[list[Step]], theirs: list[list[Step]], asked: list[tuple[list[int], Sampling]], model: TransformersEngine
) -> None:
    """Equal answers, but for a draw whose point lies within rounding of the boundary between two tokens: then logits
    that differ by a hundred-thousandth draw both."""
    ties = 0
    for mine, other, (prompt, sampling) in zip(ours, theirs, asked, strict=True):
        tie = next((i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a.token != b.token), None)
        if tie is not None and NO_TOKEN not in (mine[tie].token, other[tie].token):
            ties += 1
            read = [*prompt, *(step.token for step in other[:tie])]
            logits = plain_logits(model, read)[-1].float()
            near = logits + torch.randn(400, len(logits), generator=torch.Generator().manual_seed(0)) * 1e-5
            rows = [Row(sampling, read, len(prompt), ())] * len(near)
            geometry = whiten(model.embedding_matrix()).detach()
            drawn = draw(near, rows, geometry, shannon_entropy(near)).tokens.tolist()
            assert {mine[tie].token, other[tie].token} <= set(drawn)
            mine, other = mine[:tie], other[:tie]
        assert_equal(mine, other)
    assert ties <= len(asked) // 6


def assert_equal(ours: list[Step], theirs: list[Step]) -> None:
    assert [s.token for s in ours] == [s.token for s in theirs]
    assert [s.finish for s in ours] == [s.finish for s in theirs]
    assert [s.entropy for s in ours] == pytest.approx([s.entropy for s in theirs], abs=1e-3)
    assert [s.logprob for s in ours] == pytest.approx([s.logprob for s in theirs], abs=1e-3)
    assert [s.kept for s in ours] == [s.kept for s in theirs]
    assert [[t for t, _ in s.top_logprobs] for s in ours] == [[t for t, _ in s.top_logprobs] for s in theirs]


def test_compiled_in_chunks_and_preempted(run: Run[Any], small: TransformersEngine) -> None:
    """Prompts read 64 tokens at a time, and a KV cache so small that requests are thrown out and come back."""
    cramped = engine(
        max_num_batched_tokens=64,
        max_num_seqs=16,
        max_model_len=256,
        block_size=32,
        num_gpu_blocks_override=24,
        enable_prefix_caching=False,
        disable_log_stats=False,
    )
    try:
        asked = requests(48)

        async def everybody(where: Any) -> list[list[Step]]:
            return await asyncio.gather(*(answer(where, *each) for each in asked))

        ours = run(everybody(cramped))
        theirs = asyncio.run(everybody(small))
        preemptions = [
            sample.value
            for metric in cramped.collect()
            for sample in metric.samples
            if sample.name == "vllm:num_preemptions_total"
        ]
    finally:
        run(cramped.aclose())
    assert_same(ours, theirs, asked, small)
    assert sum(steps[-1].finish == "gate" for steps in ours) > 10
    assert sum(preemptions) > 0, "nobody was preempted: the test shows nothing"


def test_speculation_refuses_what_it_cannot_do(run: Run[Any], small: TransformersEngine) -> None:
    speculation = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    speculating = engine(enforce_eager=True, speculative_config=speculation)
    try:
        prompt = small.tokens.chat([{"role": "user", "content": "What is 40 + 41 + 87 - 34 + 21 - 83?"}])
        plain = Sampling(max_tokens=80, temperature=0.0, top_logprobs=3)
        ours, theirs = run(answer(speculating, prompt, plain)), asyncio.run(answer(small, prompt, plain))
        assert [s.token for s in ours] == [s.token for s in theirs]
        assert ours[-1].finish == "stop"
        for mine, other in zip(ours, theirs, strict=True):
            low, high = mine.entropy_bounds or (1.0, 0.0)
            assert low - 1e-4 <= other.entropy <= high + 1e-4
        scored, exact = run(speculating.score(prompt, 3)), asyncio.run(small.score(prompt, 3))
        assert [s.logprob for s in scored] == pytest.approx([s.logprob for s in exact], abs=1e-3)
        for mine, other in zip(scored, exact, strict=True):
            low, high = mine.entropy_bounds or (1.0, 0.0)
            assert low - 1e-3 <= other.entropy <= high + 1e-3
        for wanted in (Sampling(gate=Gate(1, 0.1)), Sampling(transforms=(TopW(),)), Sampling(logit_bias={5: 1.0})):
            with pytest.raises(Unsupported, match="decodes speculatively"):
                run(answer(speculating, prompt, wanted))
        assert not speculating.exposes
        with pytest.raises(Unsupported, match="decodes speculatively"):
            run(speculating.hidden_state(prompt))
    finally:
        run(speculating.aclose())


def test_prefix_caching_and_choices_change_nothing(vllm_running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same prompts again, and one prompt three times at once: what is cached is measured and drawn all the same."""
    engines, cached = vllm_running.runtime.engines, list[int]()
    outputs = engines["small"]._outputs

    async def watched(*args: Any, **options: Any) -> AsyncIterator[Any]:
        async with aclosing(outputs(*args, **options)) as arriving:
            async for output in arriving:
                cached.append(output.num_cached_tokens or 0)
                yield output

    monkeypatch.setattr(engines["small"], "_outputs", watched)
    asked = [*requests(8), *[requests(8)[3]] * 3]

    async def everybody(name: str) -> list[list[Step]]:
        return await asyncio.gather(*(answer(engines[name], *each) for each in asked))

    expected = vllm_running.run(everybody("embedded-small"))
    for _ in range(2):
        cached.clear()
        assert_same(vllm_running.run(everybody("small")), expected, asked, engines["embedded-small"])
    whole_blocks = [(len(prompt) - 1) // 32 * 32 for prompt, _ in asked]
    assert set(cached) >= set(whole_blocks) - {0}, "nothing was read from the cache: the test shows nothing"


def test_what_a_reader_that_fell_behind_has_lost_is_asked_for_anew(
    vllm_running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries are gone now and then, for gates of all kinds, grammars and given texts; nobody can tell from the
    answers."""
    engine = vllm_running.runtime.engines["small"]
    schema = '{"type": "array", "items": {"type": "integer"}, "minItems": 9, "maxItems": 20}'
    asked = [*requests(24), (requests(1)[0][0], Sampling(max_tokens=60, grammar=schema, seed=5))]
    text = [5, 6, 7] * 30

    async def everybody() -> Any:
        return await asyncio.gather(*(answer(engine, *each) for each in asked), engine.score(text, 2))

    expected = vllm_running.run(everybody())
    read, gone = EntropyRing.read, list[tuple[int, int]]()

    def forgetful(ring: EntropyRing, row: int, tag: int, position: int, top: int = 0) -> Any:
        if position and (tag + 7 * position) % 11 == 0:
            gone.append((tag, position))
            return None
        return read(ring, row, tag, position, top)

    monkeypatch.setattr(EntropyRing, "read", forgetful)
    again = vllm_running.run(everybody())
    assert len({tag for tag, _ in gone}) > len(asked), "next to nothing was lost: the test shows nothing"
    assert_same(again, expected, [*asked, (text, Sampling())], vllm_running.runtime.engines["embedded-small"])


def test_an_answer_that_is_never_told_is_given_up(vllm_running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = vllm_running.runtime.engines["small"]
    monkeypatch.setattr(EntropyRing, "read", lambda *_: None)
    with pytest.raises(EngineError, match="lost an entropy"):
        vllm_running.run(answer(engine, [5, 6], Sampling(max_tokens=4)))
    monkeypatch.undo()
    assert len(vllm_running.run(answer(engine, [5, 6], Sampling(max_tokens=4, ignore_eos=True)))) == 4
    assert len(engine.model._slots) == SLOTS


@pytest.mark.parametrize("length", [1, 2, 3, 32, 33, 34, 65, 180])
def test_given_texts_are_scored(vllm_running: Any, length: int) -> None:
    """An end of the text in the middle ends nothing; nor does it matter whose requests are between."""
    engines = vllm_running.runtime.engines
    end = engines["small"].tokens.eos_ids[0]
    text = [end if i == length // 2 else token for i, token in enumerate(requests(16)[length % 16][0] * 9)][:length]

    async def both() -> Any:
        others = answer(engines["small"], text[:20], Sampling(max_tokens=60, seed=length, ignore_eos=True))
        return await asyncio.gather(*(engines[name].score(text, 3) for name in ("small", "embedded-small")), others)

    ours, theirs, _ = vllm_running.run(both())
    assert [s.token for s in ours] == [s.token for s in theirs] == text[1:]
    assert_equal(ours, theirs)
    assert all(s.entropy_bounds is None for s in ours)


def test_what_would_fail_in_the_worker_is_refused_before_it_gets_there(vllm_running: Any) -> None:
    """There it would end the engine, and with it the requests of all others."""
    engine = vllm_running.runtime.engines["small"]
    restarts, prompt = engine.restarts, requests(1)[0][0]
    schema = '{"type": "array", "items": {"type": "boolean"}, "maxItems": 1}'
    hopeless = {
        "does not fit": Sampling(grammar=schema, answer_start=len(prompt) - 2),
        "cannot be enforced": Sampling(grammar='{"type": "nothing"}'),
    }
    for message, sampling in hopeless.items():
        with pytest.raises(Unsupported, match=message):
            vllm_running.run(answer(engine, prompt, sampling))
    steps = vllm_running.run(answer(engine, prompt, Sampling(grammar=schema, max_tokens=40)))
    assert engine.tokens.decode([step.token for step in steps]) in ("[]", "[true]", "[false]")
    assert engine.restarts == restarts
