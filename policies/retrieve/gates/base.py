"""Define gates: their defaults, and how they decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from waver.engines.base import Inside
from waver.policies.job import Job
from waver.policies.retrieve.gates.draft import Draft, DraftEnd, Pooling


@dataclass(frozen=True)
class Verdict:
    """A gate's decision. `score` is what was compared with the threshold (None: nothing was); `query` is what to look
    up instead of the question."""

    fires: bool
    score: float | None = None
    query: str | None = None


@dataclass(frozen=True)
class GateSettings:
    """Gate settings of a request: the threshold, the most tokens of a draft, and parameters of single gates."""

    threshold: float
    draft_tokens: int
    pooling: Pooling = "mean"
    prefix: int = 4
    draft_end: DraftEnd = "line"
    signal: Literal["margin", "entropy", "variance"] = "margin"
    samples: int = 20
    rate: float = 0.5


class Gate:
    """Decides from a draft whether to look passages up. Made anew for each answer, so it may keep state.

    The docstring's first line is the gate's summary.
    """

    name: ClassVar[str]
    paper: ClassVar[str | None] = None
    threshold: ClassVar[float | None] = None
    """The default; None where nothing is compared."""
    draft_tokens: ClassVar[int] = 32
    """Most tokens of a draft by default."""
    needs: ClassVar[Inside | None] = None
    """Internal states of the model that the engine must provide."""
    above: ClassVar[bool] = True
    """True: scores above the threshold fire; otherwise those at or below it."""
    per_sentence: ClassVar[bool] = False
    """True: it decides about every sentence of the answer, not once about its beginning."""
    summaries: ClassVar[bool] = True
    """True: the draft is written behind the summaries of the documents that were named."""

    def __init__(self, settings: GateSettings) -> None:
        self.settings = settings

    @property
    def longest(self) -> int:
        """Most tokens of the draft."""
        return self.settings.draft_tokens

    @property
    def extra_sequences(self) -> int:
        """Most sequences that it draws beside each answer; a server bounds them for a whole request."""
        return 0

    def prepare(self, job: Job) -> Job:
        """Return the job that writes the draft, with what the gate wants to know of its tokens."""
        return job

    def check(self, job: Job) -> None:
        """Refuse, before the first token, a model that the gate cannot read.

        Raises:
            Unsupported: the engine's model lacks what the gate looks at.
        """

    async def decide(self, draft: Draft) -> Verdict | None:
        """Decide about a draft as it stands, or return None to see more of it.

        It is asked before the first token, after each one, and must decide once the draft is complete. A gate
        `per_sentence` is asked about complete sentences only.
        """
        raise NotImplementedError
