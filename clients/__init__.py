"""Talk to a Waver server over HTTP: a client over the `openai` package, typed policies, a terminal chat.

The public names are imported when they are first used, so that a light module such as `waver.clients.options` does not
load the `openai` package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from waver.clients.calls import AddedDocument, CollectionInfo, Count, Fact, Memory, Passage
    from waver.clients.client import AsyncWaver, PolicyInfo, TracedToken, Waver, WaverReport, has_report, report, trace
    from waver.clients.policies import ead, random_switch, route

__all__ = [
    "AddedDocument",
    "AsyncWaver",
    "CollectionInfo",
    "Count",
    "Fact",
    "Memory",
    "Passage",
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


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module in ("client", "calls", "policies"):
        found = getattr(import_module(f"{__name__}.{module}"), name, None)
        if found is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
