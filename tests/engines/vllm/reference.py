"""Requests to drive the plugin with, and what it should do with each: one at a time, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from hypothesis import strategies as st

from waver.engines.base import Gate, Sampling
from waver.engines.grammar import Grammar
from waver.engines.sampling import Row, draw
from waver.engines.temperature import adapted_temperatures
from waver.engines.transforms import AdaptiveTemperature, TopH, TopP, TopW, Transform, truncate
from waver.engines.vllm.params import RequestParams
from waver.engines.vllm.ring import COMPLETE, EAGER, LAGGED

KNOWN = 1280
"""Ids of the bundled tokenizer; 2 ends a text."""
END = 2
SCHEMA = '{"type": "object", "properties": {"ab": {"type": "boolean"}}, "required": ["ab"]}'
NEAR = 2e-4
"""Nats within which a rolling mean in float32 and a threshold cannot be told apart."""


@dataclass
class Request:
    """A request and its state. `params` is None for a request that does not use the plugin."""

    name: str
    params: RequestParams | None
    prompt: list[int] | None
    seed: int
    scale: float
    most: int
    """Tokens after which it ends."""
    written: list[int] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    fired: set[int] = field(default_factory=set)
    """The positions on which a lagged gate fired."""

    def logits(self, vocabulary: int, wrong: int = 0) -> torch.Tensor:
        """The model's for the next token, or (`wrong`) some that stand in the middle of a prompt."""
        seed = hash((self.seed, len(self.written), wrong)) & 0x7FFF_FFFF
        generator = torch.Generator().manual_seed(seed)
        row = torch.randn(vocabulary, generator=generator) * self.scale * (1 + seed % 3)
        if seed % 4 == 0 and self.params is not None:  # what is barred, what ends and what pads comes up often
            row[torch.tensor([self.params.stop or 0, *self.params.ends, vocabulary - 1])] += 12.0
        return row


@dataclass
class Expected:
    """`token` is None where vLLM draws, `ends` says that the gate ends the request here. `doubtful`: the float32 mean
    lies on the threshold."""

    entropy: float
    flags: int
    ends: bool
    token: int | None
    logprob: float
    raw: torch.Tensor
    left: torch.Tensor
    """Tokens that vLLM may draw, if it draws."""
    scale: float
    """And what their logits are multiplied by before its temperature."""
    doubtful: bool


def expect(request: Request, logits: torch.Tensor, grammar: Callable[[], Grammar], geometry: torch.Tensor) -> Expected:
    """Compute the expected next token of a request that uses the plugin, and record its entropy. `geometry`: the
    whitened embeddings."""
    wanted = request.params
    assert wanted is not None
    how, gate, position = wanted.sampling, wanted.gate, len(request.written)
    ids = [*(request.prompt or ()), *request.written]
    start = len(ids) - position if how is None or how.answer_start is None else how.answer_start
    raw = logits.clone()
    raw[KNOWN:] = -math.inf
    matcher = None
    if how is not None and how.grammar is not None:
        matcher = grammar().matcher(how.grammar, ids[start:])
        grammar().mask(raw[None], [0], [matcher])
    exact = [value for value in raw.double().tolist() if value > -math.inf]
    norm = max(exact) + math.log(sum(math.exp(value - max(exact)) for value in exact))
    entropy = sum(math.exp(value - norm) * (norm - value) for value in exact)
    request.entropies[position:] = [entropy]
    eager = lagged = doubtful = ends = False
    barred = raw.clone()
    if gate is not None:
        assert wanted.stop is not None
        if wanted.stop not in wanted.ends:
            barred[wanted.stop] = -math.inf
        seen = [*gate.history, *request.entropies][-gate.window :]
        mean = sum(seen) / len(seen)
        doubtful = abs(mean - gate.threshold) < NEAR
        standing = position + (gate.timing == "lagged")
        fires = standing >= gate.min_tokens and (mean >= gate.threshold if gate.above else mean < gate.threshold)
        eager, lagged = fires and gate.timing == "eager", fires and gate.timing == "lagged"
        ends = eager or position - 1 in request.fired
        (request.fired.add if lagged else request.fired.discard)(position)
    flags = EAGER * eager + LAGGED * lagged
    token, logprob = None, math.nan
    if how is not None:
        rows = [Row(how, ids, start, wanted.ends)]
        token = int(draw(barred[None], rows, entropy=torch.tensor([entropy], dtype=torch.float32)).tokens)
        logprob = float(raw[token]) - norm
        if matcher is not None:
            matcher.consume_token(token)
            flags |= COMPLETE * matcher.is_stopped()
    base = torch.tensor([wanted.temperature])
    temperature = adapted_temperatures(base, [wanted.transforms], torch.tensor([entropy], dtype=torch.float32))
    left = truncate(barred[None] / temperature, [wanted.transforms], geometry, temperature).logits[0] > -torch.inf
    return Expected(entropy, flags, ends, token, logprob, raw, left, float(base / temperature), doubtful)


