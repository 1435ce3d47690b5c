"""Translate `Sampling` into the body of a completion request, and refuse what an upstream cannot do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from waver.engines.base import Gate, Sampling, Unsupported
from waver.engines.salt import current_salt
from waver.engines.schema_check_worker import LARK, REGEX
from waver.engines.temperature import adapts
from waver.engines.tokens import TokenText
from waver.engines.transforms import Transform
from waver.engines.vllm.params import KEY, LONGEST_WINDOW

TOKEN_FIELDS: dict[str, dict[str, Any]] = {
    "trace": {"trace": True},
    "ids": {"return_tokens_as_token_ids": True},
    "names": {},
}
"""Fields of a request that make an upstream return token ids."""
NEUTRAL = Sampling()
PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Penalties by name, with their neutral values."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The capabilities of an upstream.

    `takes_ids`: it takes token ids as a prompt, else text. `token_format`: how it reports which tokens it wrote: in
    Waver's trace, as ids, or by their spelling. `top`: log-probabilities at each position. `extras`: it takes vLLM's
    further fields. `reports_end`: the token that ends an answer is among those it reports. `reserved`: the token with
    which Waver's plugin ends a request; None where there is no plugin, or none is wanted.
    """

    takes_ids: bool = True
    token_format: Literal["trace", "ids", "names"] = "ids"
    top: int = 20
    extras: bool = True
    reports_end: bool = True
    reserved: int | None = None


def body(
    model: str, ids: Sequence[int], sampling: Sampling, tokens: TokenText, capabilities: Capabilities, room: int
) -> dict[str, Any]:
    """Make the body of a streamed request for the rest of an answer.

    Args:
        ids: the prompt and the answer so far. room: most tokens that the context leaves.

    Raises:
        Unsupported: this upstream cannot be asked for it.
    """
    start = len(ids) if sampling.answer_start is None else sampling.answer_start
    written = len(ids) - start
    refuse(sampling, capabilities, written)
    limit = max(min(sampling.max_tokens - written, room), 1)
    out = {
        "model": model,
        "prompt": prompt(ids, tokens, capabilities),
        "stream": True,
        "max_tokens": limit,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        **TOKEN_FIELDS[capabilities.token_format],
    }
    if capabilities.token_format != "trace" or sampling.top_logprobs:
        out["logprobs"] = max(sampling.top_logprobs, 1) if capabilities.token_format == "trace" else capabilities.top
    if sampling.temperature > 0:
        out["seed"] = segment_seed(sampling.seed, written)
    # What is left out takes the upstream's default, which need not be the neutral value.
    further = {
        "top_k": (sampling.top_k or -1, -1),
        "min_p": (sampling.min_p, 0.0),
        **{name: (getattr(sampling, name), neutral) for name, neutral in PENALTIES.items()},
    }
    out |= {name: value for name, (value, neutral) in further.items() if capabilities.extras or value != neutral}
    for name in sampling.unset:  # the upstream knows its model's own
        if name in out and getattr(sampling, name) == getattr(NEUTRAL, name):
            del out[name]
    optional = {
        "min_tokens": min(max(sampling.min_tokens - written, 0), limit),
        "ignore_eos": sampling.ignore_eos,
        "stop_token_ids": list(sampling.stop_token_ids),
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()},
        "allowed_token_ids": list(sampling.allowed_token_ids),
        **_guide(sampling.grammar, capabilities),
        "cache_salt": current_salt() if capabilities.extras else "",
        "vllm_xargs": _plugin_args(sampling, capabilities, written),
    }
    return out | {name: value for name, value in optional.items() if value}


def gate_runs_upstream(sampling: Sampling, capabilities: Capabilities, written: int) -> bool:
    """Return whether the upstream's plugin can run the gate: that needs the raw logits, which the plugin does not see
    where vLLM's bias, `min_tokens` or repetition penalty are applied before it."""
    gate = sampling.gate
    return (
        gate is not None
        and capabilities.reserved is not None
        and gate.window <= LONGEST_WINDOW
        and gate.threshold >= 0
        and sampling.min_tokens <= written
        and not sampling.logit_bias
        and sampling.repetition_penalty == 1.0
    )


