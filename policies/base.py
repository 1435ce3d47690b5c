"""The other two nouns, `Job` and `Report`, and what a policy is: middleware around decoding.

A request's policies are sorted by `stage` and wrapped around the engine, outermost first:
`admit > prompt > search > finish > decode > sample > engine`. Each one's `decode(job, proceed)` yields steps, and
`proceed(job)` runs what is inside.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from waver.engines.base import Engine, Gate, Sampling, Step
from waver.engines.probe import Probe
from waver.retrieval.library import Library

Stage = Literal["admit", "prompt", "search", "finish", "decode", "sample"]
STAGES: tuple[Stage, ...] = ("admit", "prompt", "search", "finish", "decode", "sample")


@dataclass
class Kept:
    """What truncation left to draw from, over the tokens that were drawn so: sums, and the largest set."""

    draws: int = 0
    tokens: int = 0
    most: int = 0
    entropy: float = 0.0

    def add(self, draws: int, tokens: int, most: int, entropy: float) -> None:
        self.draws += draws
        self.tokens += tokens
        self.most = max(self.most, most)
        self.entropy += entropy

    def as_dict(self) -> dict[str, float]:
        """The `truncation` of a report; entropy in nats."""
        mean, entropy = self.tokens / self.draws, self.entropy / self.draws
        return {"kept_mean": mean, "kept_max": self.most, "crop_entropy_mean": entropy}


@dataclass
class Report:
    """What happened while one choice was decoded; becomes the `waver` object of the response."""

    policy: list[dict[str, Any]] = field(default_factory=list)
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Parameter count of every engine the request's policies may use, by name."""
    tokens: dict[str, int] = field(default_factory=dict)
    discarded: int = 0
    switches: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    """What policies add under a key of their own, such as `retrieval` or `strategy`."""
    entropy_sum: float = 0.0
    entropy_max: float = 0.0
    bounds_sum: tuple[float, float] | None = None
    kept: Kept = field(default_factory=Kept)
    catch_up: dict[str, int] = field(default_factory=dict)
    """Tokens that each engine had to read after a switch because another engine had written them."""
    _writer: str | None = None
    _read: dict[str, int] = field(default_factory=dict)

    def observe(self, step: Step) -> None:
        """Count one token of the answer."""
        written = self.completion_tokens
        missed = written - self._read.get(step.engine, 0) - 1
        if missed > 0:
            self.catch_up[step.engine] = self.catch_up.get(step.engine, 0) + missed
        self._read[step.engine] = written
        self.tokens[step.engine] = self.tokens.get(step.engine, 0) + 1
        self.switches += self._writer not in (None, step.engine)
        self._writer = step.engine
        self.entropy_sum += step.entropy
        self.entropy_max = max(self.entropy_max, step.entropy)
        if step.entropy_bounds or self.bounds_sum:
            low, high = step.entropy_bounds or (step.entropy, step.entropy)
            total = self.bounds_sum or (self.entropy_sum - step.entropy,) * 2
            self.bounds_sum = (total[0] + low, total[1] + high)
        if step.kept is not None:
            self.kept.add(1, step.kept, step.kept, step.crop_entropy or 0.0)

    @property
    def completion_tokens(self) -> int:
        return sum(self.tokens.values())

    @property
    def relative_cost(self) -> float:
        """Parameter-weighted cost against the largest engine alone (EAD, arXiv 2502.06833); 0 for an empty answer."""
        largest = max(self.parameters.values(), default=0)
        if not largest or not self.completion_tokens:
            return 0.0
        spent = sum(n * self.parameters[engine] for engine, n in self.tokens.items())
        return spent / (largest * self.completion_tokens)

    def as_dict(self) -> dict[str, Any]:
        """The `waver` object of API.md, without a trace."""
        n = max(self.completion_tokens, 1)
        entropy: dict[str, Any] = {"mean": self.entropy_sum / n, "max": self.entropy_max, "kind": "exact"}
        if self.bounds_sum:
            entropy |= {"kind": "bounded", "lower": self.bounds_sum[0] / n, "upper": self.bounds_sum[1] / n}
        out: dict[str, Any] = {
            "policy": self.policy,
            "tokens": {name: self.tokens.get(name, 0) for name in self.parameters},
            "switches": self.switches,
            "relative_cost": self.relative_cost,
            "entropy": entropy,
        }
        if self.kept.draws:
            out["truncation"] = self.kept.as_dict()
        if self.catch_up:
            out["catch_up_tokens"] = self.catch_up
        if self.discarded:
            out["discarded_tokens"] = self.discarded
        return out | self.extra


