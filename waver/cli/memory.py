"""Run `waver memory`: show, export, import and forget what was remembered, in the folder of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from waver.cli.fill import config_option
from waver.cli.owners import Key, forget_each, read_export, with_stores

if TYPE_CHECKING:
    from waver.retrieval.library import Library
    from waver.retrieval.memory.episodes import Episodes, OwnEpisodes
    from waver.retrieval.memory.memories import Memories, OwnMemories
    from waver.retrieval.memory.span import Span
    from waver.server.config import Config as Configured

Config = Annotated[Path | None, config_option("A YAML file; its `state` says where memories are.")]
User = Annotated[str | None, typer.Option("--user", help="The `user` of the requests.", show_default="none")]
After = Annotated[str | None, typer.Option(help="Only what was remembered from this moment on (ISO 8601).")]
Before = Annotated[str | None, typer.Option(help="Only what was remembered before this moment (ISO 8601).")]

memory = typer.Typer(
    no_args_is_help=True,
    help="Show, export, import and forget what `simplemem` and `memgas` remember of a key and a user. A server may run "
    "meanwhile.",
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
    """List memories, one a line: id, day, and what it says; and episodes, with an `e` in front of their id."""

    async def work(own: OwnMemories, whole: OwnEpisodes) -> None:
        from waver.policies.remember.memgas import MemGAS
        from waver.policies.remember.recall import best, by_words

        if question is None:
            for each in await own.page():
                note = "" if each.archived_by is None else f"  (archived by {each.archived_by})"
                typer.echo(f"{each.id}  {_day(each.unit.time)}  {each.unit.content}{note}")
            if waiting := await own.waiting():
                typer.echo(f"{len(waiting)} turns are kept until the next window has been read", err=True)
            for kept in await whole.page():
                typer.echo(f"e{kept.id}  {_day(kept.episode.time)}  {kept.episode.head}")
            if waiting := await whole.waiting():
                typer.echo(f"{len(waiting)} turns are kept until their conversation is idle", err=True)
            return
        index = await own.index()
        if index.memories:
            vector = await own.question(question)
            for found in best(index, question, vector, by_words(question), count):
                typer.echo(f"{found.memory.id}  {found.score:.3f}  {found.line}")
        episodes = await whole.index()
        if episodes.episodes:
            near, _ = MemGAS(episodes=min(count, 50)).best(episodes, await whole.question(question))
            for episode in near:
                typer.echo(f"e{episode.kept.id}  {episode.score:.3f}  {episode.kept.episode.head}")

    _run(config, key, user, work)


@memory.command()
def export(
    key: Key = None,
    user: User = None,
    after: After = None,
    before: Before = None,
    config: Config = None,
) -> None:
    """Print everything that is kept as JSON lines: memories, episodes, and turns that wait."""
    span = _span(after, before)

    async def work(own: OwnMemories, whole: OwnEpisodes) -> None:
        from waver.retrieval.memory.rows import as_line

        for each in [each.as_dict() for each in await own.page(span)] + await own.waiting(span):
            typer.echo(as_line(each), nl=False)
        for each in [each.as_dict() for each in await whole.page(span)] + await whole.waiting(span):
            typer.echo(as_line(each), nl=False)

    _run(config, key, user, work)


@memory.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="JSON lines, as `waver memory export` writes them.")],
    key: Key = None,
    user: User = None,
    config: Config = None,
) -> None:
    """Take memories and episodes in; those whose words are there already are left out, and so are turns, which the
    conversations themselves bring again."""

    async def work(own: OwnMemories, whole: OwnEpisodes) -> None:
        from waver.retrieval.memory.episode import Episode, read_episode
        from waver.retrieval.memory.episodes import Linking
        from waver.retrieval.memory.unit import read_unit

        def read(data: Any) -> Any:
            episode = isinstance(data, dict) and data.get("object") == "episode"
            return read_episode(data) if episode else read_unit(data)

        given = read_export(file, lambda data: data.get("object") == "turn", read)
        count = len(await own.add([each for each in given if not isinstance(each, Episode)]))
        count += len(await whole.add([each for each in given if isinstance(each, Episode)], Linking()))
        typer.echo(f"{count} remembered, {len(given) - count} known already")

    _run(config, key, user, work)


@memory.command()
def forget(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Memories to forget, and episodes (`e1`).", show_default="none")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Forget all of this key and user.")] = False,
    key: Key = None,
    user: User = None,
    after: After = None,
    before: Before = None,
    config: Config = None,
) -> None:
    """Erase memories and episodes from their files and journals, and the abstracts that were made of memories."""
    span = _span(after, before)
    if (bool(ids) + everything + bool(after or before)) != 1:
        raise typer.BadParameter("give ids, or --all, or --after and --before.")

    if any(not each.removeprefix("e").isdecimal() for each in ids or ()):
        raise typer.BadParameter("an id is a number, that of an episode with an e in front.")

    async def work(own: OwnMemories, whole: OwnEpisodes) -> None:
        if not ids:
            typer.echo(f"{await own.erase(span) + await whole.erase(span)} forgotten")
            return

        async def forget(each: str) -> bool:
            return await (whole.forget(int(each[1:])) if each.startswith("e") else own.forget(int(each)))

        await forget_each(ids, forget, "memory")

    _run(config, key, user, work)


def _run(
    config: Path | None,
    key: str | None,
    user: str | None,
    work: Callable[[OwnMemories, OwnEpisodes], Coroutine[Any, Any, None]],
) -> None:
    """Do work with the memories and the episodes of a key and a user."""

    def opened(configured: Configured, library: Library) -> tuple[Memories, Episodes]:
        from waver.retrieval.memory.episodes import Episodes
        from waver.retrieval.memory.memories import Memories

        folder = Path(configured.state)
        return (
            Memories(folder, configured.memory, library.embedder),
            Episodes(folder, configured.memory, library.embedder),
        )

    with_stores(config, key, user, opened, lambda stores, owner: work(stores[0].of(owner), stores[1].of(owner)))


def _span(after: str | None, before: str | None) -> Span:
    from waver.retrieval.memory.span import Span
    from waver.retrieval.memory.unit import in_utc

    try:
        return Span(*(None if each is None else in_utc(datetime.fromisoformat(each)).timestamp()
                      for each in (after, before)))  # fmt: skip
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _day(time: datetime | None) -> str:
    return "          " if time is None else f"{time:%Y-%m-%d}"
