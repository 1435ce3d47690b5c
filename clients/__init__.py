"""Talking to a Waver server over HTTP: a thin client over the `openai` package, typed policies, a terminal chat."""

from waver.clients.client import AsyncWaver, PolicyInfo, TracedToken, Waver, WaverReport, has_report, report, trace
from waver.clients.policies import ead, random_switch, route

__all__ = [
    "AsyncWaver",
    "PolicyInfo",
    "TracedToken",
    "Waver",
    "WaverReport",
    "ead",
    "has_report",
    "random_switch",
    "report",
    "route",
    "trace",
]
