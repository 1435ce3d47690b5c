"""Run `waver keys`: add, change, list, revoke and rotate API keys, and say to whom collections belong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from waver.cli.endings import in_sentences
from waver.cli.fill import config_option, pairs

if TYPE_CHECKING:
    from waver.server.tenants.database import Database
    from waver.server.tenants.stored_keys import StoredKey, StoredKeys

Config = Annotated[Path | None, config_option("A YAML file; its `keys` and `state` say where the database is.")]
Key = Annotated[str, typer.Argument(help="The key's name: letters, digits, '_', '.' and '-'.")]
ACTOR = "command line"
NOTHING, ANYTHING = "none", "any"
"""Values of lists that allow nothing and everything; a limit that is `none` does not bind."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

keys = typer.Typer(
    no_args_is_help=True,
    help="Manage API keys. Servers on the same database see every change within a second; docs/keys.md says what keys "
    "may do.",
)


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of a grant; it gets a dictionary of those that were given."""
    import inspect
    from functools import wraps
    from inspect import Parameter

    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])
        for name, (kind, option) in OPTIONS.items()
    ]
    own = [each for each in inspect.signature(command, eval_str=True).parameters.values() if each.name != "given"]

    @wraps(command)
    def run(**values: Any) -> None:
        given = {name: value for name in OPTIONS if (value := values.pop(name)) is not None}
        with in_sentences(ValueError):
            command(**values, given={name: READERS.get(name, _plain)(value) for name, value in given.items()})

    parameters = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in (*own, *options)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _option(words: str, *flags: str) -> Any:
    return typer.Option(*flags, help=words, show_default=False)


_NAMES, _COUNT = list[str] | None, str | None
OPTIONS: dict[str, tuple[Any, Any]] = {
    "role": (str | None, _option("inference (default), admin, or monitor: /metrics alone.")),
    "expires": (str | None, _option("When it ends: 30d, 12h, or a date as 2027-01-31; 'none': never.")),
    "models": (
        _NAMES,
        _option("Engine, embedder or reranker that it may use; repeatable. 'none' or 'any'.", "--model"),
    ),
    "presets": (_NAMES, _option("Preset that it may use, whatever its engines; repeatable.", "--preset")),
    "policies": (_NAMES, _option("Policy that its requests may list; repeatable.", "--policy")),
    "collections": (
        _NAMES,
        _option("Collection of the server's own: NAME=read or NAME=write; '*' is all.", "--collection"),
    ),
    "max_collections": (_COUNT, _option("Collections that it may own.")),
    "requests_per_minute": (_COUNT, _option("Requests in a minute.", "--rpm")),
    "requests_per_day": (_COUNT, _option("Requests in a day.", "--rpd")),
    "tokens_per_minute": (_COUNT, _option("Tokens of prompts and answers in a minute.", "--tpm")),
    "tokens_per_day": (_COUNT, _option("Tokens in a day.", "--tpd")),
    "concurrent_requests": (_COUNT, _option("Requests at a time.", "--concurrent")),
    "max_n": (_COUNT, _option("Most choices of a request.")),
    "max_tokens": (_COUNT, _option("Most tokens of an answer.")),
    "max_extra_tokens": (_COUNT, _option("Most tokens that policies may draw besides answers.")),
    "weight": (float | None, _option("Share of the server where requests wait; 1 unless given.")),
    "cut_answers": (
        bool | None,
        _option("Where the budget ends: cut answers short, or refuse them.", "--cut-answers/--refuse-answers"),
    ),
}
"""Options by the field of a grant that they set."""


def _plain(value: Any) -> Any:
    return None if value == NOTHING else value


def _names(values: Sequence[str]) -> list[str] | None:
    if list(values) == [ANYTHING]:
        return None
    return [] if list(values) == [NOTHING] else list(values)


def _collections(values: Sequence[str]) -> dict[str, str]:
    return {} if list(values) == [NOTHING] else dict(pairs(values, "a collection is given as NAME=read or NAME=write."))


def _moment(value: str) -> Any:
    """Read a time from now or a date.

    Raises:
        ValueError: it is neither.
    """
    from datetime import UTC, datetime, timedelta

    if value == NOTHING:
        return None
    if value[-1:] in UNITS and value[:-1].isdecimal():
        return datetime.now(UTC) + timedelta(seconds=int(value[:-1]) * UNITS[value[-1]])
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(f"--expires: '{value}' is neither a time as 30d or 12h, nor a date as 2027-01-31.") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


READERS: dict[str, Callable[[Any], Any]] = {
    "expires": _moment, "models": _names, "presets": _names, "policies": _names, "collections": _collections,
}  # fmt: skip


@keys.command()
@_settings
def add(name: Key, given: dict[str, Any], config: Config = None) -> None:
    """Add a key and print it, once: the database holds a digest of it only."""
    from waver.server.tenants.grant import Grant

    with _stored(config) as stored:
        _, secret = stored.add(name, Grant.model_validate(given), ACTOR)
        _tell(name, secret)


@keys.command()
@_settings
def change(name: Key, given: dict[str, Any], config: Config = None) -> None:
    """Change what a key may do. What is not given stays; a limit of 'none' and a list of 'any' do not bind."""
    with _stored(config) as stored:
        typer.echo(_line(stored.change(name, given, ACTOR)))


@keys.command("list")
def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines, with everything that a key may do.")] = False,
    config: Config = None,
) -> None:
    """List the stored keys: name, last letters, role, state, limits. Keys themselves are not stored."""
    import json

    with _stored(config) as stored:
        for key in stored.all():
            typer.echo(json.dumps(key.as_dict()) if as_json else _line(key))


@keys.command()
def revoke(name: Key, config: Config = None) -> None:
    """End a key for good. What it owns stays, and its name is given to no other key."""
    with _stored(config) as stored:
        stored.revoke(name, ACTOR)
        typer.echo(f"{name} is revoked")


@keys.command()
def rotate(
    name: Key,
    grace: Annotated[float, typer.Option(min=0, help="Seconds for which the old key is still good.")] = 0.0,
    config: Config = None,
) -> None:
    """Replace a key by a new one and print that, once; name, rights and possessions stay."""
    with _stored(config) as stored:
        _, secret = stored.rotate(name, ACTOR, grace)
        _tell(name, secret)


@keys.command()
def give(
    collection: Annotated[str, typer.Argument(help="The collection.")],
    owner: Annotated[str, typer.Argument(help="The key's name; 'none': the server itself.")],
    config: Config = None,
) -> None:
    """Make a key the owner of a collection, such as one that was made before there were keys."""
    import asyncio

    from waver.server.tenants.owners import Owners

    with _database(config) as database:
        asyncio.run(Owners(database).give(collection, None if owner == NOTHING else owner, ACTOR))
        typer.echo(f"{collection} belongs to {'the server' if owner == NOTHING else owner}")


@keys.command()
def audit(
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Most entries.")] = 100, config: Config = None
) -> None:
    """Print the newest entries of the audit log as JSON lines: who changed keys and owners."""
    import json

    from waver.server.tenants.audit import entries

    with _database(config) as database:
        for entry in entries(database, count):
            typer.echo(json.dumps(entry))


@contextmanager
def _database(config: Path | None) -> Iterator[Database]:
    """Open the database of a configuration; errors are a sentence and status 1."""
    import logging

    from waver.server.config import load_config
    from waver.server.logs import configure_logs
    from waver.server.tenants.database import Database

    configure_logs(logging.WARNING)
    with in_sentences(ValueError, OSError):
        configured = load_config(config)
        database = Database(configured.keys.database, Path(configured.state))
        try:
            yield database
        finally:
            database.close()


@contextmanager
def _stored(config: Path | None) -> Iterator[StoredKeys]:
    from pydantic import ValidationError

    from waver.server.tenants.stored_keys import StoredKeys

    with _database(config) as database:
        try:
            yield StoredKeys(database)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def _tell(name: str, secret: str) -> None:
    """Print a key on standard output, and what it is beside it."""
    typer.echo(f"The key '{name}', shown this once:", err=True)
    typer.echo(secret)


def _line(key: StoredKey) -> str:
    import time

    ended = "revoked" if key.revoked else "valid" if key.valid(time.time()) else "expired"
    grant = key.grant.model_dump(mode="json", exclude_defaults=True, exclude={"role"})
    said = " ".join(f"{name}={_shown(value)}" for name, value in grant.items())
    return f"{key.name}  …{key.hint}  {key.grant.role}  {ended}  {said}".rstrip()


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}:{access}" for name, access in value.items()) or NOTHING
    return (",".join(value) or NOTHING) if isinstance(value, list) else str(value)
