"""One choice being decoded, as policies hand it on: `Job`, and the jobs that continue it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from waver.engines.base import Engine, Gate, Sampling, Step
from waver.policies.report import Report
from waver.policies.services import Services


@dataclass(frozen=True)
class UserTurn:
    """The last thing the user said, where a prompt was made of text, so that a policy can look things up for it.

    `with_context(words)` makes the prompt's ids with more words in front of the user's text; whatever these spell, none
    of it becomes a control token. It works in the calling thread, and may raise what a chat template refuses
    (ValueError). `opens`: the prompt ends where the answer begins, so that more words can open it.
    """

    text: str
    with_context: Callable[[str], Sequence[int]]
    opens: bool = True


@dataclass(frozen=True)
class Caller:
    """The caller of a request: the name of the API key, and the request's `user`; None where there is none.

    Both are left out of the representation, so that neither reaches a log.
    """

    key: str | None = field(default=None, repr=False)
    user: str | None = field(default=None, repr=False)

    @property
    def owner(self) -> str:
        """Whom an entry of a store belongs to: the key's name and the user, apart for every pair of them."""
        return f"{self.key or ''}/{self.user or ''}"


def key_of(owner: str) -> str | None:
    """Return the key's name of an owner, as `Caller.owner` gives it; None where no key was asked for."""
    return owner.partition("/")[0] or None


@dataclass
class Job:
    """One choice being decoded: the prompt, how to sample, which engine writes, and the report that is being filled.

    `engine` names the engine that runs unless a policy picks another. `question` is None where the prompt came as token
    ids. `messages` is the conversation that the prompt was made of, as chat templates take it; empty for a text.
    """

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    engine: str
    services: Services
    report: Report
    question: UserTurn | None = None
    messages: Sequence[Mapping[str, Any]] = ()
    caller: Caller = Caller()
    shared: dict[Any, Any] = field(default_factory=dict)
    """State that the choices of one request share, for a policy's own use; it ends with the request."""

    @property
    def writer(self) -> Engine:
        """The engine that `engine` names."""
        return self.services.engines[self.engine]

    @property
    def context_length(self) -> int:
        """Most tokens that a prompt and its answer may have, in whichever engine writes."""
        engines = self.services.engines
        return min(engines[name].context_length for name in {self.engine, *self.report.parameters})


def continuation(
    job: Job, written: Sequence[int], engine: str, gate: Gate | None = None, max_new: int | None = None
) -> Job:
    """Make the job that goes on after `written` on an engine, up to a gate or `max_new` more tokens; limits, seeds and
    penalties hold over the whole answer."""
    start, limit = job.sampling.answer_start, job.sampling.max_tokens
    start = len(job.prompt_ids) if start is None else start
    prompt_ids = (*job.prompt_ids, *written)
    if max_new is not None:
        limit = min(limit, len(prompt_ids) - start + max_new)
    sampling = replace(job.sampling, gate=gate, answer_start=start, max_tokens=limit)
    return replace(job, prompt_ids=prompt_ids, engine=engine, sampling=sampling)


def within_answer(step: Step, job: Job, written: Sequence[int]) -> Step:
    """Turn a segment's step into one of the answer's: `finish` stays only where the answer ends with it (the last of
    `written`), not just a segment with a limit or a gate of its own."""
    begun = 0 if job.sampling.answer_start is None else len(job.prompt_ids) - job.sampling.answer_start
    full = begun + len(written) >= job.sampling.max_tokens
    ends = step.finish in ("stop", "content_filter") or (step.finish == "length" and full)
    return step if ends else replace(step, finish=None)
