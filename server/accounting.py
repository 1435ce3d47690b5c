"""Account for a request once it has ended, however it ended: metrics by key and preset, and its usage record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import structlog

from waver.engines.base import Step
from waver.policies.report import Report, total
from waver.server.usage_records import BILLION, head

if TYPE_CHECKING:
    from waver.server.planned import Plan
    from waver.server.runtime import Runtime

log = structlog.get_logger("waver")

Reading = Literal["embedding", "rerank"]


@dataclass(frozen=True)
class Cost:
    """Work in parameters times tokens, in billions: what was spent, and what the largest engine alone would have
    spent on the same answers."""

    spent: float
    alone: float


def cost_of(report: Report) -> Cost:
    """Return the cost of a request; an answer without a token would have cost nothing."""
    return Cost(sum(report.spent) / BILLION, sum(report.alone) / BILLION)


class Account:
    """The account of one request while it is decoded. Times in seconds."""

    def __init__(self, here: Runtime, plan: Plan) -> None:
        self._here, self.plan = here, plan
        self._began = time.perf_counter()
        self._queued: float | None = None
        self._first_token: float | None = None
        self._last_token = [0.0] * plan.choices
        self._finishes: list[str | None] = [None] * plan.choices
        self._texts: list[list[str]] | None = None
        if here.config.server.log_texts:
            self._texts = [[] for _ in range(plan.choices)]

    def admitted(self) -> None:
        """Note that the request's turn has come."""
        self._queued = self._passed()

    def token(self, choice: int, step: Step) -> None:
        """Count a token of an answer, and the time since the one before it."""
        now, before = time.perf_counter(), self._last_token[choice]
        self._last_token[choice] = now
        self._here.metrics.observe_token(step.engine, step.entropy, now - before if before else None)
        if self._first_token is None:
            self._first_token = now - self._began
            self._here.metrics.first_token.observe(self._first_token)

    def text(self, choice: int, text: str) -> None:
        """Keep a text, if texts are logged."""
        if self._texts is not None:
            self._texts[choice].append(text)

    def finish(self, choice: int, reason: str) -> None:
        """Note why a choice has ended."""
        self._finishes[choice] = reason

    def close(self, reports: Sequence[Report], left: bool) -> None:
        """Count the request and write its record; `left`: its client did not wait for the end."""
        plan, whole = self.plan, total(reports)
        cost = cost_of(whole)
        queued = self._passed() if self._queued is None else self._queued
        self._here.metrics.observe_request(plan.caller.key, plan.route.preset, cost.spent, cost.alone, queued)
        if self._texts is not None:
            tokens = self._here.engines[plan.route.engine].tokens
            prompts = [tokens.decode(prompt.ids) for prompt in plan.prompts]
            log.info("texts", prompts=prompts, answers=["".join(texts) for texts in self._texts])
        if self._here.usage is None:
            return
        spent = bool(whole.tokens or whole.discarded)
        ended = "finished" if all(self._finishes) else "failed" if spent else "refused"
        self._here.usage.write(
            {
                **head(plan.caller.key, plan.route.model),
                "kind": "generation",
                "preset": plan.route.preset,
                "policy": plan.route.label,
                "outcome": "client_gone" if left else ended,
                "choices": plan.choices,
                "finish_reasons": self._finishes,
                "prompt_tokens": plan.prompt_tokens,
                "completion_tokens": whole.completion_tokens,
                "discarded_tokens": whole.discarded,
                "besides_tokens": sum(report.besides for report in reports),
                "tokens": {name: whole.tokens.get(name, 0) for name in whole.parameters},
                "engines": {name: asdict(each) for name, each in whole.meter.usage.items()},
                "cost": asdict(cost) | {"unit": "billion parameters times tokens"},
                "seconds": round(self._passed(), 4),
                "queue_seconds": round(queued, 4),
                "first_token_seconds": None if self._first_token is None else round(self._first_token, 4),
            }
        )

    def _passed(self) -> float:
        return time.perf_counter() - self._began


def account_reading(
    here: Runtime, key: str | None, kind: Literal["embedding", "rerank"], model: str, read: int
) -> None:
    """Write the record of a request for which texts of so many tokens were read, and none written."""
    if here.usage is not None:
        here.usage.write({**head(key, model), "kind": kind, "outcome": "finished", "prompt_tokens": read})
