"""Build the `policy` field of a request: `extra_body={"policy": [ead(threshold=0.3)]}`.

`ead`, `l_rag` and every other name of a policy is a function of this module that takes its parameters by name, also for
a policy that a server has from a plug-in. `policies.pyi` tells type checkers and editors the parameters of those that
come with Waver; the server checks them all. Only the parameters that are given are sent, so the server's configuration
decides the rest. Entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


def policy(name: str, **parameters: Any) -> dict[str, Any]:
    """A policy with these parameters, as a request names it."""
    return {"name": name, **parameters}


def __getattr__(name: str) -> Callable[..., dict[str, Any]]:
    """The builder of the policy of that name."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(policy, name)
