"""The parameters of one request for the logits processor, sent as JSON in vLLM's `extra_args["waver"]`.

Waver's own engine sends everything: how to draw, when to stop, where to report. A client of a stock `vllm serve` sends
a gate or truncations, and vLLM draws: `"vllm_xargs": {"waver": "{\\"gate\\": {\\"threshold\\": 0.7, ...}}"}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from waver.engines.base import Gate, Sampling
from waver.engines.transforms import Transform, from_data

KEY = "waver"
MOST_TOKENS = 2**31 - 1
"""Largest number of tokens in a request, so that it fits the worker's integers."""
LONGEST_WINDOW = 1024
"""Tokens in a gate's window: the worker keeps that many entropies for each request with a gate."""
MOST_TRANSFORMS = 16


class EncodedParams(dict[str, str]):
    """The result of `RequestParams.encode`. Its type distinguishes it from what a client sends, at most a plain
    dict."""


@dataclass(frozen=True, slots=True)
class RequestParams:
    """The drawing, stopping and reporting of one request.

    `sampling` is None where the drawing is left to vLLM: then `transforms` truncate what it draws from, at
    `temperature`. `ends` are the tokens that end the answer, `stop` is the token that ends the request when its gate
    fires (None until the processor's side has chosen it). `slot` is the request's slot in the ring buffer (-1: nothing
    is reported), and `tag` tells requests apart. `given` are tokens that are taken instead of drawn, and only measured.
    `hidden`: report, with the first token, the hidden state so many tokens before the prompt's last.
    """

    gate: Gate | None = None
    sampling: Sampling | None = None
    transforms: tuple[Transform, ...] = ()
    temperature: float = 1.0
    ends: tuple[int, ...] = ()
    stop: int | None = None
    slot: int = -1
    tag: int = 0
    given: tuple[int, ...] = ()
    hidden: int | None = None

    @property
    def needs_tokens(self) -> bool:
        """Return whether the worker needs the tokens themselves, not only their number."""
        s = self.sampling
        if s is None:
            return False
        penalised = s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1.0
        return bool(penalised or s.bad_words) or s.grammar is not None

    def encode(self) -> EncodedParams:
        """Encode the parameters as the value under `KEY` that the worker takes."""
        return EncodedParams(settled=self._to_json())

    def _to_json(self) -> str:
        neutral = RequestParams()
        data = {name: value for name, value in asdict(self).items() if value != getattr(neutral, name)}
        data["transforms"] = [each.as_data() for each in self.transforms]
        if self.sampling is not None:
            default = Sampling()
            data["sampling"] = {
                name: value
                for name, value in data["sampling"].items()
                if value != getattr(default, name) and name not in ("gate", "state_of", "unset")
            }
            data["sampling"]["transforms"] = [each.as_data() for each in self.sampling.transforms]
            data["sampling"]["logit_bias"] = list(self.sampling.logit_bias.items())
        return json.dumps(data)

    @classmethod
    def decode(cls, encoded: Mapping[str, str]) -> RequestParams:
        """Decode what `encode` made."""
        data = json.loads(encoded["settled"])
        rule = data.pop("gate", None)
        data["gate"] = Gate(**rule | {"history": tuple(rule["history"])}) if rule else None
        if how := data.get("sampling"):
            how |= {"logit_bias": dict(how["logit_bias"]), "gate": data["gate"]}
            how |= {name: tuple(how.get(name, ())) for name in ("stop_token_ids", "allowed_token_ids")}
            how |= {"bad_words": tuple(map(tuple, how.get("bad_words", ())))}
            data["sampling"] = Sampling(**how | {"transforms": _transforms(how["transforms"])})
        data |= {name: tuple(data.get(name, ())) for name in ("ends", "given")}
        return cls(**data | {"transforms": _transforms(data["transforms"])})

    @classmethod
    def from_client(cls, given: Any) -> RequestParams:
        """Parse what a client of a stock server sends: JSON, `{"gate": {...}, "transforms": [{"name": "top_h"}]}`,
        either or both.

        Raises:
            ValueError: it is malformed; the message says what is wrong.
        """
        try:
            data = json.loads(given) if isinstance(given, str) else given
        except (ValueError, RecursionError) as error:  # ValueError also for a number of too many digits
            raise ValueError(f"{KEY}: not valid JSON: {error}") from None
        data = _known(data, ("gate", "transforms"), KEY)
        rule, wanted = data.get("gate"), data.get("transforms") or []
        if rule is None and not wanted:
            raise ValueError(f"{KEY}: nothing is asked for; there are: gate, transforms")
        if not isinstance(wanted, list) or len(wanted) > MOST_TRANSFORMS:
            raise ValueError(f"{KEY}.transforms should be a list of at most {MOST_TRANSFORMS}")
        try:
            transforms = _transforms(wanted)
        except ValueError as error:
            raise ValueError(f"{KEY}.transforms: {_short(str(error), 200)}") from None
        return cls(gate=None if rule is None else gate(rule), transforms=transforms)


def gate(data: Any) -> Gate:
    """Make a gate from JSON data: `threshold` (nats) and `window` (tokens) are required.

    Raises:
        ValueError: a field is unknown, missing, or out of its range.
    """
    where = f"{KEY}.gate"
    data = dict(_known(data, [field.name for field in fields(Gate)], where))
    for name in ("threshold", "window"):
        if name not in data:
            raise ValueError(f"{where}.{name} is required")
    window, minimum = data["window"], data.get("min_tokens", 0)
    if not _whole(window) or not 1 <= window <= LONGEST_WINDOW:
        raise ValueError(f"{where}.window should be a whole number of tokens between 1 and {LONGEST_WINDOW}")
    if not _whole(minimum) or not 0 <= minimum <= MOST_TOKENS:
        raise ValueError(f"{where}.min_tokens should be a whole number of tokens, at least 0 (and below 2^31)")
    if not _number(data["threshold"]) or data["threshold"] < 0:
        raise ValueError(f"{where}.threshold should be a number of nats, at least 0")
    if data.get("timing", "eager") not in ("eager", "lagged"):
        raise ValueError(f"{where}.timing should be eager or lagged")
    if not isinstance(data.get("above", True), bool):
        raise ValueError(f"{where}.above should be true or false")
    history = data.get("history", [])
    if not isinstance(history, list | tuple) or not all(_number(value) for value in history):
        raise ValueError(f"{where}.history should be a list of entropies in nats")
    return Gate(**data | {"threshold": float(data["threshold"]), "history": tuple(map(float, history[-window:]))})


def _transforms(data: Sequence[Any]) -> tuple[Transform, ...]:
    return tuple(map(from_data, data))


def _known(data: Any, names: Sequence[str], where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} should be a JSON object")
    if unknown := [_short(str(name), 40) for name in data if name not in names]:
        raise ValueError(f"{where}: there is no {unknown[0]}; there are: {', '.join(names)}")
    return data


def _short(text: str, most: int) -> str:
    """Shorten text that a client wrote, and put it on one line."""
    return " ".join(text.split())[:most]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) < 1e300


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