def prompt(ids: Sequence[int], tokens: TokenText, capabilities: Capabilities) -> list[int] | str:
    """Give the prompt as an upstream takes it: ids or text.

    Raises:
        Unsupported: it takes text only, and these ids end inside of a character.
    """
    if capabilities.takes_ids:
        return list(ids)
    # Servers put the token that begins a text in front by themselves.
    first = tokens.tokenizer.bos_token_id
    own = len(ids) > 1 and ids[0] == first and tokens.encode("a")[:1] == [first]
    text = str(tokens.tokenizer.decode(list(ids[own:]), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if text.endswith("\ufffd"):
        raise Unsupported("the prompt ends inside of a character, and this engine's upstream takes text only", "prompt")
    return text


def segment_seed(seed: int, written: int) -> int:
    """Derive the seed for the rest of an answer: another one at each position, so that no draw is repeated after a
    hand-over; at the beginning the request's own. 31 bits, which every server takes."""
    if not written:
        return seed & 0x7FFF_FFFF
    digest = hashlib.blake2b(f"{seed}@{written}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def refuse(sampling: Sampling, capabilities: Capabilities, written: int) -> None:
    """Refuse what an upstream cannot do, or cannot continue where another engine wrote the beginning.

    Args:
        written: tokens of the answer so far.

    Raises:
        Unsupported: the message says what, and what to do.
    """
    if sampling.transforms and sampling.temperature > 0:
        _refuse_transforms(sampling, capabilities, written)
    if sampling.bad_words or (sampling.allowed_token_ids and not capabilities.extras):
        param = "bad_words" if sampling.bad_words else "allowed_token_ids"
        raise Unsupported(f"{param} cannot be used on this engine, an upstream; use another engine", param)
    if sampling.grammar is not None:
        _guide(sampling.grammar, capabilities)
    if sampling.top_logprobs > capabilities.top:
        raise Unsupported(
            f"this engine's upstream gives at most {capabilities.top} top log-probabilities", "top_logprobs"
        )
    if capabilities.reserved is not None and capabilities.reserved in (*sampling.stop_token_ids, *sampling.logit_bias):
        param = "stop_token_ids" if capabilities.reserved in sampling.stop_token_ids else "logit_bias"
        raise Unsupported(f"token {capabilities.reserved} is reserved: it ends a request whose gate fires", param)
    if written or sampling.gate is not None:
        _refuse_in_turns(sampling)


def _refuse_transforms(sampling: Sampling, capabilities: Capabilities, written: int) -> None:
    """Refuse transforms where there is no plugin, and settings that the upstream applies in another order."""
    if capabilities.reserved is None:
        raise Unsupported(
            "this engine's upstream cannot draw as the policy says: it is no vLLM with Waver's plugin; use another "
            "engine",
            "policy",
        )
    for param, neutral in PENALTIES.items():
        if getattr(sampling, param) != neutral:
            raise Unsupported(
                f"{param} cannot be used with a policy that shapes the draw on this engine: its upstream may penalise "
                "after it; leave one of them out, or use another engine",
                param,
            )
    for param, used in (("logit_bias", bool(sampling.logit_bias)), ("min_tokens", sampling.min_tokens > written)):
        if used and adapts(sampling.transforms):
            raise Unsupported(
                f"{param} cannot be used with a temperature that follows the entropy on this engine: its upstream "
                "measures after it; leave one of them out, or use another engine",
                param,
            )


def _refuse_in_turns(sampling: Sampling) -> None:
    """Refuse what needs the whole answer, of which the upstream knows its own part only."""
    for param in ("presence_penalty", "frequency_penalty"):
        if getattr(sampling, param):
            raise Unsupported(
                f"an upstream engine counts the tokens of its own part of an answer only, so {param} cannot be used "
                "where engines write in turns",
                param,
            )
    if sampling.grammar is not None:
        raise Unsupported(
            "an upstream engine begins a grammar anew, so response_format cannot be used where engines write in turns",
            "response_format",
        )


def _guide(grammar: str | None, capabilities: Capabilities) -> dict[str, Any]:
    """Ask an upstream for the form of an answer: in OpenAI's words a JSON schema, in vLLM's other forms.

    Raises:
        Unsupported: it takes JSON schemas only.
    """
    if grammar is None:
        return {}
    for prefix, field in ((REGEX, "regex"), (LARK, "grammar")):
        if grammar.startswith(prefix):
            if not capabilities.extras:
                raise Unsupported(
                    "this engine's upstream takes JSON schemas only; use another engine", "response_format"
                )
            return {"structured_outputs": {field: grammar.removeprefix(prefix)}}
    schema = {"name": "answer", "schema": json.loads(grammar), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _plugin_args(sampling: Sampling, capabilities: Capabilities, written: int) -> dict[str, str]:
    gate = sampling.gate if gate_runs_upstream(sampling, capabilities, written) else None
    return plugin_args(gate, sampling.transforms if sampling.temperature else ())


def plugin_args(gate: Gate | None, transforms: Sequence[Transform] = ()) -> dict[str, str]:
    """Encode a gate and truncations as vLLM hands them to the plugin."""
    data: dict[str, Any] = {}
    if gate is not None:
        data["gate"] = {**asdict(gate), "history": gate.history[-gate.window :]}
    if transforms:
        data["transforms"] = [each.as_data() for each in transforms]
    return {KEY: json.dumps(data)} if data else {}
