"""Keep prefix caches apart, so that how quickly one client is answered says nothing of another's prompts.

The salt belongs to the task that asks an engine, and to the tasks that it starts: whatever a policy asks for a request
is salted as the request is.
"""

from __future__ import annotations

from contextvars import ContextVar

_salt: ContextVar[str] = ContextVar("waver_cache_salt", default="")


def current_salt() -> str:
    """Return the salt of this task; prompts of one salt share what caches hold of them."""
    return _salt.get()


def set_salt(salt: str) -> None:
    """Set the salt of this task, and of those that it starts."""
    _salt.set(salt)
