"""Define policies: middleware around decoding.

A request's policies are sorted by `stage` and wrapped around the engine, outermost first:
`admit > guard > remember > ask > select > prompt > search > finish > decode > sample > engine`. Each one's
`decode(job, proceed)` yields steps, and `proceed(job)` runs what is inside.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from waver.engines.base import Step
from waver.policies.answer import Answer
from waver.policies.job import Job
from waver.policies.report import Report
from waver.policies.services import Services

Stage = Literal["admit", "guard", "remember", "ask", "select", "prompt", "search", "finish", "decode", "sample"]
STAGES: tuple[Stage, ...] = (
    "admit",
    "guard",
    "remember",
    "ask",
    "select",
    "prompt",
    "search",
    "finish",
    "decode",
    "sample",
)


@dataclass(frozen=True)
class CounterSpec:
    """A counter for `GET /metrics`, which appends `_total` to its name."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


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
    """True if it can be combined with another policy of a stage at which one is enough."""

    takes_pictures: ClassVar[bool] = False
    """True if it works where the prompt has pictures; a request with some is refused otherwise."""

    metrics: ClassVar[tuple[CounterSpec, ...]] = ()
    """Counters of its own, which `counted` moves."""
    evaluation: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Fields that only evaluations need, and values of fields (none: the whole field; of `name`: the policy)."""
    defaults_for: ClassVar[str | None] = None
    """Models that the defaults of its thresholds were made for, where they do not fit any."""
    report_keys: ClassVar[Mapping[str, str]] = {}
    """Keys that it adds to the `waver` object of a response, with a description of each."""

    name: str

    @property
    def extra_sequences(self) -> int:
        """Most sequences that are drawn beside each choice; a server bounds them for a whole request."""
        return 0

    @property
    def helping_engines(self) -> tuple[str, ...]:
        """Names of engines that take part beside the one that the request asks for; the configuration must have
        them."""
        return ()

    @property
    def helping_presets(self) -> tuple[str, ...]:
        """Names of presets of the configuration, under whose policies a part of its work is done; they may hold no
        policies but those of the stages from `prompt` on."""
        return ()

    def counted(self, report: Report) -> Iterable[tuple[str, tuple[str, ...]]]:
        """Tell which of its counters an answer moves, each by its name and the values of its labels."""
        return ()

    async def check(self, job: Job) -> None:
        """Refuse, before the first token, what could not be done later.

        Raises:
            Unsupported: an engine, or the form of the request, does not allow it; its `param`, if any, is a field of
                the policy.
            RetrievalError: a collection is not there, or cannot be read.
        """

    async def after(self, job: Job, answer: Answer) -> None:
        """Act once the answer has ended, whatever ended it: remember, learn, count.

        It runs exactly once for each choice, outside of the client's latency, and also once for a request that is
        refused before its first token. What it raises is logged and never reaches the client. `job` is the choice as
        the client asked for it; the report is complete.
        """

    @classmethod
    def acts_after(cls) -> bool:
        """Return whether it has an `after` of its own."""
        return cls.after is not Policy.after

    @classmethod
    async def background(cls, services: Services) -> None:
        """Work beside all requests for as long as the server runs, on what outlives them. It is cancelled when the
        server stops, and started again a while after it has failed."""

    def possible_jobs(self, job: Job) -> list[Job]:
        """Return one job of each kind that `decode` may hand on, so that what an engine would refuse of it in the
        middle of an answer is refused at its beginning."""
        return [job]

    def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        """Yield the steps of the answer; `proceed(job)` runs what is inside. Close what you stop reading."""
        raise NotImplementedError


@dataclass(frozen=True)
class Proceed:
    """Run what is inside of a policy: others (sorted by stage, the first is the outermost), and the engine within."""

    policies: tuple[Policy, ...] = ()

    def __call__(self, job: Job) -> AsyncGenerator[Step, None]:
        if not self.policies:
            return job.writer.generate(job.prompt_ids, job.sampling)
        return self.policies[0].decode(job, Proceed(self.policies[1:]))
