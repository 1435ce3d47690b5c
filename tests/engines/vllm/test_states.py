"""Hidden states leave the worker with those who ask for them, found where both of vLLM's runners keep them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engines.base import Sampling
from engines.vllm.ask import KEY, Ask
from engines.vllm.board import Board
from tests.engines.vllm.conftest import HIDDEN
from tests.engines.vllm.reference import KNOWN
from tests.engines.vllm.runners import KINDS, V1, V2, GPUModelRunner, SamplingParams, Sent

GREEDY = Sampling(temperature=0.0, max_tokens=1, logprobs=False)
ASKS = [
    Ask(sampling=GREEDY, slot=3, tag=8, hidden=True),
    None,
    Ask(sampling=Sampling(seed=1), slot=4, tag=9),
    Ask(sampling=GREEDY, slot=5, tag=10, hidden=True),
]


def sent(ask: Ask | None, name: str) -> Sent:
    extra = {} if ask is None else {KEY: dict(ask.settled())}
    return Sent(name, SamplingParams(temperature=0.0, max_tokens=9, extra_args=extra), [5, 6])


def step(runner: V1 | V2, asked: list[Sent], states: torch.Tensor, head: torch.Tensor) -> list[int]:
    """A step of the runner's own code around the sampler, of which one is vLLM's and runs here as it is."""
    by_name = {each.name: each for each in asked}
    rows = [by_name[name] for name in runner.rows]
    if isinstance(runner, V2):
        taken: list[int] = []

        def sampler(logits: torch.Tensor, _: Any) -> Any:
            taken[:] = runner.step(logits, rows)[1]
            return SimpleNamespace(num_sampled=None, num_rejected=None)

        model = SimpleNamespace(compute_logits=lambda states: states @ head.T)
        own = SimpleNamespace(batch_sharder=None, model=model, sampler=sampler, rejection_sampler=None)
        batch = SimpleNamespace(logits_indices=torch.arange(len(states)), num_reqs=len(states), num_draft_tokens=0)
        GPUModelRunner.sample(own, states, batch, None)
        return taken
    sample_hidden_states = states  # as `GPUModelRunner.sample_tokens`, which needs a whole engine around it
    return runner.step(sample_hidden_states @ head.T, rows)[1]


@pytest.mark.parametrize("width", [HIDDEN, HIDDEN + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_who_asks_is_told(kind: str, width: int, make: Callable[..., Any], board: Board) -> None:
    """Its own, in whichever row it is. A model whose states are not as wide as was thought leaves nothing, and ends
    nobody's request."""
    runner, asked = make(kind, KNOWN), [sent(ask, f"r{i}") for i, ask in enumerate(ASKS)]
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(len(asked), width, generator=generator)
    head = torch.randn(KNOWN, width, generator=generator)
    runner.update((), asked, [(0, 2), (1, 3)])
    taken = step(runner, asked, states, head)
    logits = states @ head.T
    for row, name in enumerate(runner.rows):
        ask = ASKS[int(name[1:])]
        if ask is None or not ask.hidden:
            continue
        assert taken[row] == int(logits[row].argmax())
        assert board.read(ask.slot, ask.tag, 0) is not None
        found = board.state(ask.slot, ask.tag)
        if width == HIDDEN:
            assert found is not None
            assert torch.equal(found, states[row])
        else:
            assert found is None
    assert board.state(4, 9) is None
    assert not board.states[[r for r in range(len(board.states)) if r not in (3, 5)]].any()


@pytest.mark.parametrize("kind", KINDS)
def test_where_they_are_not_found_nothing_is_reported(kind: str, make: Callable[..., Any], board: Board) -> None:
    runner, asked = make(kind, KNOWN), [sent(ask, f"r{i}") for i, ask in enumerate(ASKS)]
    runner.update((), asked)
    runner.step(torch.randn(len(asked), KNOWN), asked)
    assert board.read(3, 8, 0) is not None
    assert not board.states.any()
