"""Draw runs of a topology: the calls' texts and entropy traces (Entropy Judger, arXiv 2602.04234)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from waver.choice import plurality
from waver.concurrency import together
from waver.engines.base import NO_TOKEN, Step, Unsupported
from waver.engines.tokens import TokenText
from waver.engines.transforms import TopP
from waver.entropy.traces import Call, Trace
from waver.policies.base import Policy, Proceed
from waver.policies.budget import Budget, Ledger, metered
from waver.policies.job import Job
from waver.policies.select.final_answer import Form, final_answer
from waver.policies.select.topologies import ROLES, Said, Topology, conversation, seen, turns

Measure = Literal["drawn", "raw"]


@dataclass(frozen=True)
class Settings:
    """Settings of runs: how they are drawn and read."""

    topology: Topology = "single"
    rounds: int = 1
    engines: Mapping[str, str] = field(default_factory=dict)
    temperature: float = 0.6
    top_p: float = 0.95
    entropy: Measure = "drawn"
    form: Form = "auto"
    presets: Mapping[str, tuple[Policy, ...]] = field(default_factory=dict)
    """Policies of roles, in place of those of the request that are inside."""


@dataclass(frozen=True)
class Run:
    """A finished run: the steps and text of its final answer, how that is compared, its trace, and the report entries
    of the policies inside."""

    steps: list[Step]
    text: str
    key: str | None
    trace: Trace
    extra: Mapping[str, Any]


@dataclass(frozen=True)
class _Spoken:
    said: Said
    steps: list[Step]
    extra: Mapping[str, Any]


def call_job(job: Job, role: str, shown: Sequence[Said], how: Settings, seed: int, final: bool) -> Job:
    """Make the job of one call.

    Args:
        final: its text may become the answer; others are not held to the request's grammar.

    Raises:
        Unsupported: there is no conversation to put the role into, or no room for it.
    """
    engine = how.engines.get(role, job.engine)
    alone = how.topology == "single" and not shown
    writer = job.services.engines[engine]
    if alone and engine == job.engine:
        ids = job.prompt_ids
    elif not job.messages:
        raise Unsupported(
            f"the topology {how.topology} puts roles into a conversation: send messages, or use one round of single",
            "topology",
        )
    else:
        ids = tuple(writer.tokens.chat(conversation([dict(m) for m in job.messages], role, shown, alone)))
    room = writer.context_length - len(ids)
    if room < 1:
        raise Unsupported(
            f"the {role}'s prompt has {len(ids)} tokens, and the context of {writer.context_length} tokens of "
            f"{engine!r} has no room for what it would say: ask for fewer rounds or a smaller max_tokens",
            "rounds",
        )
    own = job.sampling
    cut = (TopP(p=how.top_p),) if how.entropy == "drawn" else ()
    sampling = replace(
        own,
        temperature=how.temperature,
        top_p=1.0 if cut else how.top_p,
        transforms=(*own.transforms, *cut),
        max_tokens=min(own.max_tokens, room),
        seed=seed,
        grammar=own.grammar if final else None,
    )
    return replace(job, prompt_ids=ids, engine=engine, sampling=sampling)


def seed_of(seed: int, run: int, call: int) -> int:
    """Derive the seed of a call; the first call of the first run has the request's own."""
    return seed if run == call == 0 else random.Random(f"run:{seed}:{run}:{call}").getrandbits(32)


async def draw(job: Job, proceed: Proceed, how: Settings, number: int, ledger: Ledger, budget: Budget | None) -> Run:
    """Draw one run; it depends on the request's seed and on its `number` alone.

    Raises:
        OutOfTokens: the budget is spent. Unsupported: a call has no room.
    """
    said: list[Said] = []
    spoken: list[_Spoken] = []
    roles = ROLES[how.topology]

    async def speak(role: str, round: int, place: int) -> _Spoken:
        shown = seen(how.topology, role, round, said)
        final = round == how.rounds and (role == roles[-1] or how.topology == "debate")
        own = call_job(job, role, shown, how, seed_of(job.sampling.seed, number, place), final)
        inner = Proceed(how.presets[role]) if role in how.presets else proceed
        steps, extra = await metered(own, inner, ledger, budget)
        return _Spoken(Said(role, round, _text(own.writer.tokens, steps)), steps, extra)

    for round in range(1, how.rounds + 1):
        for group in turns(how.topology, round):
            first = len(spoken)
            spoken += await together(*(speak(role, round, first + place) for place, role in enumerate(group)))
            said += [each.said for each in spoken[first:]]
    last = spoken[_winner(spoken, how)]
    tokens = job.services.engines[how.engines.get(last.said.role, job.engine)].tokens
    found = final_answer(last.said.text, how.form)
    calls = tuple(Call(s.said.role, s.said.round, tuple(_entropies(s.steps, how.entropy))) for s in spoken)
    span = () if found is None else tuple(within(tokens, last.steps, found.start, found.end, how.entropy))
    return Run(last.steps, last.said.text, None if found is None else found.key, Trace(calls, span), last.extra)


def _winner(spoken: Sequence[_Spoken], how: Settings) -> int:
    """Return the place of the call whose text is the answer; of a debate the plurality of its last round."""
    if how.topology != "debate":
        return len(spoken) - 1
    first = len(spoken) - len(ROLES["debate"])
    found = [final_answer(each.said.text, how.form) for each in spoken[first:]]
    level = plurality([None if each is None else each.key for each in found])
    return first + (level[0][0] if level else 0)


def _text(tokens: TokenText, steps: Sequence[Step]) -> str:
    ids = [step.token for step in steps if step.token != NO_TOKEN]
    if tokens.think is not None and tokens.think[1] in ids:
        ids = ids[len(ids) - ids[::-1].index(tokens.think[1]) :]  # what counts is said after the thinking
    return tokens.decode(ids)


def _entropies(steps: Sequence[Step], measure: Measure) -> list[float]:
    """List the entropies of the tokens (nats). A token that was not drawn, or taken greedily, was certain."""
    own = [step for step in steps if step.token != NO_TOKEN]
    return [step.entropy if measure == "raw" else step.crop_entropy or 0.0 for step in own]


def within(tokens: TokenText, steps: Sequence[Step], start: int, end: int, measure: Measure) -> list[float]:
    """List the entropies of the tokens that overlap a span of the text of `steps`."""
    own = [step for step in steps if step.token != NO_TOKEN]
    ids = [step.token for step in own]
    if tokens.think is not None and tokens.think[1] in ids:
        own = own[len(ids) - ids[::-1].index(tokens.think[1]) :]
    stream, at, out = tokens.stream(), 0, []
    for step, entropy in zip(own, _entropies(own, measure), strict=True):
        piece = stream.push(step.token)
        if at < end and at + len(piece) > start:
            out.append(entropy)
        at += len(piece)
    return out
