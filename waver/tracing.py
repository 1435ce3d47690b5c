"""Record spans for whoever listens: nothing happens, and nothing is imported, until `listen` is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

Value = str | int | float | bool
"""Attributes hold names and numbers, never a text of a client."""


class Span(Protocol):
    """A piece of work that is being timed."""

    def note(self, name: str, value: Value) -> None:
        """Set an attribute."""

    def end(self, error: BaseException | None) -> None:
        """End the span; `error` is what ended the work, if it failed."""


class Tracer(Protocol):
    """A maker of spans. Their parent is the request that the running task works for."""

    def start(self, name: str, attributes: Mapping[str, Value]) -> Span: ...


class _Nothing:
    def note(self, name: str, value: Value) -> None: ...

    def end(self, error: BaseException | None) -> None: ...


NOTHING: Span = _Nothing()
"""A span that nobody records."""
_tracer: Tracer | None = None


def listen(tracer: Tracer | None) -> None:
    """Let a tracer make the spans of this process from now on; None: nobody."""
    global _tracer
    _tracer = tracer


@contextmanager
def span(name: str, attributes: Mapping[str, Value]) -> Iterator[Span]:
    """Time the work inside the context as a span. An early end of a generator or a cancelled task is no failure."""
    if _tracer is None:
        yield NOTHING
        return
    here = _tracer.start(name, attributes)
    try:
        yield here
    except Exception as error:
        here.end(error)
        raise
    except BaseException:
        here.note("waver.aborted", True)
        here.end(None)
        raise
    else:
        here.end(None)
