"""Written by docs/generate.py."""

from typing import Any, Literal, TypedDict

def policy(name: str, **parameters: Any) -> dict[str, Any]: ...

class Easy(TypedDict, total=False):
    """Answer without thinking."""

    words: str
    think: bool
    temperature: float | None
    top_p: float | None
    share: float

class Normal(TypedDict, total=False):
    """Think in order, step by step."""

    words: str
    think: bool
    temperature: float | None
    top_p: float | None
    share: float

class Hard(TypedDict, total=False):
    """Fail fast: on such questions more tokens rarely help."""

    words: str
    think: bool
    temperature: float | None
    top_p: float | None
    share: float

def inv_entropy(
    *,
    measure: str = ...,
    also: list[str] = ...,
    perturbations: int = ...,
    replications: int = ...,
    draws: int = ...,
    temperature: float = ...,
    answer_tokens: int = ...,
    instruction: str = ...,
    perturb: Literal["paraphrase", "gaap"] = ...,
    similarity: Literal["embedding", "abs", "nli", "words"] = ...,
    calibration: str | None = ...,
    level: float | None = ...,
    then: Literal["report", "say", "engine", "look_up", "refuse"] = ...,
    engine: str | None = ...,
    collection: str | None = ...,
    words: str = ...,
    refusal: str = ...,
    details: bool = ...,
) -> dict[str, Any]:
    """Report how uncertain an answer is, and act on it."""

def safeharbor(
    *,
    guard: str = ...,
    low: float | None = ...,
    high: float | None = ...,
    rules: int = ...,
    judge: Literal["prompt", "verdict"] = ...,
    turns: int = ...,
    answers: bool = ...,
    refusal: str = ...,
) -> dict[str, Any]:
    """Refuse what rules forbid."""

def memgas(
    *,
    recall: bool = ...,
    remember: bool = ...,
    engine: str | None = ...,
    extraction: Literal["engine", "words"] = ...,
    idle: float = ...,
    candidates: int = ...,
    wide: bool = ...,
    weighting: Literal["bounded", "paper"] = ...,
    temperature: float = ...,
    seeds: int = ...,
    damping: float = ...,
    episodes: int = ...,
    filter: Literal["engine", "none"] = ...,
    instruction: str = ...,
) -> dict[str, Any]:
    """Remember whole conversations, and recall them at the grain that fits the question."""

def scr(
    *,
    top_k: int = ...,
    confirm: Literal["listwise", "pointwise", "probability"] = ...,
    statements: int = ...,
    threshold: float = ...,
    max_entropy: float | None = ...,
    uncertain: Literal["pointwise", "direct"] = ...,
    floor: float | None = ...,
    engine: str | None = ...,
    shared: bool = ...,
    instruction: str = ...,
) -> dict[str, Any]:
    """Answer with corrected facts where they bear on the question."""

def simplemem(
    *,
    recall: bool = ...,
    remember: bool = ...,
    engine: str | None = ...,
    extraction: Literal["engine", "turns"] = ...,
    novelty: Literal["entities", "surprisal"] = ...,
    version: Literal[1, 2] = ...,
    window: int | None = ...,
    stride: int | None = ...,
    threshold: float = ...,
    alpha: float = ...,
    safety_net: bool = ...,
    idle: float = ...,
    consolidate: bool = ...,
    cluster_threshold: float = ...,
    affinity_mix: float = ...,
    decay: float = ...,
    linkage: Literal["complete", "single"] = ...,
    plan: Literal["engine", "words"] = ...,
    least: int = ...,
    most: int = ...,
    base: int = ...,
    slope: float = ...,
    dense_weight: float = ...,
    lexical_weight: float = ...,
    symbolic_weight: float = ...,
    instruction: str = ...,
) -> dict[str, Any]:
    """Remember conversations, and recall what a question needs."""

