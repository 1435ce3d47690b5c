"""Parse what upstreams report about a token, in the several shapes that servers have for it, into `TokenEvent`s."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from waver.engines.base import EngineError, Step
from waver.engines.tokens import TokenText
from waver.entropy import entropy_bounds

LOWEST = -9999.0
"""The number that servers write for minus infinity, which JSON cannot express."""
_ID = re.compile(r"token_id:(\d{1,9})")
_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")

Top = tuple[tuple[int | None, float], ...]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token: its id, and the most likely ones with their log-probabilities (nats), most likely first. An id is None
    where the upstream's spelling does not tell it. `ranked`: none is missing among `top`. `entropy` (nats) where the
    upstream gives it, and what a truncation left, as in `Step`."""

    token: int | None
    name: str
    logprob: float
    top: Top = ()
    ranked: bool = True
    entropy: float | None = None
    kept: int | None = None
    crop_entropy: float | None = None


class TokenParser:
    """Parses the choices of one upstream. `who` names it in errors.

    Every method raises `EngineError` for what makes no sense.
    """

    def __init__(self, who: str, tokens: TokenText) -> None:
        self._who = who
        self._tokens = tokens
        self._ids: Mapping[bytes, int | None] | None = None

    def choice(self, choice: Mapping[str, Any]) -> list[TokenEvent]:
        """Parse the tokens of a choice, or of a part of one in a stream."""
        try:
            events = self._logprobs(choice.get("logprobs"))
            trace = (choice.get("waver") or {}).get("trace")
            return events if trace is None else self._trace(trace, events)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise EngineError(f"{self._who} sent log-probabilities that make no sense", f"{error!r:.80}") from error

    def step(self, event: TokenEvent, engine: str, top: int) -> Step:
        """Make a `Step` of a token, with `top` alternatives."""
        if event.token is None:
            raise EngineError(
                f"{self._who} does not tell which token it wrote; Waver needs token ids from it (vLLM's "
                "return_tokens_as_token_ids)",
                repr(event.name[:20]),
            )
        if event.token >= self._tokens.vocab_size:
            raise EngineError(
                f"{self._who} wrote token {event.token}, which its tokenizer does not have; set `tokenizer` to the "
                "model's own"
            )
        step = Step(event.token, event.logprob, 0.0, engine, kept=event.kept, crop_entropy=event.crop_entropy)
        return self.measure(event, step, top)

    def measure(self, event: TokenEvent, step: Step, top: int = 0) -> Step:
        """Complete a step with the entropy at its position (bounded, where the upstream does not give it) and `top`
        alternatives."""
        pairs = tuple((token, logprob) for token, logprob in event.top[:top] if token is not None)
        if event.entropy is not None:
            return replace(step, entropy=event.entropy, top_logprobs=pairs)
        # Servers add the token that was drawn to the k likeliest; one from the tail is none of them.
        known = event.top[:-1] if len(event.top) > 1 and event.top[-1][0] == event.token else event.top
        try:
            logprobs = [logprob for _, logprob in known]
            lower, upper = entropy_bounds(logprobs, max(self._tokens.vocab_size, len(known)), event.ranked)
        except ValueError as error:
            raise EngineError(f"{self._who} sent impossible log-probabilities", str(error)) from error
        low, high = float(lower), float(upper)
        return replace(step, entropy=(low + high) / 2, entropy_bounds=(low, high), top_logprobs=pairs)

    def _trace(self, trace: Sequence[Mapping[str, Any]], events: list[TokenEvent]) -> list[TokenEvent]:
        """Parse Waver's own trace: ids, exact entropies, and what a truncation left. The alternatives stand beside it,
        if they were asked for."""
        tops = [each.top for each in events] if len(events) == len(trace) else [()] * len(trace)
        return [_traced(token, top) for token, top in zip(trace, tops, strict=True)]

    def _logprobs(self, data: Any) -> list[TokenEvent]:
        if not data:
            return []
        if data.get("content") is not None:
            return [self._entry(entry) for entry in data["content"]]
        names, logprobs = data["tokens"], data["token_logprobs"]
        tops = data.get("top_logprobs") or [None] * len(names)
        return [self._named(*token) for token in zip(names, logprobs, tops, strict=True)]

    def _named(self, name: str, logprob: float | None, top: Mapping[str, float] | None) -> TokenEvent:
        """Parse OpenAI's older shape, which names tokens by strings. Where these are spellings, tokens that are spelt
        alike share an entry, so some may be missing."""
        pairs = sorted(
            ((self._id_of(key), _real(value)) for key, value in (top or {}).items()), key=lambda pair: -pair[1]
        )
        ranked = all(_ID.fullmatch(key) for key in top or {})
        return TokenEvent(self._id_of(name), name, LOWEST if logprob is None else _real(logprob), tuple(pairs), ranked)

    def _entry(self, entry: Mapping[str, Any]) -> TokenEvent:
        """Parse the shape of chat completions, which llama.cpp also uses for text, with ids."""
        pairs = [(self._id_of_entry(each), _real(each["logprob"])) for each in entry.get("top_logprobs") or ()]
        pairs.sort(key=lambda pair: -pair[1])
        return TokenEvent(self._id_of_entry(entry), str(entry["token"]), _real(entry["logprob"]), tuple(pairs))

    def _id_of_entry(self, entry: Mapping[str, Any]) -> int | None:
        if "id" in entry:
            return _whole(entry["id"])
        if match := _ID.fullmatch(str(entry["token"])):
            return int(match[1])
        if entry.get("bytes"):
            return self._by_spelling.get(bytes(entry["bytes"]))
        return self._id_of(entry["token"])

    def _id_of(self, name: str) -> int | None:
        if match := _ID.fullmatch(name):
            return int(match[1])
        if match := _BYTES.fullmatch(name):
            return self._by_spelling.get(bytes.fromhex(match[1].replace("\\x", "")))
        return self._by_spelling.get(name.encode())

    @property
    def _by_spelling(self) -> Mapping[bytes, int | None]:
        """Token ids by spelling; None where two tokens are spelt alike."""
        if self._ids is None:
            ids: dict[bytes, int | None] = {}
            for token in range(self._tokens.vocab_size):
                spelling = self._tokens.token_bytes(token)
                if not spelling:
                    spelling = str(self._tokens.tokenizer.convert_ids_to_tokens(token)).encode()
                ids[spelling] = None if spelling in ids else token
            self._ids = ids
        return self._ids


def _traced(token: Mapping[str, Any], top: Top) -> TokenEvent:
    cut = (_whole(token["kept"]), max(_real(token["crop_entropy"]), 0.0)) if "kept" in token else (None, None)
    entropy = max(_real(token["entropy"]), 0.0)
    return TokenEvent(_whole(token["id"]), str(token["token"]), _real(token["logprob"]), top, True, entropy, *cut)


def _real(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool | str) or math.isnan(number) or number > 1e6:
        raise ValueError(f"{value!r} is not a number of nats")
    return max(number, LOWEST)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a token id")
    return value
