"""Declare what `waver chat` and `waver calibrate` can be told: defaults, and a line of help for each.

Nothing heavy is imported here, so that `waver --help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from waver.options import Option

BASE_URL = "http://127.0.0.1:8000/v1"


@dataclass(frozen=True)
class ChatOptions:
    """One conversation in the terminal, or one message. Sampling options that are None are not sent."""

    message: Annotated[str | None, Option("Ask this, print the answer, leave.", flags=("--message", "-m"))] = None
    base_url: Annotated[str, Option("The server's address, with /v1.", variable="WAVER_BASE_URL")] = BASE_URL
    model: Annotated[str | None, Option("An engine, or waver/PRESET.", shown="the first preset")] = None
    policy: Annotated[str | None, Option("A preset's name, a JSON list, or `none`.", shown="the model's")] = None
    system: Annotated[str | None, Option("A system message.")] = None
    temperature: Annotated[float | None, Option("0 is greedy.", least=0.0)] = None
    max_tokens: Annotated[int | None, Option("The most tokens an answer may have.", least=1)] = None
    seed: Annotated[int | None, Option("Makes answers repeatable.")] = None
    json: Annotated[bool, Option("Print the server's whole response to one message, as JSON.")] = False

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling options to send."""
        named = {name: getattr(self, name) for name in ("temperature", "max_tokens", "seed")}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Calibration:
    """The gate to calibrate, and the goal: a share `rate` of lookups, or a `loss` of accuracy against always looking
    up; without either, the loss that the questions can promise where all answers are known, else a rate of one half."""

    collection: Annotated[str, Option("Where things are looked up.", flags=("--collection", "-n"))]
    gate: Annotated[str, Option("entropy, margin, targ, seakr, flare, dragin or self_rag.")] = "entropy"
    pooling: Annotated[str | None, Option("mean, first, max or prefix_k; of the gate entropy.", shown="mean")] = None
    parameters: dict[str, Any] = field(default_factory=dict)
    """Other parameters of `l_rag`."""
    rate: Annotated[float | None, Option("The share of requests that may look things up.")] = None
    loss: Annotated[
        float | None,
        Option("Accuracy that may be lost against always looking up.", shown="what the questions can promise"),
    ] = None
    confidence: Annotated[float, Option("How sure it is that no more than --loss is lost.", least=0.5, most=0.999)] = (
        0.95
    )
    scorer: Annotated[str, Option("When an answer is right: contains, exact, number or choice.")] = "contains"

    def policy(self, **chosen: Any) -> dict[str, Any]:
        """Return `l_rag` as a request carries it, with `chosen` over what is calibrated."""
        pooling = {} if self.pooling is None else {"pooling": self.pooling}
        given = {"collection": self.collection, "gate": self.gate, **pooling, **self.parameters}
        return {"name": "l_rag", **given, **chosen}