def c_ip(
    *,
    task: str = ...,
    alpha: float = ...,
    length: int = ...,
    epsilon: float = ...,
    select: Literal["c_ip", "ip", "bound", "random"] = ...,
    predictor: Literal["model", "table"] = ...,
    error: float = ...,
    thresholds: str | None = ...,
    consider: int = ...,
    predict: bool = ...,
) -> dict[str, Any]:
    """Ask back with as few questions as possible."""

def adte(
    *,
    labels: list[str] = ...,
    views: int = ...,
    keep: float = ...,
    view: Literal["order", "reasoned"] = ...,
    measure: Literal["adte", "tsallis", "shannon"] = ...,
    q: float = ...,
    low: float = ...,
    high: float = ...,
    prior: list[float] | None = ...,
    adjust: bool = ...,
    learn: bool = ...,
    warmup: int = ...,
    slots: int = ...,
    margin: float = ...,
    instruction: str = ...,
    text_tokens: int = ...,
    temperature: float = ...,
) -> dict[str, Any]:
    """Answer with one of given labels, by the most confident of several views."""

def entropy_judger(
    *,
    samples: int = ...,
    select: Literal["auto", "judge", "vote", "min_entropy", "random", "oracle"] = ...,
    judge: str | None = ...,
    threshold: float | None = ...,
    topology: Literal["single", "sequential", "centralized", "debate", "hybrid"] = ...,
    rounds: int = ...,
    roles: dict[str, str] = ...,
    temperature: float = ...,
    top_p: float = ...,
    entropy: Literal["drawn", "raw"] = ...,
    answers: Literal["auto", "boxed", "number", "exact", "none"] = ...,
    reference: bool = ...,
    features: bool = ...,
    answer: str | None = ...,
) -> dict[str, Any]:
    """Draw several answers and give the best."""

def diffadapt(
    *,
    strategy: Literal["auto", "easy", "normal", "hard", "shuffled", "oracle"] = ...,
    probe: str | None = ...,
    labels: Literal["paper", "strict_easy", "oracle"] = ...,
    min_confidence: float = ...,
    bonus: dict[Literal["easy", "normal", "hard"], float] = ...,
    easy: Easy = ...,
    normal: Normal = ...,
    hard: Hard = ...,
    fallback: Literal["refuse", "draft"] = ...,
    draft_tokens: int = ...,
    draft_easy: float = ...,
    draft_hard: float = ...,
    mix: dict[Literal["easy", "normal", "hard"], float] = ...,
    answer: str | None = ...,
) -> dict[str, Any]:
    """Choose how to think by how hard the question is: answer at once, step by step, or only the key route."""

def bes(
    *,
    task: Literal["auto", "sums", "knights", "regex"] = ...,
    goals: list[str] = ...,
    verifier: str | None = ...,
    propose: str | None = ...,
    proposed: int = ...,
    method: Literal["bes", "tree", "best_of_n"] = ...,
    iterations: int = ...,
    tokens: int = ...,
    seconds: float | None = ...,
    temperature: float = ...,
    top_p: float = ...,
    delimiter: str = ...,
    expand: int = ...,
    longest: int = ...,
    hot: float = ...,
    cold: float = ...,
) -> dict[str, Any]:
    """Search for an answer that meets checkable goals, by growing and recombining partial ones."""

def l_rag(
    *,
    collection: str | None = ...,
    top_k: int = ...,
    mode: Literal["hybrid", "dense", "lexical"] = ...,
    filter: dict[str, str | int | float | bool | list[str | int | float | bool | None] | None] = ...,
    documents: list[str] = ...,
    summary: Literal["lead", "written"] = ...,
    instruction: str = ...,
    gate: Literal[
        "dragin", "entropy", "flare", "margin", "seakr", "self_rag", "targ", "always", "never", "random"
    ] = ...,
    threshold: float | None = ...,
    pooling: Literal["mean", "first", "max", "prefix_k"] = ...,
    prefix: int = ...,
    draft_tokens: int | None = ...,
    draft_end: Literal["line", "length"] = ...,
    signal: Literal["margin", "entropy", "variance"] = ...,
    samples: int = ...,
    rate: float = ...,
    expected_rate: float | None = ...,
) -> dict[str, Any]:
    """Look things up in a collection only when the model wavers without them."""

