"""List the policies that the requests of `waver bench replay` name, with several settings of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

COLLECTION = "towns"
FREQUENT, RARE, TAIL = "frequent_facts", "rare_facts", "tail_facts"

Body = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """Policies of a group of requests, used one after another, at temperatures in turn."""

    group: str
    policies: tuple[Body, ...]
    task: str = "arithmetic"
    fields: Mapping[str, Any] = field(default_factory=dict)


def several(policy: str, *parameters: Body, **common: Any) -> tuple[Body, ...]:
    """A policy with one set of parameters after another."""
    return tuple({"name": policy, **common, **own} for own in parameters)


EAD = several(
    "ead",
    {},
    *({"threshold": t, "window": w} for t, w in product((0.02, 0.1, 0.4), (1, 3))),
    *({"threshold": 0.1, "window": w, "min_tokens": m, "timing": "lagged"} for w, m in ((1, 1), (2, 4), (5, 2))),
    *({"threshold": t, "monitor": "small"} for t in (0.02, 0.1, 0.5)),
    {"threshold": 0.1, "monitor": "small", "timing": "lagged", "window": 2},
    {"threshold": 0.1, "monitor": "small", "threshold_down": 0.01, "window": 2, "min_tokens": 2},
    *({"threshold": t, "threshold_down": d, "window": 2} for t, d in ((0.1, 0.001), (0.5, 0.05), (0.3, 0.3))),
    *({"threshold": t, "start": "large"} for t in (0.0, 0.1)),
    {"threshold": 0.2, "start": "large", "timing": "lagged", "threshold_down": 0.02},
    {"threshold": 1e6},
)
SWITCHES: tuple[Body, ...] = (
    *({"name": "random_switch", "rate": rate} for rate in (0.0, 0.1, 0.5, 0.9, 1.0)),
    {"name": "random_switch", "rate": 0.3, "small": "large", "large": "small"},
    *({"name": "route", "threshold": t, "draft_tokens": n} for t, n in ((0.0, 4), (0.05, 8), (0.1, 16), (1e3, 2))),
    {"name": "route"},
)
GATES = several(
    "l_rag",
    {},
    *({"gate": "entropy", "threshold": t, "draft_tokens": n} for t, n in ((0.05, 8), (0.3, 32), (5.0, 16))),
    *({"gate": "entropy", "threshold": 0.1, "pooling": p, "prefix": 3} for p in ("first", "max", "prefix_k")),
    *({"gate": "margin", "threshold": t} for t in (0.1, 0.6)),
    *({"gate": "targ", "signal": s, "threshold": 0.2} for s in ("margin", "entropy")),
    {"gate": "targ", "signal": "variance", "samples": 4, "threshold": 0.3, "draft_tokens": 12},
    {"gate": "flare"},
    {"gate": "flare", "threshold": 0.3, "top_k": 2},
    {"gate": "dragin"},
    {"gate": "dragin", "threshold": 0.2},
    {"gate": "seakr", "samples": 3, "draft_tokens": 12},
    {"gate": "seakr", "samples": 4, "draft_tokens": 8, "threshold": -20.0},
    {"gate": "always", "top_k": 3, "mode": "dense"},
    {"gate": "always", "mode": "lexical"},
    {"gate": "always", "filter": {"lang": "de"}},
    {"gate": "always", "filter": {"lang": "none of them"}},
    {"gate": "never"},
    {"gate": "random", "rate": 0.5},
    {"gate": "random", "rate": 1.0},
    {"gate": "never", "documents": ["notes-1", "notes-2"]},
    {"gate": "entropy", "documents": ["notes-1", "not there"], "threshold": 0.01},
    {"gate": "never", "documents": ["notes-3"], "summary": "written"},
    {"gate": "always", "instruction": "Read this first."},
    collection=COLLECTION,
)
STRATEGIES = several(
    "diffadapt",
    {},
    *({"strategy": s} for s in ("easy", "normal", "hard", "shuffled")),
    *({"probe": f"large-{p}"} for p in ("paper", "strict-easy", "oracle")),
    {"labels": "strict_easy", "min_confidence": 0.0},
    {"labels": "oracle", "min_confidence": 0.9},
    {"bonus": {"hard": 50.0}},
    {"bonus": {"easy": 50.0}, "easy": {"temperature": 0.3, "top_p": 0.9, "share": 0.5}},
    {"strategy": "normal", "normal": {"words": "Let us see."}},
    {"strategy": "shuffled", "mix": {"easy": 1.0, "normal": 0.0, "hard": 2.0}},
    {"strategy": "oracle", "answer": "42"},
)
FORCED: tuple[Body, ...] = (
    {"name": "forced_answer"},
    {"name": "forced_answer", "words": " So it is", "tokens": 4, "until": ".", "temperature": 0.0},
    {"name": "forced_answer", "words": "\nAnswer: {", "tokens": 6, "until": "}", "temperature": 1.0},
    {"name": "forced_answer", "tokens": 2},
)
TRUNCATIONS: tuple[Body, ...] = (
    {"name": "top_w"},
    *({"name": "top_w", "potential": p, "metric": m} for p, m in (("nearest", "chord"), ("knn", "cosine"))),
    {"name": "top_w", "geometry_scale": 0.0, "pool": 64},
    {"name": "top_w", "entropy_weight": 1.0, "mass_weight": 4.0, "warm_mass": 0.5, "iterations": 3},
    {"name": "top_w", "selection_temperature": 0.5, "geometry_scale": 1.0, "neighbours": 2, "potential": "knn"},
    *({"name": "top_p", "p": p} for p in (0.3, 0.9)),
    *({"name": "min_p", "p": p} for p in (0.02, 0.3)),
    *({"name": "typical", "p": p} for p in (0.5, 0.95)),
    *({"name": "eta", "epsilon": e} for e in (2e-4, 0.1)),
    *({"name": "epsilon", "epsilon": e} for e in (3e-4, 0.05)),
    *({"name": "top_n_sigma", "n": n} for n in (0.5, 2.0)),
    *({"name": "top_h", "alpha": a, "form": f} for a, f in product((0.2, 0.7), ("running", "renormalised"))),
)
ADAPTIVE: tuple[Body, ...] = (
    {"name": "adaptive_temperature"},
    {"name": "adaptive_temperature", "span": 0.3, "pivot": 0.1, "high": 1.0},
    {"name": "adaptive_temperature", "span": 0.0},
)
OTHERS: tuple[Body, ...] = (
    {"name": "entropy_judger", "samples": 3},
    {"name": "entropy_judger", "samples": 2, "temperature": 0.3},
    {"name": "inv_entropy", "perturbations": 2, "replications": 2, "answer_tokens": 12},
    {"name": "scr"},
    {"name": "entropy_prune"},
    {"name": "simplemem", "remember": False},
    {"name": "memgas", "remember": False, "filter": "none"},
    {"name": "safeharbor"},
    {"name": "adte", "labels": ["odd", "even"], "views": 4},
    {"name": "learned_route"},
    {"name": "bes", "iterations": 3, "tokens": 96, "expand": 2, "delimiter": " "},
    {"name": "c_ip", "predictor": "table"},
    {"name": "think_budget", "tokens": 8},
    {"name": "cascade", "threshold": 0.3, "quantile": 0.9},
)
WAYS = (
    Way("ead", EAD),
    Way("switch", SWITCHES),
    Way("l_rag", GATES, TAIL),
    Way("diffadapt", STRATEGIES),
    Way("forced_answer", FORCED, fields={"max_tokens": 14}),
    Way("truncation", TRUNCATIONS, RARE, {"temperature": 1.5}),
    Way("truncation", TRUNCATIONS, FREQUENT, {"temperature": 1.0, "top_k": 50, "top_p": 0.97, "min_p": 0.001}),
    Way("adaptive_temperature", ADAPTIVE, RARE, {"temperature": 1.2}),
    Way("others", OTHERS, fields={"max_tokens": 24}),
)
TOGETHER: tuple[list[Body], ...] = (
    [EAD[0], TRUNCATIONS[0]],
    [EAD[4], TRUNCATIONS[7], ADAPTIVE[1]],
    [EAD[10], GATES[1]],
    [EAD[0], GATES[3] | {"gate": "margin"}],
    [EAD[2], STRATEGIES[0] | {"probe": "small-paper"}],
    [EAD[2], FORCED[1]],
    [STRATEGIES[2], FORCED[1], EAD[15]],
    [STRATEGIES[0], GATES[18]],
    [GATES[24], SWITCHES[2], TRUNCATIONS[10]],
    [SWITCHES[8], FORCED[2]],
    [SWITCHES[2], ADAPTIVE[0]],
    [TRUNCATIONS[18], ADAPTIVE[1], STRATEGIES[0]],
)
