"""The plugin's state against a plain reference for each request, through both of vLLM's runners: random arrivals, ends,
preemptions, swaps and chunks of prompts, and tokens that are thrown away."""

from __future__ import annotations

import gc
import math
import random
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engines.base import Gate, Sampling
from engines.grammar import Grammar
from engines.vllm.ask import KEY, LONGEST_WINDOW, Ask
from engines.vllm.board import COMPLETE, EAGER, LAGGED, Board
from engines.vllm.decoder import Decoder, Place
from tests.engines.vllm.reference import END, KNOWN, SCHEMA, Request, expect, requests
from tests.engines.vllm.runners import CAPACITY, V1, V2, SamplingParams, Sent

PHASES = [Phase.explicit, Phase.reuse, Phase.generate]  # to shrink a case takes minutes
KINDS = ("V1", "V1 asynchronous", "V2")


@pytest.fixture(params=[KNOWN, KNOWN + 10], ids=["every id is a token", "padded"])
def vocabulary(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create()
    yield board
    board.close()


@pytest.fixture
def make(configure: Callable[..., Any], board: Board, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A fresh runner of a kind, with the plugin in it."""

    def one(kind: str, vocabulary: int) -> V1 | V2:
        config = configure(vocabulary, board.path)
        return V2(config, monkeypatch) if kind == "V2" else V1(config, "asynchronous" in kind)

    return one


class Drive:
    """Random steps of a runner, every row of which is compared with what the reference says."""

    def __init__(self, runner: V1 | V2, wanted: list[Request], dice: random.Random, board: Board, **known: Any) -> None:
        self.runner, self.dice, self.board = runner, dice, board
        self.vocabulary, self.grammar = known["vocabulary"], known["grammar"]
        self.requests = {request.name: request for request in wanted}
        self.sent = {request.name: Sent(request.name, params(request), request.prompt) for request in wanted}
        self.waiting, self.running, self.over = list(self.requests), list[str](), set[str]()
        self.evicted = set[str]()
        self.seen = {"ends": 0, "chunks": 0, "back": 0, "complete": 0, "drawn": 0}

    def run(self) -> None:
        for _ in range(300):
            self.change()
            if not self.running and not self.waiting:
                return
            if self.runner.rows:
                self.step()
        raise AssertionError("requests are left over")

    def change(self) -> None:
        """Who leaves and who comes (back) before the next step."""
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
            if request.ask is None:
                assert torch.equal(left[i], logits[i])
            state.lengths = state.lengths[1:]
            if idle[i]:
                self.seen["chunks"] += 1
                continue
            ends = request.ask is not None and self.check(request, logits[i], left[i], taken[i])
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
        ask = request.ask
        assert ask is not None
        want = expect(request, logits, self.grammar)
        if want.doubtful:
            self.over.add(request.name)
            return True
        assert (left[KNOWN:] == -torch.inf).logical_or(torch.arange(KNOWN, self.vocabulary) == (ask.stop or 0)).all()
        if want.ends:
            assert taken == ask.stop == int(left.argmax())
            self.seen["ends"] += 1
        elif want.token is not None:
            assert taken == want.token == int(left.argmax())
            self.seen["drawn"] += 1
        else:
            plain = want.raw.index_fill(0, torch.tensor([ask.stop]), -torch.inf)
            kept = left > -torch.inf
            assert torch.equal(left[kept], plain[kept])
            order = (plain / ask.temperature).softmax(-1).sort(descending=True)
            mass = order.values.cumsum(-1) - order.values < (ask.transforms[0].p if ask.transforms else 2.0)
            assert abs(int(kept.sum()) - int(mass.logical_and(order.values > 0).sum())) <= (1 if ask.transforms else 0)
        if ask.sampling is not None and ask.slot >= 0:
            entry = self.board.read(ask.slot, ask.tag, len(request.written), ask.sampling.top_logprobs)
            assert entry is not None
            assert entry.entropy == pytest.approx(want.entropy, abs=1e-4)
            assert entry.flags == want.flags
            assert want.ends or entry.logprob == pytest.approx(want.logprob, abs=1e-3)
            best = want.raw.double().log_softmax(-1).topk(3)
            values = [value for value in best.values.tolist() if value > -torch.inf]
            assert [v for _, v in entry.top] == pytest.approx(values[: len(entry.top)], abs=1e-3)
            assert len(entry.top) == min(ask.sampling.top_logprobs, len(values))
        if want.flags & COMPLETE:
            self.seen["complete"] += 1
        return want.ends or bool(want.flags & COMPLETE) or taken in ask.ends


def params(request: Request) -> SamplingParams:
    """As Waver's engine sends them, or as a stock server's client does after validation."""
    ask = request.ask
    extra = {"other": 1} if ask is None else {"other": 1, KEY: dict(ask.settled())}
    return SamplingParams(temperature=0.0, max_tokens=50, extra_args=extra)


@pytest.mark.parametrize("kind", KINDS)
def test_every_request_is_as_if_alone(
    kind: str, vocabulary: int, make: Callable[..., Any], board: Board, grammar: Callable[..., Grammar]
) -> None:
    stop = 0 if vocabulary == KNOWN else KNOWN
    seen = dict[str, int]()

    @settings(
        max_examples=10, deadline=None, phases=[Phase.reuse, Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(st.data(), st.integers(0, 2**32))
    def drive(data: st.DataObject, steps: int) -> None:
        wanted = [data.draw(requests(f"r{i}", 1 + i, stop)) for i in range(data.draw(st.integers(1, 7)))]
        first = wanted[0]
        if first.ask is not None and first.ask.slot < 0 and data.draw(st.booleans()):
            # Two choices of one request: only the engine's name for them differs.
            wanted.append(replace(first, name="twin", seed=first.seed + 1, written=[], entropies=[], fired=set()))
        known = {"vocabulary": vocabulary, "grammar": lambda: grammar(vocabulary)}
        case = Drive(make(kind, vocabulary), wanted, random.Random(steps), board, **known)
        case.run()
        for key, value in case.seen.items():
            seen[key] = seen.get(key, 0) + value

    drive()
    assert all(seen[what] for what in ("ends", "chunks", "back", "drawn")), seen


def flat(vocabulary: int, even: int) -> torch.Tensor:
    """Logits of one row with an entropy of log `even` nats."""
    row = torch.full((vocabulary,), -1e4)
    row[5 : 5 + even] = 0.0
    return row


class Alone:
    """One runner and requests whose entropies are chosen token by token."""

    def __init__(self, runner: V1 | V2, vocabulary: int) -> None:
        self.runner, self.vocabulary = runner, vocabulary
        self.sent: dict[str, Sent] = {}

    def join(self, *names: str, leaving: tuple[str, ...] = (), **asks: Ask) -> None:
        for name, ask in asks.items():
            extra = {KEY: dict(ask.settled())}
            self.sent[name] = Sent(name, SamplingParams(temperature=0.0, max_tokens=90, extra_args=extra), [7, 8, 9])
        self.runner.update(leaving, [self.sent[name] for name in (*names, *asks)])

    def step(self, **even: int) -> dict[str, int]:
        """Tokens by name; `even` are the entropies' exponentials."""
        sent = [self.sent[name] for name in self.runner.rows]
        logits = torch.stack([flat(self.vocabulary, even[s.name]) for s in sent])
        _, taken = self.runner.step(logits, sent)
        for s, token in zip(sent, taken, strict=True):
            s.lengths = s.lengths[1:]
            self.runner.keep(s, token)
            s.output.append(token)
        return dict(zip(self.runner.rows, taken, strict=True))


def gated(stop: int, tag: int = 1, **rule: Any) -> Ask:
    return Ask(Gate(**{"window": 2, "threshold": 2.0, **rule}), stop=stop, tag=tag)


@pytest.mark.parametrize("kind", KINDS)
def test_two_that_are_preempted_and_back_in_one_step_keep_their_windows(kind: str, make: Callable[..., Any]) -> None:
    """`reset_prefix_cache` does that; each may land where the other was."""
    alone = Alone(make(kind, KNOWN + 10), KNOWN + 10)
    alone.join(a=gated(KNOWN, 1), b=gated(KNOWN, 2))
    for _ in range(3):
        alone.step(a=7, b=1)
    for order in (("b", "a"), ("a", "b")):
        alone.join(*order, leaving=("a", "b"))
        # log 7 and log 8 are on average above 2 nats, 0 and log 8 are not: whose window it is decides.
        taken = alone.step(a=7, b=1)
        assert KNOWN not in taken.values()
    assert alone.step(a=8, b=8) == {"a": KNOWN, "b": 5}


@pytest.mark.parametrize("kind", KINDS)
def test_choices_of_one_request_are_told_apart(kind: str, make: Callable[..., Any]) -> None:
    """They share parameters and tag, and are preempted on the same token."""
    alone = Alone(make(kind, KNOWN + 10), KNOWN + 10)
    names = [f"{i}_request" for i in range(4)]
    alone.join(**{name: gated(KNOWN, window=3) for name in names})
    even = dict(zip(names, (1, 7, 1, 7), strict=True))
    for _ in range(3):
        alone.step(**even)
    alone.join(leaving=tuple(names))
    alone.join(*(names[i] for i in (2, 3, 0, 1)))
    taken = alone.step(**dict.fromkeys(names, 9))
    assert taken == {name: KNOWN if even[name] == 7 else 5 for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_a_lagged_gate_ends_the_request_also_if_the_next_position_is_measured_twice(
    kind: str, make: Callable[..., Any]
) -> None:
    alone = Alone(make(kind, KNOWN + 10), KNOWN + 10)
    alone.join(a=gated(KNOWN, window=1, timing="lagged"))
    assert alone.step(a=8) == {"a": 5}
    alone.join(leaving=("a",))
    alone.sent["a"].lengths = [2, 4]
    alone.join("a")
    sent = [alone.sent["a"]]
    alone.runner.step(flat(KNOWN + 10, 1)[None], sent)
    sent[0].lengths = [4]
    alone.runner.update((), ())
    assert alone.step(a=1) == {"a": KNOWN}


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_left_before_its_first_token_starts_anew(kind: str, make: Callable[..., Any]) -> None:
    alone = Alone(make(kind, KNOWN + 10), KNOWN + 10)
    alone.join(a=gated(KNOWN, window=3, threshold=1.5))
    alone.sent["a"].lengths = [2, 3]
    alone.runner.step(flat(KNOWN + 10, 1000)[None], [alone.sent["a"]])
    alone.join(leaving=("a",))
    alone.sent["a"].lengths = []
    alone.join("a")
    assert [alone.step(a=4)["a"] for _ in range(3)] == [5, 5, 5]
    alone.join(leaving=("a",))
    alone.join("a")
    assert alone.step(a=4)["a"] == 5
    assert alone.step(a=8)["a"] == KNOWN  # (log 4 + log 4 + log 8) / 3 > 1.5 nats


@pytest.mark.parametrize("kind", KINDS)
def test_whose_state_was_given_away_does_not_read_that_of_others(
    kind: str, make: Callable[..., Any], board: Board, grammar: Callable[[int], Grammar]
) -> None:
    """More requests come and go than the worker remembers before one that was preempted is back: its window starts
    over, its tokens are known, so that penalties, seeds and grammar hold."""
    vocabulary = KNOWN + 10
    alone = Alone(make(kind, vocabulary), vocabulary)
    how = Sampling(seed=11, grammar=SCHEMA, presence_penalty=0.5, answer_start=3, gate=Gate(4, 5.0))
    alone.join(a=Ask(how.gate, how, ends=(END,), stop=KNOWN, slot=3, tag=1), b=gated(KNOWN, 2, window=4, threshold=5.0))
    seen = [alone.step(a=900, b=2) for _ in range(3)]
    alone.join(leaving=("a", "b"))
    for turn in range(3 * CAPACITY):
        alone.join(leaving=() if not turn else (f"c{turn - 1}",), **{f"c{turn}": gated(KNOWN, 10 + turn, threshold=9)})
        alone.step(**{f"c{turn}": 1200})
    alone.join("b", "a", leaving=(f"c{turn}",))
    taken = alone.step(a=900, b=100)
    assert taken["b"] == 5  # log 100 alone is less than 5 nats
    answer = [step["a"] for step in seen]
    matcher = grammar(vocabulary).matcher(SCHEMA, answer)
    assert matcher.consume_token(taken["a"])
    entry = board.read(3, 1, 3)
    assert entry is not None
    assert entry.flags & (EAGER | LAGGED) == 0


def test_the_longest_window_turns_over() -> None:
    """A window as long as the table, past the end of the table, with a history."""
    decoder = Decoder(2, KNOWN, KNOWN, torch.device("cpu"))
    history = tuple(float(i % 7) for i in range(LONGEST_WINDOW + 5))
    gate = Gate(LONGEST_WINDOW, 100.0, history=history)
    live = decoder.join(Ask(gate, stop=0, tag=1), 3, 0, list)
    seen = list(history)
    for position in range(LONGEST_WINDOW + 40):
        logits = flat(KNOWN, 1 + position % 50)[None]
        seen.append(math.log(1 + position % 50))
        mean = sum(seen[-LONGEST_WINDOW:]) / LONGEST_WINDOW
        object.__setattr__(live.ask.gate, "threshold", mean - 1e-5 if position % 100 == 99 else mean + 1e-5)
        decoder.apply(logits, [Place(0, live, position)])
        assert (int(logits.argmax()) == 0) == (position % 100 == 99)


def test_memory_is_bounded_and_stated() -> None:
    decoder = Decoder(8, KNOWN, KNOWN, torch.device("cpu"))
    stated = 16 * LONGEST_WINDOW * 8 + 16 * 8 + 16 * 2 * 8
    assert decoder.nbytes == stated
    how = Sampling(presence_penalty=0.5, answer_start=2)
    born = []
    for number in range(10_000):
        live = decoder.join(Ask(Gate(3, 9.0), how, stop=0, tag=number), 2, 0, lambda: [5, 6], object())
        if number % 100 == 0:
            decoder.apply(flat(KNOWN, 4)[None], [Place(0, live, 0)])
        decoder.leave(live)
        born.append(weakref.ref(live))
    del live
    gc.collect()
    assert sum(each() is not None for each in born) <= 8
    assert decoder.nbytes == stated


def test_several_choices_among_the_alternatives_of_requests_that_report_and_that_do_not(board: Board) -> None:
    """Who has no row on the board writes into nobody else's."""
    decoder = Decoder(4, KNOWN, KNOWN, torch.device("cpu"), board.path)
    how = Sampling(temperature=0.0, top_logprobs=4)
    before = board.top.copy(), board.words.copy()
    live = decoder.join(Ask(None, how, slot=-1, tag=7), 3, 0, list)
    decoder.apply(torch.randn(1, KNOWN), [Place(0, live, 0)])
    assert (board.top == before[0]).all()
    assert (board.words == before[1]).all()
