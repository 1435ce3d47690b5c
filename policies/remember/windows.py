"""Read windows of conversations in the background, from a queue that survives a restart, and remember their facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import structlog
from pydantic import BaseModel, ConfigDict

from waver.engines.base import Sampling, Unsupported
from waver.policies.answer import Answer, Ending
from waver.policies.job import Job
from waver.policies.remember import consolidation, novelty
from waver.policies.remember.background import attempt, drain
from waver.policies.remember.consolidation import Linkage
from waver.policies.remember.extraction import extract, verbatim
from waver.policies.report import Report
from waver.policies.services import Services
from waver.retrieval.base import Vectors
from waver.retrieval.memory.index import Index
from waver.retrieval.memory.memories import Memories
from waver.retrieval.memory.turns import Turn, Work
from waver.retrieval.memory.unit import Unit

log = structlog.get_logger("waver")

KEPT_ENDINGS: tuple[Ending, ...] = ("stop", "stop_string", "length")
"""Answers that are remembered: neither those that were withheld, nor those that failed."""
THOUGHT = "</think>"
"""The end of what a model thinks before it answers."""
HISTORY_WINDOWS = 3
"""Windows before a window that are its history."""
SHOWN = 3
"""Facts that an engine is shown in version 2."""
SCORES = 200
"""Windows whose scores set the threshold of the surprisal."""
MOST_NEAR = 2000
"""Memories that are compared with each other when new ones are merged."""


class Remembering(BaseModel):
    """The parameters of `simplemem` that reading a window takes. Unknown ones, of another release, are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: Literal[1, 2] = 1
    engine: str
    extraction: Literal["engine", "turns"]
    novelty: Literal["entities", "surprisal"]
    window: int
    stride: int
    threshold: float
    alpha: float
    safety_net: bool
    idle: float
    consolidate: bool
    cluster_threshold: float
    affinity_mix: float
    decay: float
    linkage: Linkage


def conversation(job: Job, answer: Answer | None, now: float) -> list[Turn]:
    """Return the turns of a request and its answer, if there is one: what users and assistants said."""
    messages = job.messages or [{"role": "user", "content": job.question.text if job.question else ""}]
    said = [
        Turn(str(message.get("name") or message["role"]), message["content"].strip(), now)
        for message in messages
        if message.get("role") in ("user", "assistant") and isinstance(message.get("content"), str)
    ]
    spoken = "" if answer is None else answer.text.rpartition(THOUGHT)[2].strip()  # as the client will send it back
    return [turn for turn in (*said, Turn("assistant", spoken, now)) if turn.text]


def beside(job: Job, engine: str | None) -> Job:
    """Return a job whose engine is the one that is named, if one is; it fills the same report."""
    return job if engine is None else replace(job, engine=engine)


def alone(services: Services, engine: str) -> Job:
    """Return a job of nobody's, for what is asked in the background."""
    return Job((), Sampling(), engine, services, Report(parameters={engine: services.engines[engine].parameters}))


async def work(services: Services) -> None:
    """Read windows that are due, one after the other, until cancelled."""
    if services.memories is not None:
        await drain(services.memories, lambda: step(services))


async def step(services: Services) -> bool:
    """Read one window, if one is due; return whether one was."""
    memories = services.memories
    assert memories is not None

    async def read(claimed: Work) -> None:
        settings = Remembering.model_validate(dict(claimed.settings))
        if settings.engine not in services.engines:
            raise Unsupported(f"the engine {settings.engine!r} is not configured any more")
        with services.charged(claimed.owner_name, "simplemem") as own:
            await _read(own, memories, claimed, settings)

    return await attempt(memories, read)


async def _read(services: Services, memories: Memories, work: Work, settings: Remembering) -> None:
    """Read the next window of a thread: all its turns if there are enough, else what is left of it."""
    ahead = [number for number in work.numbers if number >= work.next]
    full = len(ahead) >= settings.window
    taken = ahead[: settings.window]
    end = max(taken[-1] + 1 if taken else 0, work.covered)
    by_number = dict(zip(work.numbers, work.turns, strict=True))
    kept = HISTORY_WINDOWS * settings.window
    window = [turn for n in taken if (turn := by_number[n]).text]
    history = [turn for n, turn in by_number.items() if work.next - kept <= n < work.next and turn.text]
    units: Sequence[Unit] = ()
    job = alone(services, settings.engine)
    unread = bool(window) and end > work.covered
    if unread and (settings.version == 2 or await _novel(memories, work, job, settings, window, history)):
        known = await _latest(memories, work.owner_name) if settings.version == 2 else ()
        found = verbatim(window) if settings.extraction == "turns" else await extract(job, window, known)
        if found is None:
            log.warning("an engine wrote no valid facts; a window is not remembered", engine=settings.engine)
        units = found or ()
    start = taken[0] + settings.stride if full else work.next
    rest = [n for n in work.numbers if n >= start]
    more = bool(rest) and rest[-1] >= end
    due = None if not more else 0.0 if len(rest) >= settings.window else settings.idle
    made = await memories.finish(work, units, start, end, due, kept)
    if made and settings.consolidate and settings.version == 1:
        await consolidate(memories, work.owner_name, job, settings, made)


