"""Hidden states leave the worker with those who ask for them, found where both of vLLM's runners keep them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.engines.vllm.conftest import HIDDEN
from tests.engines.vllm.reference import KNOWN
from tests.engines.vllm.runners import KINDS, V1, V2, GPUModelRunner, SamplingParams, Sent
from waver.engines.base import Sampling
from waver.engines.vllm.params import KEY, RequestParams
from waver.engines.vllm.ring import EntropyRing

Starts = np.ndarray[Any, Any]

GREEDY = Sampling(temperature=0.0, max_tokens=1, logprobs=False)
ASKS = [
    RequestParams(sampling=GREEDY, slot=3, tag=8, hidden=0),
    None,
    RequestParams(sampling=Sampling(seed=1), slot=4, tag=9),
    RequestParams(sampling=GREEDY, slot=5, tag=10, hidden=0),
    RequestParams(sampling=GREEDY, slot=6, tag=11, hidden=2),
    RequestParams(sampling=Sampling(seed=2), slot=7, tag=12, hidden=4),
    RequestParams(sampling=GREEDY, slot=8, tag=13, hidden=3),
]
READ = [1, 4, 2, 3, 7, 5, 3]
"""Tokens of each that the step reads: the last asks for one that was read in another."""


def sent(wanted: RequestParams | None, name: str) -> Sent:
    extra = {} if wanted is None else {KEY: dict(wanted.encode())}
    return Sent(name, SamplingParams(temperature=0.0, max_tokens=9, extra_args=extra), [5, 6])


class Legacy:
    """Names as in `GPUModelRunner.sample_tokens` of the legacy runner, which needs a whole engine around it."""

    def __init__(self, starts: Starts) -> None:
        self.query_start_loc = SimpleNamespace(np=starts)

    def sample_tokens(
        self,
        runner: V1 | V2,
        rows: list[Sent],
        hidden_states: torch.Tensor,
        sample_hidden_states: torch.Tensor,
        head: torch.Tensor,
    ) -> list[int]:
        return runner.step(sample_hidden_states @ head.T, rows)[1]


def step(
    runner: V1 | V2, asked: list[Sent], hidden_states: torch.Tensor, starts: Starts, head: torch.Tensor
) -> list[int]:
    """A step of the runner's own code around the sampler, of which one is vLLM's and runs here as it is."""
    by_name = {each.name: each for each in asked}
    rows = [by_name[name] for name in runner.rows]
    ends = torch.from_numpy(starts[1:] - 1)
    if isinstance(runner, V2):
        taken: list[int] = []

        def sampler(logits: torch.Tensor, _: Any) -> Any:
            taken[:] = runner.step(logits, rows)[1]
            return SimpleNamespace(num_sampled=None, num_rejected=None)

        model = SimpleNamespace(compute_logits=lambda states: states @ head.T)
        own = SimpleNamespace(batch_sharder=None, model=model, sampler=sampler, rejection_sampler=None)
        batch = SimpleNamespace(logits_indices=ends, query_start_loc_np=starts, num_reqs=len(rows), num_draft_tokens=0)
        GPUModelRunner.sample(own, hidden_states, batch, None)
        return taken
    return Legacy(starts).sample_tokens(runner, rows, hidden_states, hidden_states[ends], head)


@pytest.mark.parametrize("width", [HIDDEN, HIDDEN + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_who_asks_is_told(kind: str, width: int, make: Callable[..., Any], ring: EntropyRing) -> None:
    """Its own, in whichever row it is. A model whose states are not as wide as was thought leaves nothing, and ends
    nobody's request."""
    runner, asked = make(kind, KNOWN), [sent(wanted, f"r{i}") for i, wanted in enumerate(ASKS)]
    generator = torch.Generator().manual_seed(1)
    runner.update((), asked, [(0, 2), (1, 3), (0, 5), (4, 6)])
    order = [int(name[1:]) for name in runner.rows]
    starts = np.cumsum([0, *(READ[i] for i in order)])
    states = torch.randn(int(starts[-1]) + 3, width, generator=generator)  # a graph's padding goes beyond the tokens
    head = torch.randn(KNOWN, width, generator=generator)
    taken = step(runner, asked, states, starts, head)
    logits = states[starts[1:] - 1] @ head.T
    for row, i in enumerate(order):
        wanted = ASKS[i]
        if wanted is None or wanted.hidden is None:
            continue
        assert ring.read(wanted.slot, wanted.tag, 0) is not None
        if wanted.sampling == GREEDY:
            assert taken[row] == int(logits[row].argmax())
        found = ring.state(wanted.slot, wanted.tag)
        if width == HIDDEN and wanted.hidden < READ[i]:
            assert found is not None
            assert torch.equal(found, states[starts[row + 1] - 1 - wanted.hidden])
        else:
            assert found is None
    told = [wanted.slot for wanted in ASKS if wanted is not None and wanted.hidden is not None]
    assert not ring.states[[r for r in range(len(ring.states)) if r not in told]].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_part_of_a_prompt_takes_back_what_an_earlier_one_said(
    kind: str, make: Callable[..., Any], ring: EntropyRing
) -> None:
    """Read in parts of 3 and 2 tokens, a prompt leaves the state of the token before the last; of 4 and 1, none."""
    for number, (parts, known) in enumerate((((3, 2), True), ((4, 1), False))):
        runner = make(kind, KNOWN)
        wanted = RequestParams(sampling=GREEDY, slot=number, tag=20 + number, hidden=1)
        one = replace(sent(wanted, "r"), prompt=[5, 6, 7, 8, 9], lengths=[parts[0], 5])
        runner.update((), [one])
        states = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(number))
        head = torch.eye(KNOWN, HIDDEN)
        for begin, count in ((0, parts[0]), parts):
            step(runner, [one], states[begin : begin + count], np.array([0, count]), head)
            one.lengths.pop(0)
        found = ring.state(wanted.slot, wanted.tag)
        assert (found is not None) == known
        assert found is None or torch.equal(found, states[3])


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_are_no_rows_of_the_step_are_not_taken(
    kind: str, make: Callable[..., Any], ring: EntropyRing
) -> None:
    """A vLLM that means something else by its names leaves nothing in the middle of a prompt, and the ends as ever."""
    runner, asked = make(kind, KNOWN), [sent(wanted, f"r{i}") for i, wanted in enumerate(ASKS[3:5])]
    runner.update((), asked)
    rows = [next(each for each in asked if each.name == name) for name in runner.rows]
    every = torch.randn(10, HIDDEN, generator=torch.Generator().manual_seed(2))
    ends, head = every[[2, 9]], torch.eye(KNOWN, HIDDEN)
    Legacy(np.array([0, 3, 10])).sample_tokens(runner, rows, every.flip(0), ends, head)
    assert ring.state(6, 11) is None
    end = ring.state(5, 10)
    assert end is not None
    assert torch.equal(end, ends[[each.name for each in rows].index("r0")])


@pytest.mark.parametrize("kind", KINDS)
def test_where_they_are_not_found_nothing_is_reported(kind: str, make: Callable[..., Any], ring: EntropyRing) -> None:
    runner, asked = make(kind, KNOWN), [sent(wanted, f"r{i}") for i, wanted in enumerate(ASKS)]
    runner.update((), asked)
    runner.step(torch.randn(len(asked), KNOWN), asked)
    assert ring.read(3, 8, 0) is not None
    assert not ring.states.any()
