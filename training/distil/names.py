"""Name the choices of DistIL, without anything heavy to import."""

from __future__ import annotations

from typing import Literal

DivergenceName = Literal["forward", "reverse", "js"]
EXPERTS = ("engine", "samples", "feedback")
FUTURE_COSTS = ("kl", "ce")
AGGREGATIONS = ("token-mean", "seq-mean-token-sum")
