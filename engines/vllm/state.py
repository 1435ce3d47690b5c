"""The state of a request in vLLM's worker, its row in a step, and the hidden states of that step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from llguidance import LLMatcher

from waver.devices import to_device
from waver.engines.base import Sampling
from waver.engines.grammar import Grammar
from waver.engines.sampling import Row
from waver.engines.token_counts import TokenCounts
from waver.engines.vllm.params import RequestParams


class RequestState:
    """A request in the batch, or one that was preempted and may come back.

    Args:
        prompt_length: tokens of the prompt. prompt: gives the ids of the prompt and of what was written when the
            request joined. origin: the object that vLLM keeps for this request, where it keeps one.
    """

    def __init__(
        self, params: RequestParams, prompt_length: int, prompt: Callable[[], Sequence[int]], origin: object
    ) -> None:
        self.params = params
        self.prompt_length = prompt_length
        self.origin = origin
        self.position = -1
        """The last position that was measured."""
        self.window = -1
        """Its row in the gate windows; -1 without a gate."""
        sampling = params.sampling
        self.answer_start = (
            prompt_length if sampling is None or sampling.answer_start is None else sampling.answer_start
        )
        self.always_draws, self.draws_until = False, 0
        """True if every token is drawn here; else the position up to which: a minimum length changes the logits until
        then, and afterwards vLLM's argmax of the untouched logits is the same token."""
        if sampling is not None and not params.given:
            untouched = Row(sampling, (), -sampling.min_tokens, ()).unadjusted  # once the minimum length is reached
            self.always_draws = sampling.temperature > 0 or sampling.grammar is not None or not untouched
            self.draws_until = sampling.min_tokens + self.answer_start - prompt_length
        self.truncates = sampling is None and bool(params.transforms) and params.temperature > 0
        """True if vLLM draws, from the tokens that the transforms leave."""
        self.reserves_stop = params.gate is not None and params.stop not in params.ends
        """True if the token that ends the request has no other use, and must not be drawn."""
        self.wants_logprobs = sampling is not None and sampling.logprobs
        self.schema = None if sampling is None else sampling.grammar
        self.counts = TokenCounts(), TokenCounts()
        self._prompt = prompt
        self._ids: list[int] | None = None
        self._matcher: LLMatcher | None = None
        self._matched = 0

    def ids_before(self, position: int) -> Sequence[int]:
        """Return the prompt and the tokens before a position. Where only their number is needed, placeholders."""
        if not self.params.needs_tokens:
            return range(self.prompt_length + position)
        if self._ids is None:
            self._ids = list(self._prompt())
        return self._ids[: self.prompt_length + position]

    def record(self, position: int, token: int) -> None:
        """Store the token of a position, if tokens are kept, and drop what was stored after it."""
        if self._ids is not None:
            self._ids[self.prompt_length + position :] = [token]

    def matcher(self, grammar: Grammar, schema: str, position: int) -> LLMatcher:
        """Return a matcher that has consumed the answer up to a position, which may lie before the one of the last
        call."""
        answer = self.ids_before(position)[self.answer_start :]
        if self._matcher is None or len(answer) < self._matched:
            self._matcher = grammar.matcher(schema, list(answer))
        elif new := answer[self._matched :]:
            self._matcher.consume_tokens(list(new))
        self._matched = len(answer)
        return self._matcher

    def completes_grammar(self, token: int) -> bool:
        """Return whether the grammar allows nothing after this token."""
        if self._matcher is None:
            return False
        ahead = self._matcher.deep_copy()
        ahead.consume_token(token)
        return bool(ahead.is_stopped()) and not ahead.is_error()

    @property
    def grammar_failed(self) -> bool:
        """Return whether the grammar could not be followed up to this position."""
        return self._matcher is not None and bool(self._matcher.is_error())


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A row of a step's logits: its index, its request, and the position in the answer that the logits are for (from 0,
    counted from the end of what this engine was given)."""

    row: int
    state: RequestState
    position: int

    @property
    def sampling_row(self) -> Row:
        """The row as `waver.engines.sampling.draw` takes it."""
        state = self.state
        return Row(
            state.params.sampling or Sampling(),
            state.ids_before(self.position),
            state.answer_start,
            state.params.ends,
            state.counts,
        )

    @property
    def given(self) -> int | None:
        """The token that the request prescribes for this position, if any."""
        given = self.state.params.given
        return given[self.position] if self.position < len(given) else None

    @property
    def draws(self) -> bool:
        """Return whether the token is drawn here, and not left to vLLM's argmax of untouched logits."""
        return self.state.always_draws or self.position < self.state.draws_until


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """The hidden states of a step after the final norm.

    `sampled` `[rows, hidden]` are those that the step's logits are computed from; `every` `[tokens, hidden]` those of
    all tokens, of which row i owns `offsets[i]` to `offsets[i + 1]`. The latter two are None where vLLM does not show
    them.
    """

    sampled: torch.Tensor
    every: torch.Tensor | None = None
    offsets: Sequence[int] | None = None

    def of(self, rows: Sequence[BatchRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Select the states that requests ask for, `[n, hidden]`, and whether each could be found, `[n]` bool.

        A token may have been read in an earlier step. And where the last of a row's states in `every` differs from the
        one in `sampled`, this version of vLLM means something else by `every`, and nothing is taken from it.
        """
        device = self.sampled.device
        own = self.sampled[to_device([row.row for row in rows], device)]
        behind = [row.state.params.hidden or 0 for row in rows]
        if not any(behind):
            return own, torch.ones(len(rows), dtype=torch.bool, device=device)
        if self.every is None or self.offsets is None:
            return own, to_device([not each for each in behind], device)
        first, last = ([int(self.offsets[row.row + i]) - i for row in rows] for i in (0, 1))
        present = [end - each >= start for start, end, each in zip(first, last, behind, strict=True)]
        at = [end - each if there else end for end, each, there in zip(last, behind, present, strict=True)]
        found = (self.every[to_device(last, device)] == own).all(-1) & to_device(present, device)
        inner = to_device([each > 0 for each in behind], device)
        return torch.where(inner[:, None], self.every[to_device(at, device)], own), found | ~inner