async def _latest(memories: Memories, owner: str) -> list[str]:
    """Return the last facts that were remembered, which an engine is not to repeat."""
    index = await memories.of(owner).index()
    return [each.unit.content for each in index.memories[-SHOWN:]]


async def _novel(
    memories: Memories, work: Work, job: Job, settings: Remembering, window: Sequence[Turn], history: Sequence[Turn]
) -> bool:
    """Return whether a window is to be kept, and record its scores."""
    said, before = ("\n".join(turn.text for turn in part) for part in (window, history))
    vectors = await memories.embed([turn.text for turn in (*window, *history)])
    cosine = novelty.cosine(vectors[: len(window)], vectors[len(window) :])
    new = novelty.new_entities(said, before)
    value = novelty.novelty(len(new), len(window), cosine, settings.alpha)
    owner, threshold, score = memories.of(work.owner_name), settings.threshold, value
    if settings.novelty == "surprisal":
        score = await surprisal(job, said, before)
        await owner.score(value, score, SCORES)
        threshold = novelty.keeps_as_many(await owner.novelties(SCORES), settings.threshold)
    return score >= threshold or (settings.safety_net and novelty.unseen_detail(said, before))


async def surprisal(job: Job, window: str, history: str) -> float:
    """Return the mean surprisal of a window after its history under the job's engine, in nats a token. Of a history
    that is too long the end is read."""
    tokens, context = job.writer.tokens, job.context_length
    own = tokens.encode_plain(window)[: context // 2]
    past = tokens.encode_plain(history + "\n")[-(context - len(own)) :]
    steps = await job.writer.score([*past, *own])
    measured = steps[-len(own) :] if past else steps
    return -float(np.mean([each.logprob for each in measured])) if measured else 0.0


async def consolidate(
    memories: Memories, owner_name: str, job: Job, settings: Remembering, new: Sequence[int]
) -> list[int]:
    """Merge new memories with those that are close to them; return the ids of the abstracts."""
    owner = memories.of(owner_name)
    index = await owner.index()
    places, omega = await memories.run(_near, index, new, settings)
    made = []
    seeds = [places.index(at) for each in new if (at := index.by_id.get(each)) in places]
    for group in consolidation.groups(omega, seeds, settings.cluster_threshold, settings.linkage):
        members = [index.memories[places[i]] for i in group]
        abstract = await consolidation.abstract(job, members)
        if abstract is not None and (found := await owner.merge(abstract, [each.id for each in members])) is not None:
            made.append(found)
    return made


def _near(index: Index, new: Sequence[int], settings: Remembering) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Return the places of the new memories and of those that may join them, and the affinities among all of these.
    Blocks."""
    live = np.flatnonzero(index.live)
    times = np.array([(each.unit.time or each.created).timestamp() for each in index.memories])
    found = {at for each in new if (at := index.by_id.get(each)) is not None and index.live[at]}
    frontier = found
    while frontier and len(found) < MOST_NEAR:
        some = sorted(frontier)
        omega = affinities(index.vectors[some], times[some], index.vectors[live], times[live], settings)
        near = {int(at) for at in live[(omega >= settings.cluster_threshold).any(axis=0)]}
        frontier = near - found if settings.linkage == "single" else set()
        found = found | near
    places = sorted(found)[-MOST_NEAR:]
    vectors, when = index.vectors[places], times[places]
    return places, affinities(vectors, when, vectors, when, settings)


def affinities(
    one: Vectors, at: npt.NDArray[np.float64], other: Vectors, then: npt.NDArray[np.float64], settings: Remembering
) -> npt.NDArray[np.float64]:
    """Return the affinity of each of some memories with each of others, `[one, other]`. Times in seconds."""
    return consolidation.affinity(
        (one @ other.T).astype(np.float64),
        (at[:, None] - then[None, :]) / consolidation.DAY,
        settings.affinity_mix,
        settings.decay,
    )
