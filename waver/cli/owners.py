"""Options and work of commands on what belongs to a key and a user, in a configuration's folder."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from waver.cli.endings import in_sentences

if TYPE_CHECKING:
    from waver.retrieval.library import Library
    from waver.retrieval.memory.owned import OwnedStore
    from waver.server.config import Config

    Stores = TypeVar("Stores", bound=tuple[OwnedStore[Any], ...])

Id = TypeVar("Id")
Key = Annotated[str | None, typer.Option("--key", help="Name of the API key.", show_default="none")]


def with_stores(
    config: Path | None,
    key: str | None,
    user: str | None,
    make: Callable[[Config, Library], Stores],
    work: Callable[[Stores, str], Coroutine[Any, Any, None]],
) -> None:
    """Open stores and do work in them for an owner, whose name is handed on; errors are a sentence and status 1."""
    import asyncio

    from waver.policies.job import Caller
    from waver.retrieval.library import Library
    from waver.server.config import load_config

    with in_sentences(ValueError, OSError):
        configured = load_config(config)
        library = Library(configured.retrieval)
        stores = make(configured, library)
        try:
            asyncio.run(work(stores, Caller(key, user).owner))
        finally:
            for store in stores:
                store.close()
            library.close()


def read_export(file: Path, skipped: Callable[[dict[str, Any]], bool], read: Callable[[Any], Any]) -> list[Any]:
    """Read a file of JSON lines, without those that are `skipped`.

    Raises:
        ValueError: a line is no JSON, or `read` refuses it.
    """
    import json

    from waver.retrieval.base import BadDocument

    found = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                data = json.loads(line)
                if not isinstance(data, dict) or not skipped(data):
                    found.append(read(data))
            except (json.JSONDecodeError, BadDocument) as error:
                raise ValueError(f"{file}, line {number}: {error}") from None
    return found


async def forget_each(ids: Sequence[Id], forget: Callable[[Id], Coroutine[Any, Any, bool]], what: str) -> None:
    """Forget what has these ids, and end with status 1 if one of them has nothing."""
    missing = [each for each in ids if not await forget(each)]
    typer.echo(f"{len(ids) - len(missing)} forgotten")
    if missing:
        typer.echo(f"there is no {what} {', '.join(map(str, missing))}", err=True)
        raise typer.Exit(1)
