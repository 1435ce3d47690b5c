"""End commands as users expect: errors are a sentence and status 1, Ctrl-C is status 130."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from waver.extras import how_to_install


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


@contextmanager
def importing(extra: str) -> Iterator[None]:
    """End with the command that installs an extra where one of its packages is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"{error.name} is missing: {how_to_install(extra)}") from None
