"""Say what a key may do, and who sends a request."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

Role = Literal["admin", "inference", "monitor"]
Access = Literal["read", "write"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
"""The name of a key: it stands in logs, metrics and stores."""
Listed = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Names = Annotated[tuple[Listed, ...], Field(max_length=1000)]
Count = Annotated[int, Field(ge=1, le=2**53)]


class Grant(BaseModel):
    """The rights and limits of a key. Lists that are None allow everything, empty ones nothing; limits that are None do
    not bind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role = Field("inference", description="`admin` may do everything; `monitor` may read /metrics alone")
    expires: AwareDatetime | None = Field(None, description="when the key ends")
    models: Names | None = Field(None, description="engines, embedders and rerankers that may be used")
    presets: Names | None = Field(None, description="presets; one that is listed may use any engine and policy")
    policies: Names | None = Field(None, description="policies that a request may list itself")
    collections: dict[Listed, Access] = Field(
        {}, max_length=1000, description="the server's own collections, by name (`*`: all), to read or to write"
    )
    max_collections: Annotated[int, Field(ge=0)] | None = Field(None, description="collections that it may own")
    requests_per_minute: Count | None = None
    requests_per_day: Count | None = None
    tokens_per_minute: Count | None = Field(None, description="of prompts and answers together")
    tokens_per_day: Count | None = None
    concurrent_requests: Count | None = None
    max_n: Count | None = None
    max_tokens: Count | None = Field(None, description="of one answer")
    max_extra_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description="that policies may draw besides the answers of a request"
    )
    weight: float = Field(1.0, gt=0, le=1000, description="share of the server where requests wait")
    cut_answers: bool = Field(
        False, description="where the token budget ends, cut an answer short instead of refusing it"
    )

    @property
    def limits_tokens(self) -> bool:
        """Return whether tokens are limited."""
        return self.tokens_per_minute is not None or self.tokens_per_day is not None

    @property
    def metered(self) -> bool:
        """Return whether requests have to be counted."""
        return any(
            each is not None
            for each in (
                self.requests_per_minute,
                self.requests_per_day,
                self.tokens_per_minute,
                self.tokens_per_day,
                self.concurrent_requests,
            )
        )


@dataclass(frozen=True)
class Identity:
    """The sender of a request: the name of the key (None where the server asks for none) and what it may do.

    `kind`: `open` without keys, `plain` for a key of the environment, `stored` for one of the database. `sole`: the
    only plain key, which may do with the server's own collections what it likes.
    """

    name: str | None = None
    grant: Grant = field(default=Grant(role="admin"))
    kind: Literal["open", "plain", "stored"] = "open"
    sole: bool = False

    @property
    def admin(self) -> bool:
        return self.grant.role == "admin"

    @property
    def operates(self) -> bool:
        """Return whether the server's own collections are its to change."""
        return self.admin or self.sole


EVERYBODY = Identity()
_current: ContextVar[Identity] = ContextVar("waver_identity", default=EVERYBODY)


def current() -> Identity:
    """Return who sent the request that this task works for; everybody, outside of requests."""
    return _current.get()


def act_as(identity: Identity) -> None:
    """Let this task, and those that it starts, work for somebody."""
    _current.set(identity)
