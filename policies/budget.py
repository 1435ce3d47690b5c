"""The tokens that a request's policies may draw beside its answers: one allowance for all of its choices."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from waver.engines.base import NO_TOKEN, Step
from waver.policies.base import Proceed
from waver.policies.helpers import sub_job
from waver.policies.job import Job

KEY = "extra_tokens"


class OutOfTokens(Exception):
    """The allowance is spent."""


@dataclass
class Budget:
    """An allowance of tokens."""

    left: int

    def take(self, tokens: int = 1) -> None:
        """Spend tokens.

        Raises:
            OutOfTokens: they were more than what was left.
        """
        self.left -= tokens
        if self.left < 0:
            raise OutOfTokens


def budget_of(job: Job) -> Budget:
    """Return the allowance that the choices of a request share."""
    found: Budget = job.shared.setdefault(KEY, Budget(job.services.extra_tokens))
    return found


@dataclass
class Ledger:
    """Count the tokens that were drawn, by engine, of texts that may never be shown."""

    tokens: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.tokens.values())

    def add(self, engine: str, tokens: int = 1) -> None:
        self.tokens[engine] = self.tokens.get(engine, 0) + tokens


async def metered(
    job: Job, proceed: Proceed, ledger: Ledger, budget: Budget | None
) -> tuple[list[Step], dict[str, object]]:
    """Decode the whole answer to a sub-job, counted as it is made, and aborted with the request.

    Args:
        budget: what its tokens are taken from; None: from none.

    Returns:
        The steps, and what inner policies put into their report.

    Raises:
        OutOfTokens: the budget is spent; what was drawn so far is counted.
    """
    own, steps = sub_job(job), []
    counted = 0
    try:
        made: AsyncGenerator[Step, None] = proceed(own)
        async with aclosing(made):
            async for step in made:
                steps.append(step)
                drawn = int(step.token != NO_TOKEN)
                ledger.add(step.engine, drawn)
                thrown, counted = own.report.discarded - counted, own.report.discarded
                if budget is not None:
                    budget.take(drawn + thrown)
    finally:
        if own.report.discarded:
            ledger.add(job.engine, own.report.discarded)
    return steps, own.report.extra