@dataclass(frozen=True)
class Requests:
    """The model and the sampling options of calibration's requests."""

    model: Annotated[str | None, Option("An engine, or waver/PRESET with its other policies.", shown="as in chat")] = (
        None
    )
    temperature: Annotated[float, Option("0 is greedy.", least=0.0)] = 0.0
    max_tokens: Annotated[int | None, Option("The most tokens an answer may have.", least=1)] = None
    at_once: Annotated[int, Option("Requests in the air at a time.", least=1)] = 8

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling options to send."""
        limit = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return {"temperature": self.temperature, **limit}


@dataclass(frozen=True)
class Measuring:
    """Settings of `waver calibrate inv_entropy`: measures, model, and how evidence is drawn. None: the server's
    default."""

    model: Annotated[str, Option("The engine, or waver/PRESET, that answers.")] = "large"
    measures: Annotated[
        tuple[str, ...], Option("A measure; repeatable.", flags=("--measure",), shown="all of them")
    ] = ()
    scorer: Annotated[str, Option("When an answer is right: contains, exact, number or choice.")] = "contains"
    perturbations: Annotated[int | None, Option("Other wordings of a question.", least=1)] = None
    replications: Annotated[int | None, Option("Answers to each wording.", least=1)] = None
    perturb: Annotated[str | None, Option("How wordings are made: paraphrase or gaap.")] = None
    similarity: Annotated[str | None, Option("How texts are compared: embedding, abs, nli or words.")] = None
    instruction: Annotated[str | None, Option("What is added to the question for these answers.")] = None
    temperatures: Annotated[
        tuple[float, ...],
        Option("Sample at it too, for TSU; repeatable, rising.", flags=("--at",), shown="the default"),
    ] = ()
    max_tokens: Annotated[int, Option("The most tokens of an answer.", least=1)] = 256
    at_once: Annotated[int, Option("Questions in the air at a time.", least=1)] = 2

    @property
    def request(self) -> dict[str, Any]:
        """Return the body of a request, without its message."""
        from waver.policies.uncertainty.measures import MEASURES

        named = ("perturbations", "replications", "perturb", "similarity", "instruction")
        given = {name: value for name in named if (value := getattr(self, name)) is not None}
        measures = list(self.measures or MEASURES)
        return {"model": self.model, "measures": measures, "max_tokens": self.max_tokens, "temperature": 0, **given}


@dataclass(frozen=True)
class Pursuit:
    """Settings of `waver calibrate c_ip`: the model, and random histories of how many questions."""

    model: Annotated[str, Option("The engine, or waver/PRESET, that predicts.")] = "large"
    length: Annotated[int, Option("Longest history, in questions.", least=1, most=64)] = 20
    count: Annotated[int, Option("Histories of each length to calibrate on.", least=2)] = 100
    fresh: Annotated[int, Option("Histories of each length to check the coverage on.", least=0)] = 20
    alpha: Annotated[float, Option("Share of truths that sets may miss, for the check.", least=0.001, most=0.5)] = 0.1
    seed: Annotated[int, Option("Seed of the histories.")] = 1
    at_once: Annotated[int, Option("Requests in the air at a time.", least=1)] = 8


@dataclass(frozen=True)
class Choosing:
    """Settings of `waver calibrate arms`: how many requests may be made, and how the next one is chosen."""

    budget: Annotated[int, Option("Requests that may be made in all.", least=2, most=2000)]
    strategy: Annotated[
        str, Option("`learned` (trained in simulation first), or `uniform`, `entropy`, `thompson`, `top_two`.")
    ] = "learned"
    price: Annotated[
        float, Option("What a relative cost of 1 is worth, in shares of right answers.", least=0.0, most=1.0)
    ] = 0.0
    scorer: Annotated[str, Option("When an answer is right: contains, exact, number or choice.")] = "contains"
    max_tokens: Annotated[int, Option("The most tokens of an answer.", least=1)] = 256
    classes: Annotated[int, Option("Classes of difficulty in the simulation.", least=1, most=6)] = 3
    instances: Annotated[int, Option("Simulated users to train on.", least=10, most=2000)] = 200
    steps: Annotated[int, Option("Updates of each policy in training.", least=1)] = 150
    rollouts: Annotated[int, Option("Simulated calibrations in each.", least=8)] = 256
    users: Annotated[int, Option("Fresh simulated users to compare all strategies on.", least=1)] = 200
    seed: Annotated[int, Option("Seed of the simulation, of the questions' order and of choices.")] = 1


@dataclass(frozen=True)
class Tuning:
    """Settings of `waver calibrate policy`: what a setting may lose, cost, or leave to which engine."""

    loss: Annotated[float | None, Option("Right answers that may be lost, as a share.", least=0.001, most=1.0)] = None
    budget: Annotated[
        float | None, Option("What may be spent, as a share of the full cost of --against.", least=0.0)
    ] = None
    share: Annotated[float | None, Option("Tokens that --against may write, as a share.", least=0.001, most=1.0)] = None
    confidence: Annotated[float, Option("How sure it is that no more than --loss is lost.", least=0.5, most=0.999)] = (
        0.95
    )
    against: Annotated[str, Option("The engine that a user would ask otherwise.")] = "large"
    model: Annotated[str | None, Option("The engine that requests with the policy name.", shown="--against")] = None
    scorer: Annotated[str, Option("When an answer is right: contains, exact, number or choice.")] = "contains"
    temperature: Annotated[float, Option("0 is greedy.", least=0.0)] = 0.0
    max_tokens: Annotated[int, Option("The most tokens of an answer.", least=1)] = 256
    at_once: Annotated[int, Option("Requests in the air at a time; seconds are of such a load.", least=1)] = 8
