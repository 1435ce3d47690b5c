"""End commands as users expect: errors are a sentence and status 1, Ctrl-C is status 130.

docs/commands.md lists every status.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from waver.extras import how_to_install_package


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
def importing(extra: str | None = None) -> Iterator[None]:
    """End with the command that installs a package that is missing, which is one of `extra` where its own is unknown.

    Raises:
        ModuleNotFoundError: it is one of Waver's own, or of an extra that is not known.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = _missing(error)
        command = None if package == "waver" else how_to_install_package(package, extra)
        if command is None:
            raise
        typer.echo(f"{package} is missing: {command}", err=True)
        raise typer.Exit(1) from None


def _missing(error: BaseException | None) -> str:
    """Return the package that an error is about, or that the error is which it came from."""
    while error is not None:
        if isinstance(error, ImportError) and error.name:
            return error.name.split(".")[0]
        error = error.__cause__ or error.__context__
    return "waver"
