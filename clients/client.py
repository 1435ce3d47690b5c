"""Extend the `openai` client by Waver's address and typed access to what Waver adds to a response.

Everything that the `openai` package does is left to it: a request goes out through `chat.completions.create(...)` with
`extra_body={"policy": [...], "trace": True}`, and `report(response)` reads the answer's `waver` object.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any, Literal

import openai
from openai.pagination import AsyncPage, SyncPage
from pydantic import BaseModel, ConfigDict, Field

from waver.clients.options import BASE_URL
from waver.clients.resources import AsyncCollections, AsyncFacts, AsyncMemories, Collections, Facts, Memories

NO_KEY = "none"
"""The `openai` package insists on a key; a server without keys accepts any."""


class TracedToken(BaseModel):
    """One token of an answer that was asked for with `"trace": true`. Entropies and logprob are in nats; where a
    truncation ran, `kept` tokens were left to draw from, with `crop_entropy`."""

    token: str
    id: int
    engine: str
    entropy: float
    logprob: float
    kept: int | None = None
    crop_entropy: float | None = None
    decision: dict[str, dict[str, Any]] = {}
    """Decisions of policies about it, by name: `then`, and the `value` that was compared with `threshold`."""


class EntropySummary(BaseModel):
    """Entropy over an answer's tokens, in nats. `lower` and `upper` bound the mean where `kind` is `bounded`."""

    mean: float
    max: float
    kind: Literal["exact", "bounded"]
    lower: float | None = None
    upper: float | None = None


class TruncationSummary(BaseModel):
    """The number of tokens that a truncation left to draw from, and their entropy (nats)."""

    kept_mean: float
    kept_max: int
    crop_entropy_mean: float


class EngineUsage(BaseModel):
    """Count the work of one engine: passes that gave a distribution, other tokens read, and seconds waited for it."""

    parameters: int
    decoded: int
    read: int
    seconds: float


class RoutingSummary(BaseModel):
    """Say how uncertain the routers of an adapter were over the answer: the mean normalised entropy, from 0 to 1."""

    entropy: float


class CostSummary(BaseModel):
    """Weigh everything that engines computed, in parameter-weighted tokens, against the largest engine alone."""

    full: float
    decode: float
    read: float | None
    against: str
    """The server's largest engine."""
    seconds_alone: float | None = None
    """The time that one would take, estimated from its steps in earlier requests."""
    engines: dict[str, EngineUsage]

    @property
    def spent(self) -> tuple[int, int]:
        """Return what engines computed, in parameters times tokens: tokens decoded, and others read."""
        used = self.engines.values()
        return sum(each.decoded * each.parameters for each in used), sum(each.read * each.parameters for each in used)


class WaverReport(BaseModel):
    """The `waver` object of a response: what decoding did. Keys of policies that did not run are None."""

    model_config = ConfigDict(extra="allow", frozen=True)

    policy: list[dict[str, Any]]
    tokens: dict[str, int]
    """Generated tokens by engine."""
    switches: int
    relative_cost: float
    """Parameter-weighted cost, as a share of what the largest engine alone would have cost."""
    entropy: EntropySummary
    cost: CostSummary | None = None
    catch_up_tokens: dict[str, int] = {}
    """Tokens that each engine had to read because another engine had written them."""
    discarded_tokens: int = 0
    broken_tool_calls: int = 0
    """Texts that began as calls of tools and are none."""
    truncation: TruncationSummary | None = None
    routing: RoutingSummary | None = None
    retrieval: dict[str, Any] | None = None
    strategy: str | None = None
    difficulty: dict[str, Any] | None = None
    forced_answer: dict[str, Any] | None = None
    trace: list[TracedToken] = []


class PolicyInfo(openai.BaseModel):
    """One entry of `GET /v1/policies`. `parameters` is the JSON Schema of the policy's parameters; `defaults_for` says
    what the defaults of its thresholds were made for, where they fit some models only."""

    name: str
    stage: str
    summary: str
    paper: str | None = None
    parameters: dict[str, Any] = Field(alias="schema")
    defaults: dict[str, Any]
    defaults_for: str | None = None


def _waver(thing: openai.BaseModel) -> dict[str, Any]:
    return (thing.model_extra or {}).get("waver") or {}


def has_report(thing: openai.BaseModel) -> bool:
    """Tell whether `report(thing)` will find one: true of responses, and of a stream's finishing and usage chunks."""
    return "tokens" in _waver(thing)


def report(thing: openai.BaseModel) -> WaverReport:
    """Return the report on a response or on a chunk of a stream; with `n > 1`, also that of one of its choices.

    Raises:
        LookupError: there is none: a chunk before the last, or a server that is not Waver.
    """
    if not has_report(thing):
        raise LookupError("no report here: only responses and finishing chunks of a Waver server carry one")
    return WaverReport.model_validate(_waver(thing))


def trace(choice: openai.BaseModel) -> list[TracedToken]:
    """Return the traced tokens of one choice, in a response or in a chunk; empty where no trace was asked for."""
    return [TracedToken.model_validate(token) for token in _waver(choice).get("trace", ())]


class Waver(openai.OpenAI):
    """`openai.OpenAI` with the address of a local Waver server. The key is taken from `WAVER_API_KEY`."""

    def __init__(self, base_url: Any = None, api_key: Any = None, **options: Any) -> None:
        super().__init__(base_url=base_url or _base_url(), api_key=api_key or _api_key(), **options)

    @cached_property
    def collections(self) -> Collections:
        """Documents that policies look things up in."""
        return Collections(self)

    @cached_property
    def memories(self) -> Memories:
        """The memories of `simplemem` and `memgas`."""
        return Memories(self)

    @cached_property
    def facts(self) -> Facts:
        """The facts of `scr`."""
        return Facts(self)

    def policies(self) -> list[PolicyInfo]:
        """Return every policy that the server knows, with the JSON Schema of its parameters."""
        return list(self.get_api_list("/policies", page=SyncPage[PolicyInfo], model=PolicyInfo))


class AsyncWaver(openai.AsyncOpenAI):
    """`openai.AsyncOpenAI` with the address of a local Waver server. The key is taken from `WAVER_API_KEY`."""

    def __init__(self, base_url: Any = None, api_key: Any = None, **options: Any) -> None:
        super().__init__(base_url=base_url or _base_url(), api_key=api_key or _api_key(), **options)

    @cached_property
    def collections(self) -> AsyncCollections:
        """Documents that policies look things up in."""
        return AsyncCollections(self)

    @cached_property
    def memories(self) -> AsyncMemories:
        """The memories of `simplemem` and `memgas`."""
        return AsyncMemories(self)

    @cached_property
    def facts(self) -> AsyncFacts:
        """The facts of `scr`."""
        return AsyncFacts(self)

    async def policies(self) -> list[PolicyInfo]:
        """Return every policy that the server knows, with the JSON Schema of its parameters."""
        return [p async for p in self.get_api_list("/policies", page=AsyncPage[PolicyInfo], model=PolicyInfo)]


def _base_url() -> str:
    return os.environ.get("WAVER_BASE_URL") or BASE_URL


def _api_key() -> str:
    return os.environ.get("WAVER_API_KEY") or NO_KEY
