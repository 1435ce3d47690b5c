"""The plugin's state against a plain reference for each request, through both of vLLM's runners: random arrivals, ends,
preemptions, swaps and chunks of prompts, and tokens that are thrown away."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.engines.vllm.reference import END, KNOWN, Request, expect, requests
from tests.engines.vllm.runners import KINDS, V1, V2, SamplingParams, Sent
from waver.engines.base import Sampling
from waver.engines.grammar import Grammar
from waver.engines.transforms import TopH, TopW, truncate
from waver.engines.vllm.decoder import BatchRow, Decoder
from waver.engines.vllm.params import KEY, RequestParams
from waver.engines.vllm.ring import COMPLETE, EntropyRing
from waver.engines.weights import input_embeddings
from waver.entropy.geometry import whiten

PHASES = [Phase.explicit, Phase.reuse, Phase.generate]  # to shrink a case takes minutes


@pytest.fixture(params=[KNOWN, KNOWN + 10], ids=["every id is a token", "padded"])
def vocabulary(request: pytest.FixtureRequest) -> int:
    return int(request.param)


class Drive:
    """Random steps of a runner, every row of which is compared with what the reference says."""

    def __init__(
        self, runner: V1 | V2, wanted: list[Request], dice: random.Random, ring: EntropyRing, **known: Any
    ) -> None:
        self.runner, self.dice, self.ring = runner, dice, ring
        self.vocabulary, self.grammar, self.geometry = (known[name] for name in ("vocabulary", "grammar", "geometry"))
        self.requests = {request.name: request for request in wanted}
        self.sent = {request.name: Sent(request.name, params(request), request.prompt) for request in wanted}
        self.waiting, self.running, self.over = list(self.requests), list[str](), set[str]()
        self.evicted = set[str]()
        self.seen = {"ends": 0, "chunks": 0, "back": 0, "complete": 0, "drawn": 0, "cut": 0}

    def run(self) -> None:
        for _ in range(300):
            self.change()
            if not self.running and not self.waiting:
                return
            if self.runner.rows:
                self.step()
        raise AssertionError("requests are left over")

    def change(self) -> None:
        """Choose the requests that leave and those that come (back) before the next step."""
        chance = self.dice.random
        gone = [name for name in self.running if name in self.over and chance() < 0.7]
        back = [name for name in self.running if name not in self.over and (name in self.evicted or chance() < 0.12)]
        self.evicted.clear()
        self.running = [name for name in self.running if name not in (*gone, *back)]
        room, coming = 5 - len(self.running), list[str]()
        for name in [*back, *self.waiting]:  # who was sent away may be back in the same step
            if len(coming) < room and chance() < 0.6:
                coming.append(name)
        self.waiting = [name for name in [*back, *self.waiting] if name not in coming]
        self.dice.shuffle(coming)
        for name in coming:
            sent = self.sent[name]
            whole = sent.size + len(sent.output)
            chunks = self.dice.sample(range(1, whole), min(whole - 1, self.dice.choice([0, 0, 1, 2])))
            sent.lengths = [*sorted(chunks), whole]
            self.seen["back"] += bool(sent.output)
        swaps = [(self.dice.randrange(9), self.dice.randrange(9)) for _ in range(self.dice.choice([0, 0, 1, 3]))]
        self.running += coming
        arriving = [self.sent[name] for name in coming]
        self.runner.update([*gone, *back], arriving, swaps if self.running else ())
        if isinstance(self.runner, V2):
            self.runner.pause({name for name in self.running if chance() < 0.1})

    def step(self) -> None:
        rows = [self.requests[name] for name in self.runner.rows]
        sent = [self.sent[name] for name in self.runner.rows]
        idle = [s.partial or r.name in self.over for r, s in zip(rows, sent, strict=True)]
        chunk = [len(s.lengths) * i for s, i in zip(sent, idle, strict=True)]
        logits = torch.stack([r.logits(self.vocabulary, wrong) for r, wrong in zip(rows, chunk, strict=True)])
        left, taken = self.runner.step(logits.clone(), sent)
        for i, (request, state) in enumerate(zip(rows, sent, strict=True)):
            if request.params is None:
                assert torch.equal(left[i], logits[i])
            state.lengths = state.lengths[1:]
            if idle[i]:
                self.seen["chunks"] += 1
                continue
            ends = request.params is not None and self.check(request, logits[i], left[i], taken[i])
            if request.name in self.over:
                continue
            if self.dice.random() < 0.07:
                self.evicted.add(request.name)  # its token is lost, so it is preempted and comes back without it
                continue
            self.runner.keep(state, taken[i])
            state.output.append(taken[i])
            request.written.append(taken[i])
            if ends or len(request.written) >= request.most or self.dice.random() < 0.02:
                self.over.add(request.name)

    def check(self, request: Request, logits: torch.Tensor, left: torch.Tensor, taken: int) -> bool:
        """Compare one row; whether the request is at its end."""
        sent_params = request.params
        assert sent_params is not None
        want = expect(request, logits, self.grammar, self.geometry)
        if want.doubtful:
            self.over.add(request.name)
            return True
        assert (
            (left[KNOWN:] == -torch.inf)
            .logical_or(torch.arange(KNOWN, self.vocabulary) == (sent_params.stop or 0))
            .all()
        )
        if want.ends:
            assert taken == sent_params.stop == int(left.argmax())
            self.seen["ends"] += 1
        elif want.token is not None:
            assert taken == want.token == int(left.argmax())
            self.seen["drawn"] += 1
        else:
            plain = want.raw.index_fill(0, torch.tensor([sent_params.stop]), -torch.inf)
            kept = left > -torch.inf
            torch.testing.assert_close(left[kept], plain[kept] * want.scale, atol=1e-4, rtol=1e-5)
            assert want.scale != 1.0 or torch.equal(left[kept], plain[kept])
            assert int((kept ^ want.left).sum()) <= (1 if sent_params.transforms else 0)
            self.seen["cut"] += bool(sent_params.transforms)
        if sent_params.sampling is not None and sent_params.slot >= 0:
            entry = self.ring.read(
                sent_params.slot, sent_params.tag, len(request.written), sent_params.sampling.top_logprobs
            )
            assert entry is not None
            assert entry.entropy == pytest.approx(want.entropy, abs=1e-4)
            assert entry.flags == want.flags
            assert want.ends or entry.logprob == pytest.approx(want.logprob, abs=1e-3)
            best = want.raw.double().log_softmax(-1).topk(3)
            values = [value for value in best.values.tolist() if value > -torch.inf]
            assert [v for _, v in entry.top] == pytest.approx(values[: len(entry.top)], abs=1e-3)
            assert len(entry.top) == min(sent_params.sampling.top_logprobs, len(values))
        if want.flags & COMPLETE:
            self.seen["complete"] += 1
        return want.ends or bool(want.flags & COMPLETE) or taken in sent_params.ends


def params(request: Request) -> SamplingParams:
    """As Waver's engine sends them, or as a stock server's client does after validation."""
    sent_params = request.params
    extra = {"other": 1} if sent_params is None else {"other": 1, KEY: dict(sent_params.encode())}
    return SamplingParams(temperature=0.0, max_tokens=50, extra_args=extra)


@pytest.mark.parametrize("kind", KINDS)
def test_every_request_is_as_if_alone(
    kind: str,
    vocabulary: int,
    make: Callable[..., Any],
    ring: EntropyRing,
    grammar: Callable[..., Grammar],
    checkpoint: Callable[[int], Path],
) -> None:
    geometry = whiten(input_embeddings(str(checkpoint(vocabulary))))
    stop = 0 if vocabulary == KNOWN else KNOWN
    seen = dict[str, int]()

    @settings(
        max_examples=10, deadline=None, phases=[Phase.reuse, Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(st.data(), st.integers(0, 2**32))
    def drive(data: st.DataObject, steps: int) -> None:
        wanted = [data.draw(requests(f"r{i}", 1 + i, stop)) for i in range(data.draw(st.integers(1, 7)))]
        first = wanted[0]
        if first.params is not None and first.params.slot < 0 and data.draw(st.booleans()):
            # Two choices of one request: only the engine's name for them differs.
            wanted.append(replace(first, name="twin", seed=first.seed + 1, written=[], entropies=[], fired=set()))
        known = {"vocabulary": vocabulary, "grammar": lambda: grammar(vocabulary), "geometry": geometry}
        case = Drive(make(kind, vocabulary), wanted, random.Random(steps), ring, **known)
        case.run()
        for key, value in case.seen.items():
            seen[key] = seen.get(key, 0) + value

    wanted = ("ends", "chunks", "back", "drawn", "cut")
    for _ in range(5):  # ten examples may miss one by chance
        if not all(seen.get(what) for what in wanted):
            drive()
    assert all(seen[what] for what in wanted), seen


@pytest.mark.parametrize("stock", [False, True])
def test_embeddings_are_made_once_and_only_when_a_row_needs_them(stock: bool) -> None:
    made = list[torch.Tensor]()

    def make() -> torch.Tensor:
        made.append(whiten(torch.randn(KNOWN, 8, generator=torch.Generator().manual_seed(3))))
        return made[-1]

    decoder = Decoder(4, KNOWN, KNOWN, torch.device("cpu"), geometry=make)
    wide = TopW(warm_mass=0.05, mass_weight=6.0)
    requested = [
        RequestParams(transforms=(each,)) if stock else RequestParams(None, Sampling(seed=1, transforms=(each,)))
        for each in (TopW(), TopH(), wide)
    ]
    states = [decoder.join(sent_params, 3, 0, list) for sent_params in requested]
    assert not made
    peaked = torch.zeros(3, KNOWN)
    peaked[:, 9] = 20.0
    decoder.apply(peaked, [BatchRow(row, state, 0) for row, state in enumerate(states)])
    assert not made
    for position in (1, 2):
        flat = torch.randn(3, KNOWN, generator=torch.Generator().manual_seed(position))
        left = flat.clone()
        decoder.apply(left, [BatchRow(row, state, position) for row, state in enumerate(states)])
        assert len(made) == 1
        expected = truncate(flat[2:], [(wide,)], made[0]).logits[0] > -torch.inf
        kept = left[2] > -torch.inf
        assert torch.equal(kept, expected) if stock else bool(expected[left[2].argmax()])


@pytest.mark.parametrize("kind", KINDS)
def test_given_tokens_are_taken_and_measured(kind: str, make: Callable[..., Any], ring: EntropyRing) -> None:
    """Beside one that draws; what is measured past their end is thrown away."""
    runner = make(kind, KNOWN + 10)
    given, how = (7, END, 1279), Sampling(temperature=0.0, top_logprobs=2)
    requested = [
        RequestParams(None, how, slot=4, tag=8, given=given),
        RequestParams(None, replace(how, seed=1, temperature=1.0), slot=5, tag=9),
    ]
    sent = [
        Sent(
            f"r{i}", SamplingParams(temperature=0.0, max_tokens=9, extra_args={KEY: dict(sent_params.encode())}), [5, 6]
        )
        for i, sent_params in enumerate(requested)
    ]
    runner.update((), sent)
    for position in range(4):
        logits = torch.randn(2, KNOWN + 10, generator=torch.Generator().manual_seed(position))
        _, taken = runner.step(logits.clone(), sent)
        raw = logits[:, :KNOWN].double().log_softmax(-1)
        if position < len(given):
            assert taken[0] == given[position]
        for row, (sent_params, token) in enumerate(zip(requested, taken, strict=True)):
            entry = ring.read(sent_params.slot, sent_params.tag, position, 2)
            assert entry is not None
            assert entry.logprob == pytest.approx(float(raw[row, token]), abs=1e-4)
            assert entry.entropy == pytest.approx(float(-(raw[row].exp() * raw[row]).sum()), abs=1e-4)
            assert [value for _, value in entry.top] == pytest.approx(raw[row].topk(2).values.tolist(), abs=1e-4)
        for each, token in zip(sent, taken, strict=True):
            each.lengths = each.lengths[1:]
            runner.keep(each, token)
            each.output.append(token)
        runner.update((), ())