@dataclass(frozen=True)
class Question:
    """The last thing the user said, where a prompt was made of text, so that a policy can look things up for it.

    `led_by(words)` makes the prompt's ids with more words in front of the question; whatever these spell, none of it
    becomes a control token. It works in the calling thread, and may raise what a chat template refuses (ValueError).
    `opens`: the prompt ends where the answer begins, so that more words can open it.
    """

    text: str
    led_by: Callable[[str], Sequence[int]]
    opens: bool = True


@dataclass
class Job:
    """One choice being decoded: the prompt, how to sample, which engine writes, and the report that is being filled.

    `engine` is the engine that runs unless a policy picks another; `engines` are all there are, by name. `question` is
    None where the prompt came as token ids, `library` where there are no collections to look into. `probes` are those
    of the configuration, by name.
    """

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    engine: str
    engines: Mapping[str, Engine]
    report: Report
    question: Question | None = None
    library: Library | None = None
    probes: Mapping[str, Probe] = field(default_factory=dict)

    @property
    def context_length(self) -> int:
        """Most tokens that a prompt and its answer may have, in whichever engine writes."""
        return min(self.engines[name].context_length for name in {self.engine, *self.report.parameters})


def continuation(
    job: Job, written: Sequence[int], engine: str, gate: Gate | None = None, max_new: int | None = None
) -> Job:
    """The job that goes on after `written` on an engine, up to a gate or `max_new` more tokens; limits, seeds and
    penalties hold over the whole answer."""
    start, limit = job.sampling.answer_start, job.sampling.max_tokens
    start = len(job.prompt_ids) if start is None else start
    prompt_ids = (*job.prompt_ids, *written)
    if max_new is not None:
        limit = min(limit, len(prompt_ids) - start + max_new)
    sampling = replace(job.sampling, gate=gate, answer_start=start, max_tokens=limit)
    return replace(job, prompt_ids=prompt_ids, engine=engine, sampling=sampling)


def within_answer(step: Step, job: Job, written: Sequence[int]) -> Step:
    """A segment's step as one of the answer's: `finish` stays only where the answer ends with it (the last of
    `written`), not just a segment with a limit or a gate of its own."""
    begun = 0 if job.sampling.answer_start is None else len(job.prompt_ids) - job.sampling.answer_start
    full = begun + len(written) >= job.sampling.max_tokens
    return step if step.finish == "stop" or (step.finish == "length" and full) else replace(step, finish=None)


class Policy(BaseModel):
    """A decoding method. Its fields are its per-request parameters; its docstring's first line is its summary.

    Subclasses set `stage` and `paper`, give `name` a `Literal` default, and write `decode`. A field that names an
    engine (`engine_fields`), or a probe (`probe_fields`, or None), must name a configured one:
    `waver.policies.registry` checks it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    stage: ClassVar[Stage]
    paper: ClassVar[str | None] = None
    engine_fields: ClassVar[tuple[str, ...]] = ()
    probe_fields: ClassVar[tuple[str, ...]] = ()
    combines: ClassVar[bool] = False
    """Whether it goes together with another policy of a stage at which one is enough."""

    name: str

    async def check(self, job: Job) -> None:
        """Refuse, before the first token, what could not be done later.

        Raises:
            Unsupported: an engine, or the form of the request, does not allow it; its `param`, if any, is a field of
                the policy.
            RetrievalError: a collection is not there, or cannot be read.
        """

    def foresee(self, job: Job) -> list[Job]:
        """One job of each kind that `decode` may hand on, so that what an engine would refuse of it in the middle of an
        answer is refused at its beginning."""
        return [job]

    def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        """Yield the steps of the answer; `proceed(job)` runs what is inside. Close what you stop reading."""
        raise NotImplementedError


@dataclass(frozen=True)
class Proceed:
    """What is inside of a policy: others (sorted by stage, the first is the outermost), and the engine within them."""

    policies: tuple[Policy, ...] = ()

    def __call__(self, job: Job) -> AsyncGenerator[Step, None]:
        if not self.policies:
            return job.engines[job.engine].generate(job.prompt_ids, job.sampling)
        return self.policies[0].decode(job, Proceed(self.policies[1:]))
