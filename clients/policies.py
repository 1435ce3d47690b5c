"""Typed builders for the `policy` field of a request: `extra_body={"policy": [ead(threshold=0.3)]}`.

Only the parameters that are given are sent, so the server's configuration decides the rest. Entropies are in nats.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict, Unpack


class EadParameters(TypedDict, total=False):
    """Entropy Adaptive Decoding (arXiv 2502.06833): the large engine writes while the rolling entropy is high."""

    small: str
    large: str
    threshold: float
    threshold_down: float | None
    window: int
    min_tokens: int
    monitor: Literal["active", "small"]
    timing: Literal["eager", "lagged"]
    start: Literal["small", "large"]


class RandomSwitchParameters(TypedDict, total=False):
    """A control for `ead`: each stretch goes to the large engine with probability `rate`."""

    small: str
    large: str
    rate: float


class RouteParameters(TypedDict, total=False):
    """A control for `ead`: the entropy of a short draft sends the whole request to one engine."""

    small: str
    large: str
    threshold: float
    draft_tokens: int


class StrategyParameters(TypedDict, total=False):
    """A way to think; None for temperature and top_p: the request's own."""

    words: str
    think: bool
    temperature: float | None
    top_p: float | None
    share: float


class DiffAdaptParameters(TypedDict, total=False):
    """DiffAdapt (arXiv 2510.19669): a probe on the hidden state chooses how to think."""

    strategy: Literal["auto", "easy", "normal", "hard", "shuffled", "oracle"]
    probe: str | None
    labels: Literal["paper", "strict_easy", "oracle"]
    min_confidence: float
    bonus: dict[Literal["easy", "normal", "hard"], float]
    easy: StrategyParameters
    normal: StrategyParameters
    hard: StrategyParameters
    fallback: Literal["refuse", "draft"]
    draft_tokens: int
    draft_easy: float
    draft_hard: float
    mix: dict[Literal["easy", "normal", "hard"], float]
    answer: str | None


class ForcedAnswerParameters(TypedDict, total=False):
    """An answer that its limit would cut off is brought to its end."""

    words: str
    tokens: int
    temperature: float | None
    until: str


class LRagParameters(TypedDict, total=False):
    """L-RAG (arXiv 2601.06551): passages are looked up only where the model wavers."""

    collection: str | None
    gate: Literal["entropy", "margin", "flare", "dragin", "seakr", "targ", "always", "never", "random"]
    threshold: float | None
    pooling: Literal["mean", "first", "max", "prefix_k"]
    prefix: int
    draft_tokens: int | None
    signal: Literal["margin", "entropy", "variance"]
    samples: int
    rate: float
    expected_rate: float | None
    top_k: int
    mode: Literal["hybrid", "dense", "lexical"]
    filter: dict[str, str | int | float | bool | list[str | int | float | bool | None] | None]
    documents: list[str]
    summary: Literal["lead", "written"]
    instruction: str


class TopWParameters(TypedDict, total=False):
    """Top-W (arXiv 2602.10346): what may be drawn is a trade between geometry, entropy and mass."""

    entropy_weight: float
    mass_weight: float
    pool: int
    warm_mass: float
    iterations: int
    potential: Literal["nearest", "knn"]
    neighbours: int
    metric: Literal["cosine", "chord"]
    geometry_scale: float
    selection_temperature: float | None


class PParameters(TypedDict, total=False):
    """A truncation with one parameter `p`: `top_p`, `min_p`, `typical`."""

    p: float


class EpsilonParameters(TypedDict, total=False):
    """A truncation with one parameter `epsilon`: `eta`, `epsilon`."""

    epsilon: float


class TopNSigmaParameters(TypedDict, total=False):
    """Top-nσ: logits within `n` standard deviations of the largest."""

    n: float


class TopHParameters(TypedDict, total=False):
    """Top-H: the most likely tokens up to a part `alpha` of the entropy."""

    alpha: float
    form: Literal["running", "renormalised"]


class AdaptiveTemperatureParameters(TypedDict, total=False):
    """Adaptive temperature (arXiv 2509.16591): entropies at which it is lowest, the request's own, and highest."""

    span: float
    low: float
    pivot: float
    high: float


def ead(**parameters: Unpack[EadParameters]) -> dict[str, Any]:
    """Return switch between a small and a large engine, token by token, by entropy."""
    return {"name": "ead", **parameters}


def random_switch(**parameters: Unpack[RandomSwitchParameters]) -> dict[str, Any]:
    """Return switch between a small and a large engine at random."""
    return {"name": "random_switch", **parameters}


def route(**parameters: Unpack[RouteParameters]) -> dict[str, Any]:
    """Send the whole request to the small or to the large engine."""
    return {"name": "route", **parameters}


def diffadapt(**parameters: Unpack[DiffAdaptParameters]) -> dict[str, Any]:
    """Choose how to think by how hard the question is."""
    return {"name": "diffadapt", **parameters}


def forced_answer(**parameters: Unpack[ForcedAnswerParameters]) -> dict[str, Any]:
    """Bring an answer that its limit would cut off to its end."""
    return {"name": "forced_answer", **parameters}


def l_rag(**parameters: Unpack[LRagParameters]) -> dict[str, Any]:
    """Look things up in a collection only where the model wavers without them."""
    return {"name": "l_rag", **parameters}


def top_w(**parameters: Unpack[TopWParameters]) -> dict[str, Any]:
    """Keep the set of tokens that best trades geometry, entropy and mass."""
    return {"name": "top_w", **parameters}


def top_p(**parameters: Unpack[PParameters]) -> dict[str, Any]:
    """Keep the smallest set of most likely tokens with mass `p`."""
    return {"name": "top_p", **parameters}


def min_p(**parameters: Unpack[PParameters]) -> dict[str, Any]:
    """Keep tokens at least `p` times as likely as the most likely one."""
    return {"name": "min_p", **parameters}


def typical(**parameters: Unpack[PParameters]) -> dict[str, Any]:
    """Keep the tokens whose surprisal is nearest to the entropy, up to mass `p`."""
    return {"name": "typical", **parameters}


def eta(**parameters: Unpack[EpsilonParameters]) -> dict[str, Any]:
    """Keep tokens above a probability that falls as the entropy grows."""
    return {"name": "eta", **parameters}


def epsilon(**parameters: Unpack[EpsilonParameters]) -> dict[str, Any]:
    """Keep tokens with a probability of at least `epsilon`."""
    return {"name": "epsilon", **parameters}


def top_n_sigma(**parameters: Unpack[TopNSigmaParameters]) -> dict[str, Any]:
    """Keep logits within `n` standard deviations of the largest."""
    return {"name": "top_n_sigma", **parameters}


def top_h(**parameters: Unpack[TopHParameters]) -> dict[str, Any]:
    """Keep the most likely tokens up to a part `alpha` of the entropy."""
    return {"name": "top_h", **parameters}


def adaptive_temperature(**parameters: Unpack[AdaptiveTemperatureParameters]) -> dict[str, Any]:
    """Draw warmer where the entropy is high and cooler where it is low."""
    return {"name": "adaptive_temperature", **parameters}
