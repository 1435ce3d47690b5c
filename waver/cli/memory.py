"""Run `waver memory`: show, export, import and forget what was remembered, in the folder of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from waver.cli.fill import config_option
from waver.cli.owners import Key, forget_each, read_export, with_store

if TYPE_CHECKING:
    from waver.retrieval.library import Library
    from waver.retrieval.memory.memories import Memories, OwnMemories
    from waver.retrieval.memory.rows import Span
    from waver.server.config import Config as Configured

Config = Annotated[Path | None, config_option("A YAML file; its `state` says where memories are.")]
User = Annotated[str | None, typer.Option("--user", help="The `user` of the requests.", show_default="none")]
After = Annotated[str | None, typer.Option(help="Only what was remembered from this moment on (ISO 8601).")]
Before = Annotated[str | None, typer.Option(help="Only what was remembered before this moment (ISO 8601).")]

memory = typer.Typer(
    no_args_is_help=True,
    help="Show, export, import and forget what `simplemem` remembers of a key and a user. A server may run meanwhile.",
)


@memory.command()
def show(
    question: Annotated[
        str | None, typer.Argument(help="Show what it recalls.", show_default="all memories in short")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Most memories for a question.")] = 5,
    key: Key = None,
    user: User = None,
    config: Config = None,
) -> None:
    """List memories, one a line: id, day, and what it says."""

    async def work(own: OwnMemories) -> None:
        from waver.policies.remember.recall import best, by_words

        if question is None:
            for each in await own.page():
                note = "" if each.archived_by is None else f"  (archived by {each.archived_by})"
                typer.echo(f"{each.id}  {_day(each.unit.time)}  {each.unit.content}{note}")
            if waiting := await own.waiting():
                typer.echo(f"{len(waiting)} turns are kept until the next window has been read", err=True)
            return
        index = await own.index()
        if index.memories:
            vector = await own.question(question)
            for found in best(index, question, vector, by_words(question), count):
                typer.echo(f"{found.memory.id}  {found.score:.3f}  {found.line}")

    _run(config, key, user, work)


@memory.command()
def export(
    key: Key = None,
    user: User = None,
    after: After = None,
    before: Before = None,
    config: Config = None,
) -> None:
    """Print everything that is kept as JSON lines: memories, and turns that wait."""
    span = _span(after, before)

    async def work(own: OwnMemories) -> None:
        from waver.retrieval.memory.rows import as_line

        for each in [each.as_dict() for each in await own.page(span)] + await own.waiting(span):
            typer.echo(as_line(each), nl=False)

    _run(config, key, user, work)


@memory.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="JSON lines, as `waver memory export` writes them.")],
    key: Key = None,
    user: User = None,
    config: Config = None,
) -> None:
    """Take memories in; those whose words are there already are left out, and so are turns, which the conversations
    themselves bring again."""

    async def work(own: OwnMemories) -> None:
        from waver.retrieval.memory.unit import read_unit

        units = read_export(file, lambda data: data.get("object") == "turn", read_unit)
        made = await own.add(units)
        typer.echo(f"{len(made)} remembered, {len(units) - len(made)} known already")

    _run(config, key, user, work)


@memory.command()
def forget(
    ids: Annotated[list[int] | None, typer.Argument(help="Memories to forget.", show_default="none")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Forget all of this key and user.")] = False,
    key: Key = None,
    user: User = None,
    after: After = None,
    before: Before = None,
    config: Config = None,
) -> None:
    """Erase memories from the file and its journal, and the abstracts that were made of them."""
    span = _span(after, before)
    if (bool(ids) + everything + bool(after or before)) != 1:
        raise typer.BadParameter("give ids, or --all, or --after and --before.")

    async def work(own: OwnMemories) -> None:
        if not ids:
            typer.echo(f"{await own.erase(span)} forgotten")
            return
        await forget_each(ids, own.forget, "memory")

    _run(config, key, user, work)


def _run(
    config: Path | None, key: str | None, user: str | None, work: Callable[[OwnMemories], Coroutine[Any, Any, None]]
) -> None:
    """Do work with the memories of a key and a user."""

    def opened(configured: Configured, library: Library) -> Memories:
        from waver.retrieval.memory.memories import Memories

        return Memories(Path(configured.state), configured.memory, library.embedder)

    with_store(config, key, user, opened, lambda every, owner: work(every.of(owner)))


def _span(after: str | None, before: str | None) -> Span:
    from waver.retrieval.memory.rows import Span
    from waver.retrieval.memory.unit import in_utc

    try:
        return Span(*(None if each is None else in_utc(datetime.fromisoformat(each)).timestamp()
                      for each in (after, before)))  # fmt: skip
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _day(time: datetime | None) -> str:
    return "          " if time is None else f"{time:%Y-%m-%d}"
