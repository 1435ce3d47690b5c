"""What an upstream says about a token, in the shapes that servers have for it, as one `Heard`."""

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
"""What servers write for minus infinity, which JSON has no word for."""
_ID = re.compile(r"token_id:(\d{1,9})")
_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")

Top = tuple[tuple[int | None, float], ...]


@dataclass(frozen=True, slots=True)
class Heard:
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


class Reader:
    """Reads choices of one upstream. `who` names it in errors.

    Every method raises `EngineError` for what makes no sense.
    """

    def __init__(self, who: str, tokens: TokenText) -> None:
        self._who = who
        self._tokens = tokens
        self._ids: Mapping[bytes, int | None] | None = None

    def choice(self, choice: Mapping[str, Any]) -> list[Heard]:
        """The tokens of a choice, or of a part of one in a stream."""
        try:
            heard = self._logprobs(choice.get("logprobs"))
            trace = (choice.get("waver") or {}).get("trace")
            return heard if trace is None else self._trace(trace, heard)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise EngineError(f"{self._who} sent log-probabilities that make no sense: {error!r:.80}") from error

    def step(self, heard: Heard, engine: str, top: int) -> Step:
        """A token as a `Step`, with `top` alternatives."""
        if heard.token is None:
            raise EngineError(
                f"{self._who} wrote {heard.name[:20]!r}, which does not tell the token; Waver needs token ids from it "
                "(vLLM's return_tokens_as_token_ids)"
            )
        if heard.token >= self._tokens.vocab_size:
            raise EngineError(
                f"{self._who} wrote token {heard.token}, which its tokenizer does not have; set `tokenizer` to the "
                "model's own"
            )
        step = Step(heard.token, heard.logprob, 0.0, engine, kept=heard.kept, crop_entropy=heard.crop_entropy)
        return self.measure(heard, step, top)

    def measure(self, heard: Heard, step: Step, top: int = 0) -> Step:
        """A step with the entropy at its position, and `top` alternatives."""
        pairs = tuple((token, logprob) for token, logprob in heard.top[:top] if token is not None)
        if heard.entropy is not None:
            return replace(step, entropy=heard.entropy, top_logprobs=pairs)
        # Servers add the token that was drawn to the k likeliest; one from the tail is none of them.
        known = heard.top[:-1] if len(heard.top) > 1 and heard.top[-1][0] == heard.token else heard.top
        try:
            logprobs = [logprob for _, logprob in known]
            lower, upper = entropy_bounds(logprobs, max(self._tokens.vocab_size, len(known)), heard.ranked)
        except ValueError as error:
            raise EngineError(f"{self._who} sent impossible log-probabilities: {error}") from error
        low, high = float(lower), float(upper)
        return replace(step, entropy=(low + high) / 2, entropy_bounds=(low, high), top_logprobs=pairs)

    def _trace(self, trace: Sequence[Mapping[str, Any]], heard: list[Heard]) -> list[Heard]:
        """Waver's own trace: ids, exact entropies, and what a truncation left. The alternatives stand beside it, if
        they were asked for."""
        tops = [each.top for each in heard] if len(heard) == len(trace) else [()] * len(trace)
        return [_traced(token, top) for token, top in zip(trace, tops, strict=True)]

    def _logprobs(self, data: Any) -> list[Heard]:
        if not data:
            return []
        if data.get("content") is not None:
            return [self._entry(entry) for entry in data["content"]]
        names, logprobs = data["tokens"], data["token_logprobs"]
        tops = data.get("top_logprobs") or [None] * len(names)
        return [self._named(*token) for token in zip(names, logprobs, tops, strict=True)]

    def _named(self, name: str, logprob: float | None, top: Mapping[str, float] | None) -> Heard:
        """OpenAI's older shape: a token is known by a string. Where these are spelt, two tokens that are spelt alike
        are one entry, so some may be missing."""
        pairs = sorted(((self._id(key), _real(value)) for key, value in (top or {}).items()), key=lambda pair: -pair[1])
        ranked = all(_ID.fullmatch(key) for key in top or {})
        return Heard(self._id(name), name, LOWEST if logprob is None else _real(logprob), tuple(pairs), ranked)

    def _entry(self, entry: Mapping[str, Any]) -> Heard:
        """The shape of chat completions, which llama.cpp also uses for text, with ids."""
        pairs = [(self._entry_id(each), _real(each["logprob"])) for each in entry.get("top_logprobs") or ()]
        pairs.sort(key=lambda pair: -pair[1])
        return Heard(self._entry_id(entry), str(entry["token"]), _real(entry["logprob"]), tuple(pairs))

    def _entry_id(self, entry: Mapping[str, Any]) -> int | None:
        if "id" in entry:
            return _whole(entry["id"])
        if entry.get("bytes"):
            return self._spelt.get(bytes(entry["bytes"]))
        return self._id(entry["token"])

    def _id(self, name: str) -> int | None:
        if match := _ID.fullmatch(name):
            return int(match[1])
        if match := _BYTES.fullmatch(name):
            return self._spelt.get(bytes.fromhex(match[1].replace("\\x", "")))
        return self._spelt.get(name.encode())

    @property
    def _spelt(self) -> Mapping[bytes, int | None]:
        """Every token by how it is spelt; None where two are spelt alike."""
        if self._ids is None:
            ids: dict[bytes, int | None] = {}
            for token in range(self._tokens.vocab_size):
                spelling = self._tokens.token_bytes(token)
                if not spelling:
                    spelling = str(self._tokens.tokenizer.convert_ids_to_tokens(token)).encode()
                ids[spelling] = None if spelling in ids else token
            self._ids = ids
        return self._ids


def _traced(token: Mapping[str, Any], top: Top) -> Heard:
    cut = (_whole(token["kept"]), max(_real(token["crop_entropy"]), 0.0)) if "kept" in token else (None, None)
    entropy = max(_real(token["entropy"]), 0.0)
    return Heard(_whole(token["id"]), str(token["token"]), _real(token["logprob"]), top, True, entropy, *cut)


def _real(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool | str) or math.isnan(number) or number > 1e6:
        raise ValueError(f"{value!r} is not a number of nats")
    return max(number, LOWEST)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a token id")
    return value
