"""Run `waver facts`: add, show, export, import and forget facts that correct a model, in a configuration's folder."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from waver.cli.fill import config_option
from waver.cli.owners import Key, forget_each, read_export, with_stores

if TYPE_CHECKING:
    from waver.retrieval.library import Library
    from waver.retrieval.memory.facts import Facts, OwnFacts
    from waver.server.config import Config as Configured

Config = Annotated[Path | None, config_option("A YAML file; its `state` says where facts are.")]
User = Annotated[str | None, typer.Option("--user", help="The `user` of the requests.", show_default="all of the key")]
Replaced = Annotated[bool, typer.Option("--history", help="Also facts that were replaced.")]

facts = typer.Typer(
    no_args_is_help=True,
    help="Correct what a model remembers, for the policy `scr`: facts of a key and a user. A server may run meanwhile.",
)


@facts.command()
def add(
    text: Annotated[str, typer.Argument(help="A sentence that can be understood alone.")],
    subject: Annotated[str | None, typer.Option(help="What it is about.")] = None,
    relation: Annotated[str | None, typer.Option(help="What it says of that, in a word or two.")] = None,
    key: Key = None,
    user: User = None,
    config: Config = None,
) -> None:
    """Add a fact. With --subject and --relation it replaces the one that holds for these."""

    async def work(own: OwnFacts, _: Facts) -> None:
        from waver.retrieval.memory.facts import Statement

        (made,) = await own.add([Statement(text=text, subject=subject, relation=relation)])
        typer.echo(f"fact {made.id}")

    _run(config, key, user, work)


@facts.command()
def show(
    question: Annotated[
        str | None, typer.Argument(help="Show the candidates for it.", show_default="all facts")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Most candidates for a question.")] = 5,
    history: Replaced = False,
    key: Key = None,
    user: User = None,
    config: Config = None,
) -> None:
    """List facts, one a line: id, and what it says."""

    async def work(own: OwnFacts, every: Facts) -> None:
        if question is not None:
            for fact, cosine in await every.search([own.name], question, count):
                typer.echo(f"{fact.id}  {cosine:.3f}  {fact.text}")
            return
        for fact in await own.listed(history=history):
            typer.echo(f"{fact.id}  {fact.text}{'' if fact.ended is None else '  (replaced)'}")

    _run(config, key, user, work)


@facts.command()
def export(history: Replaced = False, key: Key = None, user: User = None, config: Config = None) -> None:
    """Print facts as JSON lines."""

    async def work(own: OwnFacts, _: Facts) -> None:
        from waver.retrieval.memory.rows import as_line

        for fact in await own.listed(history=history):
            typer.echo(as_line(fact.as_dict()), nl=False)

    _run(config, key, user, work)


@facts.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help='JSON lines: {"text": …, "subject": …, "relation": …}.')],
    key: Key = None,
    user: User = None,
    config: Config = None,
) -> None:
    """Add the facts of a file, in its order; those that are said to have ended are left out."""

    async def work(own: OwnFacts, _: Facts) -> None:
        from waver.retrieval.memory.facts import read_statement

        statements = read_export(file, lambda data: bool(data.get("ended")), read_statement)
        typer.echo(f"{len(await own.add(statements))} facts")

    _run(config, key, user, work)


@facts.command()
def forget(
    ids: Annotated[list[int] | None, typer.Argument(help="Facts to forget.", show_default="none")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Forget all of this key and user.")] = False,
    key: Key = None,
    user: User = None,
    config: Config = None,
) -> None:
    """Erase facts from the file and its journal."""
    if bool(ids) == everything:
        raise typer.BadParameter("give ids, or --all.")

    async def work(own: OwnFacts, _: Facts) -> None:
        if not ids:
            typer.echo(f"{await own.erase()} forgotten")
            return
        await forget_each(ids, own.forget, "fact")

    _run(config, key, user, work)


def _run(
    config: Path | None, key: str | None, user: str | None, work: Callable[[OwnFacts, Facts], Coroutine[Any, Any, None]]
) -> None:
    """Do work with the facts of a key and a user."""

    def opened(configured: Configured, library: Library) -> tuple[Facts]:
        from waver.retrieval.memory.facts import Facts

        limits = configured.memory
        return (Facts(Path(configured.state), limits.max_facts, limits.lock_seconds, library.embedder),)

    with_stores(config, key, user, opened, lambda stores, owner: work(stores[0].of(owner), stores[0]))