def forced_answer(
    *, words: str = ..., tokens: int = ..., temperature: float | None = ..., until: str = ...
) -> dict[str, Any]:
    """Bring an answer that its limit would cut off to its end, within that limit."""

def think_budget(*, tokens: int = ..., words: str = ...) -> dict[str, Any]:
    """End a think block that has used up its budget, and let the answer follow."""

def cascade(
    *, small: str = ..., large: str = ..., threshold: float = ..., quantile: float | None = ...
) -> dict[str, Any]:
    """Answer again on the large engine where the small one wavers."""

def ead(
    *,
    small: str = ...,
    large: str = ...,
    threshold: float = ...,
    window: int = ...,
    min_tokens: int = ...,
    monitor: Literal["active", "small"] = ...,
    timing: Literal["eager", "lagged"] = ...,
    threshold_down: float | None = ...,
    start: Literal["small", "large"] = ...,
    repetition: int = ...,
) -> dict[str, Any]:
    """Switch between a small and a large model, token by token, on the rolling entropy of the next token."""

def learned_route(*, router: str | None = ..., routes: dict[str, str] = ..., unsure: float = ...) -> dict[str, Any]:
    """Let the kind of a request, learned from a few examples, decide which engine answers."""

def random_switch(*, small: str = ..., large: str = ..., rate: float = ...) -> dict[str, Any]:
    """Let chance decide who writes each token: the control for switching policies."""

def route(*, small: str = ..., large: str = ..., threshold: float = ..., draft_tokens: int = ...) -> dict[str, Any]:
    """Draft a few tokens on the small engine; if their mean entropy is high, the large engine answers instead."""

def adaptive_temperature(
    *, span: float = ..., low: float = ..., pivot: float = ..., high: float = ...
) -> dict[str, Any]:
    """Draw warmer where the entropy is high and cooler where it is low, around the request's temperature."""

def entropy_prune(
    *, keep: float = ..., layer: int = ..., normalise: bool = ..., by: Literal["entropy", "attention", "random"] = ...
) -> dict[str, Any]:
    """Drop image tokens whose heads agree."""

def epsilon(*, epsilon: float = ...) -> dict[str, Any]:
    """Keep tokens above a fixed probability."""

def eta(*, epsilon: float = ...) -> dict[str, Any]:
    """Keep tokens above a probability that falls as the entropy grows."""

def min_p(*, p: float = ...) -> dict[str, Any]:
    """Keep tokens at least so many times as likely as the most likely one."""

def top_h(*, alpha: float = ..., form: Literal["running", "renormalised"] = ...) -> dict[str, Any]:
    """Keep the most likely tokens up to a part of the distribution's entropy."""

def top_n_sigma(*, n: float = ...) -> dict[str, Any]:
    """Keep logits within so many standard deviations of the largest, whatever the temperature."""

def top_p(*, p: float = ...) -> dict[str, Any]:
    """Keep the smallest set of most likely tokens with a given mass (nucleus sampling)."""

def top_w(
    *,
    entropy_weight: float = ...,
    mass_weight: float = ...,
    pool: int = ...,
    warm_mass: float = ...,
    iterations: int = ...,
    potential: Literal["nearest", "knn"] = ...,
    neighbours: int = ...,
    metric: Literal["cosine", "chord"] = ...,
    geometry_scale: float = ...,
    selection_temperature: float | None = ...,
) -> dict[str, Any]:
    """Keep the set of tokens that best trades geometry, entropy and mass; sharp at any temperature."""

def typical(*, p: float = ...) -> dict[str, Any]:
    """Keep the tokens whose surprisal is nearest to the entropy, up to a given mass; may drop the most likely one."""
