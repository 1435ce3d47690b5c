"""POST /v1/uncertainty: how uncertain the answer to a conversation is, by one or several measures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from waver.policies.report import total
from waver.policies.uncertainty.similarity import Kind
from waver.server.answer import Answer, FinishedChoice
from waver.server.auth import SCOPE_KEY
from waver.server.bodies import BodyRoute
from waver.server.chat_format import ChatFormatter
from waver.server.chat_plan import plan_chat
from waver.server.chat_schemas import ChatRequest
from waver.server.errors import invalid
from waver.server.fields import ignored_fields, refuse_unserved
from waver.server.piecewise import pieces
from waver.server.runtime import ready_runtime
from waver.server.schemas import Many, Text

router = APIRouter(route_class=BodyRoute)

POLICY = "inv_entropy"


class UncertaintyRequest(ChatRequest):
    """A chat request of one choice, whose answer is measured. Settings are those of the policy `inv_entropy`; what is
    left out has its default there."""

    measures: Many[Text] = Field(["inv_entropy"], min_length=1, max_length=32)
    perturbations: int | None = None
    replications: int | None = None
    draws: int | None = None
    perturb: Literal["paraphrase", "gaap"] | None = None
    similarity: Kind | None = None
    sample_temperature: float | None = None
    answer_tokens: int | None = None
    instruction: Text | None = None
    calibration: Text | None = None
    details: bool = False

    @property
    def measuring(self) -> dict[str, Any]:
        """Return the policy that measures."""
        named = ("perturbations", "replications", "draws", "perturb", "similarity", "answer_tokens", "instruction")
        given = {name: getattr(self, name) for name in (*named, "calibration")}
        given |= {"temperature": self.sample_temperature}
        first, *rest = self.measures
        chosen = {name: value for name, value in given.items() if value is not None}
        return {"name": POLICY, "measure": first, "also": rest, "details": self.details, **chosen}


class UncertaintyAnswer(Answer):
    """An answer of which the measures are shown."""

    def _written(self, choices: list[FinishedChoice]) -> Iterator[bytes]:
        report = total(self.decoding.reports)
        found = report.extra["uncertainty"]
        made = {engine: usage.decoded for engine, usage in report.meter.usage.items() if usage.decoded}
        shown = {
            **self.head,
            "answer": choices[0].text,
            "finish_reason": choices[0].finish,
            **found,
            "tokens": made,
            "usage": self._usage(),
            "waver": self._report(report),
        }
        yield from pieces(shown)


@router.post("/v1/uncertainty", summary="Answer a conversation and measure how uncertain the answer is")
async def uncertainty(request: Request, body: UncertaintyRequest) -> Response:
    runtime = ready_runtime(request)
    refuse_unserved(body)
    for name in ("stream", "stop"):
        if getattr(body, name):
            raise invalid(f"Uncertainty is measured of one whole answer: leave out {name}.", name)
    if body.n != 1:
        raise invalid("Uncertainty is measured of one answer: leave out n.", "n")
    if body.policy is not None and not isinstance(body.policy, list):
        raise invalid("policy should be a list of policies that stand beside the measure.", "policy")
    beside = body.policy or []
    route = runtime.route(body.model, [*beside, body.measuring], request.scope.get(SCOPE_KEY))
    tokens = runtime.engines[route.engine].tokens
    ignored = ignored_fields(body, tokens, runtime.config.server.strict)
    deadline = runtime.deadline(body.timeout)
    async with asyncio.timeout_at(deadline):
        plan = await plan_chat(request, runtime, body, route, deadline)
    formatter = UncertaintyFormatter(tokens, False, 0)
    return await UncertaintyAnswer(body, plan, formatter, runtime, ignored).respond(request)


class UncertaintyFormatter(ChatFormatter):
    """The names of the object."""

    prefix = "uncertainty"
    whole = "uncertainty"
