"""Declare the options of `waver train distil`, beside those of `waver train rl`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, get_args

from waver.options import Option
from waver.training.distil.names import AGGREGATIONS, EXPERTS, FUTURE_COSTS, DivergenceName


@dataclass(frozen=True)
class Distil:
    """The expert of a run, and the loss against it."""

    expert: Annotated[
        str,
        Option("`engine`: its most likely tokens; `samples`: tokens that it draws; `feedback`: the model, told more."),
    ] = "engine"
    engine: Annotated[str, Option("The engine that is asked, of --config.")] = "large"
    top_k: Annotated[
        int, Option("Tokens that an expert names at a position; 0 for all, with --expert feedback.", least=0)
    ] = 20
    divergence: Annotated[str, Option("`forward` cross-entropy, `reverse` KL, or `js`.")] = "forward"
    js_weight: Annotated[float, Option("Of the expert in `js`.", least=0.01, most=0.99)] = 0.5
    future: Annotated[
        float, Option("Weight of what a token causes later; 0 is the local loss of other methods.", least=0.0)
    ] = 1.0
    future_cost: Annotated[
        str, Option("`kl`, or `ce` as in the paper, which seeks states where the expert is sure.")
    ] = "kl"
    baseline: Annotated[
        bool, Option("Centre it among the answers to a question.", flags=("--baseline/--no-baseline",))
    ] = True
    truncation: Annotated[float, Option("The most that a row weighs that the model has moved from.", least=1.0)] = 2.0
    aggregation: Annotated[str, Option("`token-mean`, or `seq-mean-token-sum`, the paper's objective.")] = "token-mean"
    states: Annotated[
        float, Option("With --expert samples: share of the positions to ask about.", least=0.01, most=1.0)
    ] = 1.0
    ema: Annotated[
        float,
        Option("With --expert feedback: the teacher's pace towards the model; 1 is the model.", least=0.0, most=1.0),
    ] = 0.05
    success: Annotated[float, Option("Least reward of an answer that others are told.")] = 0.5
    feedback: Annotated[
        str | None,
        Option("MODULE:FUNCTION, called as a reward, that returns texts or None.", shown="the column `feedback`"),
    ] = None
    both: Annotated[bool, Option("Tell feedback beside another's success, too.")] = False
    hint_tokens: Annotated[int, Option("The most tokens that are told.", least=1)] = 8192


def check(given: Distil) -> None:
    """Check what the command line cannot.

    Raises:
        ValueError: an option has no such value, or two do not go together.
    """
    choices: dict[str, tuple[Any, tuple[str, ...]]] = {
        "expert": (given.expert, EXPERTS),
        "divergence": (given.divergence, get_args(DivergenceName)),
        "future-cost": (given.future_cost, FUTURE_COSTS),
        "aggregation": (given.aggregation, AGGREGATIONS),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"--{name} is {', '.join(known)}, not {value!r}")
    if given.expert == "samples" and given.divergence != "forward":
        raise ValueError(f"samples of an expert estimate the forward cross-entropy only, not {given.divergence}")
    if given.expert == "samples" and given.future and given.future_cost != "ce":
        raise ValueError("samples of an expert do not tell its entropy: add --future-cost ce, or --future 0")
    if given.expert == "engine" and given.top_k == 0:
        raise ValueError("an engine names its most likely tokens, not all of them: give --top-k")
