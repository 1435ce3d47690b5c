"""End commands as users expect: errors are a sentence and status 1, Ctrl-C is status 130."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def in_sentences(*kinds: type[Exception]) -> Iterator[None]:
    """Print exceptions of these kinds, whose messages are for users, and end."""
    try:
        yield
    except kinds as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
