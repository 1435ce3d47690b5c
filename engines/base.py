"""The `Engine` interface, and the data that it takes and returns: `Sampling`, `Gate` and `Step`.

Everything here is plain data, so that it can travel to where the logits are (into another process, if need be).
Entropies, thresholds and log-probabilities are in nats.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch

from waver.engines.decision import Decision
from waver.engines.pictures import Conversation, Picture, PrunedPrompt, Pruning
from waver.engines.tokens import TokenText
from waver.engines.transforms import Transform

if TYPE_CHECKING:
    from prometheus_client.core import Metric

Finish = Literal["stop", "length", "gate", "content_filter"]
Inside = Literal["hidden_state", "hidden_states", "attention"]
"""Internals of a model that an engine may expose: the last layer's hidden state, those of any layer, attention."""
NO_TOKEN = -1
"""The id of a `Step` that carries no token: an eager gate fired before position t was sampled."""


class EngineError(RuntimeError):
    """An engine cannot serve a request at all (it died, or was closed). The server answers 503.

    The message is for the user. `detail` is for the log: what names an address, or is in another server's words.
    """

    def __init__(self, message: str, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = detail


def not_a_number(engine: str) -> EngineError:
    """Make the error of a request whose logits hold NaN or infinity: no token can be drawn from them."""
    return EngineError(f"engine {engine!r} computed logits that are not finite numbers (NaN or infinity)")


class EngineBusy(EngineError):
    """An engine has no room now. The server answers 429. `retry_after`: seconds after which to ask again."""

    def __init__(self, message: str, detail: str | None = None, retry_after: float = 0.0) -> None:
        super().__init__(message, detail)
        self.retry_after = retry_after


class Unsupported(ValueError):
    """A request asks for something this engine cannot do. The message is for the user; `param` names the field, and
    `detail` is for the log, as in `EngineError`."""

    def __init__(self, message: str, param: str | None = None, detail: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.detail = detail


class ContextExceeded(Unsupported):
    """A prompt leaves no room for an answer; `context` and `found` as in `overflow`."""

    def __init__(self, context: int, found: str, param: str = "prompt") -> None:
        super().__init__(overflow(context, found), param)


def overflow(context: int, found: str) -> str:
    """Return the message about a prompt that does not fit a context of so many tokens, in the words that frameworks
    look for; `found` is the end of the sentence, as "the prompt has 2009 tokens"."""
    return (
        f"This model's maximum context length is {context} tokens, for the prompt and the answer, and the prompt is "
        f"too long: {found}. Please reduce the length of the prompt."
    )


def without_pictures(engine: str, sampling: Sampling) -> None:
    """Refuse a request with pictures on an engine whose model takes none, or one that asks to drop some of theirs.

    Raises:
        Unsupported: it is one.
    """
    if sampling.pictures:
        raise Unsupported(f"engine {engine!r} takes no pictures", "messages")
    if sampling.pruning is not None:
        raise Unsupported(
            f"engine {engine!r} drops no image tokens: that takes a vision-language model under transformers", "policy"
        )


def in_full(error: EngineError | Unsupported) -> str:
    """Return the message with the detail that only the operator may read."""
    return str(error) if error.detail is None else f"{error}: {error.detail}"


def reason(error: Exception) -> str:
    """Return the first line of an exception's message, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True, slots=True)
class Gate:
    """A stop rule on the rolling mean of the next-token entropy.

    It fires at the first position where at least `min_tokens` tokens of this segment stand and the mean over the last
    `window` entropies is `>= threshold` (`above`) or `< threshold` (not `above`). `history` holds the entropies of the
    tokens before this segment, oldest first; a window that is not full averages what is there.

    `eager`: the entropy at position t counts towards the decision about position t; when the gate fires, t is left
    unsampled and the last `Step` has `token == NO_TOKEN`. `lagged`: the token at t stands, and the segment ends after.
    """

    window: int
    threshold: float
    above: bool = True
    min_tokens: int = 0
    timing: Literal["eager", "lagged"] = "eager"
    history: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.window < 1 or self.min_tokens < 0:
            raise ValueError("a gate needs window >= 1 and min_tokens >= 0")


@dataclass(frozen=True, slots=True)
class Sampling:
    """The parameters of a draw and the stop rules. Data only.

    `answer_start` says where the answer begins inside the `prompt_ids` of `Engine.generate`: the tokens from there on
    were generated by an earlier segment of the same answer (perhaps by another engine). Penalties count them, seeds go
    on from them, and `max_tokens` and `min_tokens` hold over the whole answer. None: the answer begins at the end.

    `logprobs`: the steps' `logprob` is wanted; where it is not, an engine may leave it NaN if it costs something.
    `seed` makes a draw a function of (seed, position in the answer) alone. `temperature == 0` is greedy.
    `grammar` is a JSON schema, or another form as `waver.engines.grammar_forms` writes it. `allowed_token_ids` are all
    that may be drawn, if there are any; `bad_words` are runs of tokens that may not be completed. `unset` names fields
    that nobody asked for, neither the request nor the model's own defaults.
    `transforms` adapt the temperature, and truncate the distribution after it and before `min_p`, `top_k` and `top_p`;
    the whole order is in `waver.engines.transforms`.
    `state_of`: the prompt may begin with these tokens, and then the hidden state at the last of them is to come with
    the answer's first step, if it is to be had in passing (`Step.state`).
    `pictures` are those whose tokens stand in the prompt, in order; `pruning` says which of these tokens to drop.
    `conversation` is what the prompt was made of, for an engine that has its pictures read elsewhere
    (`ForwardsPictures`).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 256
    min_tokens: int = 0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int = 0
    grammar: str | None = None
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    unset: frozenset[str] = frozenset()
    transforms: tuple[Transform, ...] = ()
    logprobs: bool = True
    gate: Gate | None = None
    answer_start: int | None = None
    state_of: tuple[int, ...] = ()
    pictures: tuple[Picture, ...] = ()
    pruning: Pruning | None = None
    conversation: Conversation | None = field(default=None, repr=False)

    def state_at(self, prompt_ids: Sequence[int]) -> int | None:
        """Find the place in a prompt of the token whose hidden state is asked for; None where there is none, and in a
        later segment of an answer."""
        count = len(self.state_of)
        begins = self.answer_start in (None, len(prompt_ids))
        return count - 1 if count and begins and tuple(prompt_ids[:count]) == self.state_of else None


@dataclass(frozen=True, slots=True)
class Step:
    """One token. `entropy` (nats) and `logprob` are of the raw next-token distribution: temperature 1, before
    penalties, bias and truncation (a grammar's mask excepted).

    `top_logprobs` are `(token, logprob)` pairs, most likely first. `finish` is set on the last step of a segment.
    `entropy_bounds` is None where the entropy is exact, else `(lower, upper)` and `entropy` is their midpoint.
    `kept` and `crop_entropy` (nats) say how many tokens a truncation left to draw from, and how even they were; None
    where none ran. `state` is the hidden state that `Sampling.state_of` asked for, as `Engine.hidden_state` gives it;
    None where this request has not read that token itself (a cache held it), or the engine has no such way.
    `decisions` are those that policies made about it. `routing` is the mean normalised entropy of an adapter's routers
    where the token was drawn, from 0 (sure) to 1. `pruned` comes with the first token behind a prompt whose image
    tokens `Sampling.pruning` dropped. `prompt_tokens`, on one step, is the length of a prompt that only the server
    behind the engine knows.
    """

    token: int
    logprob: float
    entropy: float
    engine: str
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish: Finish | None = None
    entropy_bounds: tuple[float, float] | None = None
    kept: int | None = None
    crop_entropy: float | None = None
    state: torch.Tensor | None = field(default=None, compare=False, repr=False)
    decisions: tuple[Decision, ...] = field(default=(), compare=False, repr=False)
    routing: float | None = None
    pruned: PrunedPrompt | None = field(default=None, compare=False)
    prompt_tokens: int | None = field(default=None, compare=False)

    def decided(self, *decisions: Decision | None) -> Step:
        """Return the step with decisions about it behind those that it has; None stands for no decision."""
        made = tuple(each for each in decisions if each is not None)
        return replace(self, decisions=(*self.decisions, *made)) if made else self


@runtime_checkable
class Engine(Protocol):
    """One model that can be queried. Implementations: `transformers`, `vllm` and `upstream` in `waver.engines`."""

    name: str
    """The engine's name in the configuration; steps carry it."""
    tokens: TokenText
    """The tokenizer: text to ids, ids to bytes, chat template."""
    parameters: int
    """Parameter count, for cost."""
    context_length: int
    """Most tokens a prompt and its answer may have together."""

    def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        """Decode until a stop token, the token limit or the gate. The last step has `finish` set.

        Closing the generator (`aclose()`) aborts the work in the engine within one decoding step.

        Raises:
            Unsupported: the sampling asks for something this engine cannot do.
            EngineError: the engine is dead or closed.
        """
        ...

    def check(self, sampling: Sampling, begun: bool) -> None:
        """Refuse at once what `generate` would refuse of a sampling, whatever the tokens are. It may take a while, as
        a grammar is compiled: call it in a thread.

        Args:
            begun: an earlier segment of the answer was written, perhaps by another engine.

        Raises:
            Unsupported, EngineError: as `generate`.
        """
        ...

    async def score(self, ids: Sequence[int], top_logprobs: int = 0) -> list[Step]:
        """Measure given tokens: a step for each position from 1 on, `len(ids) - 1` of them."""
        ...

    @property
    def exposes(self) -> frozenset[Inside]:
        """The internals of the model that can be read, so that a policy can refuse a request before it begins."""
        ...

    async def hidden_state(self, ids: Sequence[int], depth: float | None = None) -> torch.Tensor:
        """Compute the hidden state at the last token: `[hidden]` float32, on the CPU. The last layer's after the final
        norm, or that behind a `depth` share of the layers (0.5: the middle one).

        Raises:
            Unsupported: this engine does not hand it out.
        """
        ...

    async def attention(self, ids: Sequence[int], start: int) -> torch.Tensor:
        """Compute the last layer's attention weights of the tokens from `start` on: `[heads, len(ids) - start,
        len(ids)]` float32, on the CPU; each row sums to 1.

        Raises:
            Unsupported: this engine does not hand them out.
        """
        ...

    def embedding_matrix(self) -> torch.Tensor:
        """Return the input embedding matrix, `[vocab, hidden]`, as the model holds it.

        Raises:
            Unsupported: the model is out of reach.
        """
        ...

    @property
    def active(self) -> int:
        """The number of sequences being decoded or waiting."""
        ...

    @property
    def alive(self) -> bool:
        """Return whether requests can be served now. An engine that died brings itself back where it can."""
        ...

    async def aclose(self) -> None:
        """Abort everything and free the model."""
        ...


@runtime_checkable
class ForwardsPictures(Protocol):
    """An engine that may send conversations with pictures on to another server."""

    forwards_pictures: bool
    keeps_text: bool
    """True if a text that spells a control token stays a text there."""


def forwards_pictures(engine: object) -> bool:
    """Return whether an engine has pictures read elsewhere."""
    return isinstance(engine, ForwardsPictures) and engine.forwards_pictures


def keeps_text(engine: object) -> bool:
    """Return whether the server behind an engine keeps texts apart from the control tokens that they spell."""
    return isinstance(engine, ForwardsPictures) and engine.keeps_text


@runtime_checkable
class Measured(Protocol):
    """An engine with Prometheus metrics of its own."""

    def collect(self) -> Iterable[Metric]:
        """Collect the metrics; nothing while the engine is down."""
        ...