gates = st.builds(
    Gate,
    window=st.sampled_from([1, 2, 3, 5, 40]),
    threshold=st.floats(0.0, 7.0),
    above=st.booleans(),
    min_tokens=st.integers(0, 5),
    timing=st.sampled_from(["eager", "lagged"]),
    history=st.lists(st.floats(0.0, 7.0), max_size=6).map(tuple),
)
SWAYING = AdaptiveTemperature(span=0.3, low=0.1, pivot=2.0, high=6.0)
penalties = st.fixed_dictionaries(
    {
        "presence_penalty": st.sampled_from([0.0, 0.0, 1.5]),
        "frequency_penalty": st.sampled_from([0.0, 0.0, -1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.7]),
        "min_tokens": st.sampled_from([0, 0, 4]),
        "logit_bias": st.dictionaries(st.integers(3, KNOWN - 1), st.floats(-30, 30), max_size=2),
        "stop_token_ids": st.lists(st.integers(3, KNOWN - 1), max_size=2).map(tuple),
        "grammar": st.sampled_from([None, None, SCHEMA]),
        "top_logprobs": st.sampled_from([0, 3]),
        "temperature": st.sampled_from([0.0, 0.0, 0.6, 1.4]),
        "top_p": st.sampled_from([1.0, 0.8]),
        "top_k": st.sampled_from([0, 7]),
        "transforms": st.sampled_from(((), (), (TopP(p=0.7),), (SWAYING,), (SWAYING, TopP(p=0.7)))),
        "seed": st.integers(0, 2**64),
    }
)
hows = penalties.map(lambda options: Sampling(**options))
tokens = st.lists(st.integers(3, KNOWN - 1), min_size=1, max_size=8)
WIDE = TopW(warm_mass=0.05, mass_weight=4.0)
"""Here the geometry decides."""
CUTS: tuple[tuple[Transform, ...], ...] = (
    *((TopP(p=0.6),), (TopW(),), (WIDE,), (TopH(alpha=0.6),), (TopH(), WIDE)),
    *((SWAYING,), (SWAYING, WIDE), (TopP(p=0.6), SWAYING)),
)
cut: st.SearchStrategy[tuple[Transform, ...]] = st.sampled_from(((), *CUTS))


@st.composite
def requests(pick: st.DrawFn, name: str, tag: int, stop: int) -> Request:
    """One that asks for everything, for a gate alone, for a gate and a truncation, or for nothing."""
    kind = pick(st.sampled_from(["waver", "waver", "gate", "none"]))
    prompt: list[int] | None = pick(tokens)
    wanted, gate = None, pick(gates)
    if kind == "waver":
        before, how = pick(st.lists(st.integers(3, KNOWN - 1), max_size=3)), pick(hows)
        if how.grammar is not None:
            before = pick(st.sampled_from([[], [93], [93, 4]]))  # what an earlier segment wrote fits the schema
        chosen = gate if pick(st.booleans()) else None
        assert prompt is not None
        how = replace(how, gate=chosen, answer_start=len(prompt))
        prompt = [*prompt, *before]
        slot = pick(st.sampled_from([tag % 1024, tag % 1024, -1]))
        last = None if chosen is None else pick(st.sampled_from([stop, END]))  # one kept for it, or the text's own end
        wanted = RequestParams(chosen, how, ends=(END, *how.stop_token_ids), stop=last, slot=slot, tag=tag)
    elif kind == "gate":
        wanted = RequestParams(gate, transforms=pick(cut), temperature=0.9, stop=stop, tag=tag)
        prompt = prompt if pick(st.integers(0, 3)) else None
    scale = pick(st.sampled_from([0.2, 1.0, 3.0]))
    return Request(name, wanted, prompt, pick(st.integers(0, 2**20)), scale, pick(st.integers(1, 14)))
