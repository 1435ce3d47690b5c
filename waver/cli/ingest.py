"""Run `waver ingest`: add documents to a collection."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.fill import config_option, pairs


def ingest(
    path: Annotated[Path, typer.Argument(help="A file, or a folder of documents: docs/documents.md has the kinds.")],
    collection: Annotated[str, typer.Option("--collection", "-n", help="The collection; made if it is not there.")],
    config: Annotated[Path | None, config_option("A YAML file; its `retrieval` says where collections are.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="A server's address, with /v1: files go there.", show_default="no server")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", "-m", help="KEY=VALUE that all documents carry; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")] = False,
) -> None:
    """Bring documents into a collection, from which answers can be fetched when a model is unsure.

    A document is named by its path below PATH. What has not changed is left alone, and what cannot be read is skipped
    with the reason. Without a server, everything becomes searchable at once in the end; an ingestion that was stopped
    changes nothing, and goes on where it was when it is run again. A server that uses the same folder sees the result
    at once. With --base-url, a server that wants a key gets the one in WAVER_API_KEY.

    Exit status: 0 when all was taken in whole, 1 when nothing was, 3 when files were skipped or parts of them lost or
    guessed, each of which is said.
    """
    from waver.clients.ingest import Refused
    from waver.retrieval.base import RetrievalError

    carried = dict(pairs(metadata, "metadata is given as KEY=VALUE."))
    try:
        status = (
            _here(path, collection, config, carried, as_json)
            if base_url is None
            else _there(path, collection, base_url, carried, as_json)
        )
    except (RetrievalError, ValueError, Refused) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(status)


def _there(path: Path, collection: str, base_url: str, metadata: dict[str, str], as_json: bool) -> int:
    """Upload to a server; return the exit status."""
    import json
    import os

    from waver.clients.ingest import show, upload
    from waver.retrieval.ingest import files

    found = files(path)
    key = os.environ.get("WAVER_API_KEY")
    uploaded = upload(found, base_url, key, collection, json.dumps(metadata))
    return show(uploaded, len(found), collection, as_json)


def _here(path: Path, collection: str, config: Path | None, metadata: dict[str, str], as_json: bool) -> int:
    """Write into a local collection; return the exit status."""
    from waver.clients.ingest import show
    from waver.retrieval.base import NoCollection
    from waver.retrieval.ingest import files
    from waver.retrieval.ingest import ingest as take_in
    from waver.retrieval.library import Library
    from waver.server.config import load_config

    found = files(path)
    library = Library(load_config(config).retrieval)
    try:
        try:
            target = library.open(collection)
        except NoCollection:
            target = library.create(collection)
        return show(take_in(target, library.parsers, path, metadata), len(found), collection, as_json)
    finally:
        library.close()
