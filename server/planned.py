"""Hold what a request asks to be decoded: its prompts, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from waver.engines.base import Sampling
from waver.engines.pictures import Conversation, Picture
from waver.policies.job import Caller, UserTurn
from waver.server.message.reading import MessageFormat
from waver.server.routing import Route


@dataclass(frozen=True)
class Prompt:
    """One prompt; `echo` is its text if it is to be repeated before the answer."""

    ids: tuple[int, ...]
    echo: str | None = None
    question: UserTurn | None = None
    messages: Sequence[Mapping[str, Any]] = ()
    """The conversation it was made of, as chat templates take it."""
    limit: int = 0
    """Most tokens of the answer; the plan sets it."""
    pictures: tuple[Picture, ...] = ()
    """Those whose tokens it has, in order."""
    conversation: Conversation | None = None
    """The conversation that is sent on in its place, with its pictures."""

    counted: int | None = None
    """Its length in tokens, as told by who read it; None: `ids` are all there are."""

    @property
    def tokens(self) -> int:
        """The number of its tokens."""
        return len(self.ids) if self.counted is None else self.counted

    def sampled(self, sampling: Sampling, seed: int) -> Sampling:
        """Return the sampling of an answer to this prompt."""
        return replace(
            sampling, max_tokens=self.limit, seed=seed, pictures=self.pictures, conversation=self.conversation
        )


@dataclass(frozen=True)
class Plan:
    """A request to decode: `n` choices for each prompt, numbered prompt by prompt."""

    route: Route
    prompts: Sequence[Prompt]
    n: int
    sampling: Sampling
    seed: int
    stops: tuple[str, ...]
    include_stop: bool
    """True if the text keeps the stop string that ends it."""
    logprobs: bool
    timeout: float
    caller: Caller
    limited: bool = True
    """True if the request says how many tokens an answer may have."""
    message: MessageFormat | None = None
    """The way to read the text as a chat's message; None: it stays a text."""
    ignored: tuple[str, ...] = ()
    """Paths of fields of the request that change nothing, as the plan shows."""
    shared: dict[Any, Any] = field(default_factory=dict)
    """State that the jobs of all choices share."""

    @property
    def choices(self) -> int:
        return self.n * len(self.prompts)

    def prompt_of(self, choice: int) -> Prompt:
        """Return the prompt of a choice."""
        return self.prompts[choice // self.n]

    @property
    def prompt_tokens(self) -> int:
        return sum(prompt.tokens for prompt in self.prompts)
