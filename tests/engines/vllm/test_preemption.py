"""The worker's state of requests that leave and come back: its content, lifetime and size."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.engines.vllm.reference import END, KNOWN, SCHEMA
from tests.engines.vllm.runners import CAPACITY, KINDS, V1, V2, SamplingParams, Sent
from waver.engines.base import Gate, Sampling
from waver.engines.grammar import Grammar
from waver.engines.vllm.decoder import BatchRow, Decoder
from waver.engines.vllm.params import KEY, LONGEST_WINDOW, RequestParams
from waver.engines.vllm.ring import EAGER, LAGGED, EntropyRing


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

    def join(self, *names: str, leaving: tuple[str, ...] = (), **asked: RequestParams) -> None:
        for name, wanted in asked.items():
            extra = {KEY: dict(wanted.encode())}
            self.sent[name] = Sent(name, SamplingParams(temperature=0.0, max_tokens=90, extra_args=extra), [7, 8, 9])
        self.runner.update(leaving, [self.sent[name] for name in (*names, *asked)])

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


def gated(stop: int, tag: int = 1, **rule: Any) -> RequestParams:
    return RequestParams(Gate(**{"window": 2, "threshold": 2.0, **rule}), stop=stop, tag=tag)


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
def test_what_was_written_is_read_again_in_chunks(kind: str, make: Callable[..., Any]) -> None:
    """The chunks end within the answer, and what is measured there is not what was."""
    alone = Alone(make(kind, KNOWN + 10), KNOWN + 10)
    how = Sampling(temperature=0.0, presence_penalty=1.0, answer_start=3, gate=Gate(3, 2.0))
    alone.join(a=RequestParams(how.gate, how, ends=(END,), stop=KNOWN, tag=1))
    assert [alone.step(a=6)["a"] for _ in range(3)] == [5, 6, 7]  # what was said counts less
    alone.join(leaving=("a",))
    alone.sent["a"].lengths = [4, 5, 6]
    alone.join("a")
    for _ in range(2):
        alone.runner.step(flat(KNOWN + 10, 1000)[None], [alone.sent["a"]])
        alone.sent["a"].lengths.pop(0)
        alone.runner.update((), ())
    assert [alone.step(a=6)["a"] for _ in range(2)] == [8, 9]
    assert alone.step(a=40)["a"] == KNOWN


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_left_behind_before_the_first_token_is_not_found_later(kind: str, make: Callable[..., Any]) -> None:
    """Also if the token that follows the first one is lost, so that the number of tokens would speak for it."""
    alone = Alone(make(kind, KNOWN + 10), KNOWN + 10)
    alone.join(a=gated(KNOWN, window=3, threshold=3.0))
    alone.sent["a"].lengths = [2, 3]
    alone.runner.step(flat(KNOWN + 10, 1000)[None], [alone.sent["a"]])
    alone.join(leaving=("a",))
    alone.sent["a"].lengths = []
    alone.join("a")
    assert alone.step(a=2) == {"a": 5}
    alone.runner.step(flat(KNOWN + 10, 2)[None], [alone.sent["a"]])
    alone.join(leaving=("a",))
    alone.join("a")
    assert alone.step(a=2) == {"a": 5}


def test_a_grammar_goes_back_with_the_tokens(grammar: Callable[[int], Grammar]) -> None:
    """A failed transfer of cached keys may cost several tokens."""
    decoder = Decoder(2, KNOWN, KNOWN, torch.device("cpu"), grammar=lambda: grammar(KNOWN))
    how = Sampling(temperature=0.0, grammar=SCHEMA, answer_start=2)
    state = decoder.join(RequestParams(None, how, ends=(END,), tag=1), 2, 0, lambda: [5, 6])

    def take(position: int) -> int:
        logits = torch.arange(KNOWN, 0, -1).float()[None]
        decoder.apply(logits, [BatchRow(0, state, position)])
        return int(logits.argmax())

    answer = [take(position) for position in range(5)]
    assert [take(position) for position in (1, 2, 3, 4)] == answer[1:]
    assert grammar(KNOWN).matcher(SCHEMA, answer) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_whose_state_was_given_away_does_not_read_that_of_others(
    kind: str, make: Callable[..., Any], ring: EntropyRing, grammar: Callable[[int], Grammar]
) -> None:
    """More requests come and go than the worker needs_tokens before one that was preempted is back: its window starts
    over, its tokens are known, so that penalties, seeds and grammar hold."""
    vocabulary = KNOWN + 10
    alone = Alone(make(kind, vocabulary), vocabulary)
    how = Sampling(seed=11, grammar=SCHEMA, presence_penalty=0.5, answer_start=3, gate=Gate(4, 5.0))
    alone.join(
        a=RequestParams(how.gate, how, ends=(END,), stop=KNOWN, slot=3, tag=1),
        b=gated(KNOWN, 2, window=4, threshold=4.0),
    )
    seen = [alone.step(a=900, b=2) for _ in range(3)]
    alone.join(leaving=("a", "b"))
    for turn in range(3 * CAPACITY):
        alone.join(leaving=() if not turn else (f"c{turn - 1}",), **{f"c{turn}": gated(KNOWN, 10 + turn, threshold=9)})
        alone.step(**{f"c{turn}": 1200})
    alone.join("b", "a", leaving=(f"c{turn}",))
    taken = alone.step(a=900, b=100)
    assert taken["b"] == KNOWN  # log 100 alone is more than 4 nats
    answer = [step["a"] for step in seen]
    matcher = grammar(vocabulary).matcher(SCHEMA, answer)
    assert matcher.consume_token(taken["a"])
    entry = ring.read(3, 1, 3)
    assert entry is not None
    assert entry.flags & (EAGER | LAGGED) == 0


def test_the_longest_window_turns_over() -> None:
    """A window as long as the table, past the end of the table, with a history."""
    decoder = Decoder(2, KNOWN, KNOWN, torch.device("cpu"))
    history = tuple(float(i % 7) for i in range(LONGEST_WINDOW + 5))
    gate = Gate(LONGEST_WINDOW, 100.0, history=history)
    state = decoder.join(RequestParams(gate, stop=0, tag=1), 3, 0, list)
    seen = list(history)
    for position in range(LONGEST_WINDOW + 40):
        logits = flat(KNOWN, 1 + position % 50)[None]
        seen.append(math.log(1 + position % 50))
        mean = sum(seen[-LONGEST_WINDOW:]) / LONGEST_WINDOW
        object.__setattr__(state.params.gate, "threshold", mean - 1e-5 if position % 100 == 99 else mean + 1e-5)
        decoder.apply(logits, [BatchRow(0, state, position)])
        assert (int(logits.argmax()) == 0) == (position % 100 == 99)


def test_memory_is_bounded_and_stated() -> None:
    decoder = Decoder(8, KNOWN, KNOWN, torch.device("cpu"))
    windows, crossings, offsets = 16 * (LONGEST_WINDOW + 1) * 8, 16 * 2 * 8, LONGEST_WINDOW * 8
    stated = windows + crossings + offsets
    assert decoder.nbytes == stated
    how = Sampling(presence_penalty=0.5, answer_start=2)
    born = []
    for number in range(10_000):
        state = decoder.join(RequestParams(Gate(3, 9.0), how, stop=0, tag=number), 2, 0, lambda: [5, 6], object())
        if number % 100 == 0:
            decoder.apply(flat(KNOWN, 4)[None], [BatchRow(0, state, 0)])
        decoder.leave(state)
        born.append(weakref.ref(state))
    del state
    gc.collect()
    assert sum(each() is not None for each in born) <= 8
    assert decoder.nbytes == stated


def test_who_has_no_row_on_the_board_writes_into_nobody_elses(ring: EntropyRing) -> None:
    decoder = Decoder(4, KNOWN, KNOWN, torch.device("cpu"), ring.path)
    how = Sampling(temperature=0.0, top_logprobs=4)
    before = ring.top.copy(), ring.words.copy()
    state = decoder.join(RequestParams(None, how, slot=-1, tag=7), 3, 0, list)
    decoder.apply(torch.randn(1, KNOWN), [BatchRow(0, state, 0)])
    assert (ring.top == before[0]).all()
    assert (ring.words == before[1]).all()
