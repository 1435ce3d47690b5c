"""Run `waver chat`: chat in the terminal."""

from __future__ import annotations

import typer

from waver.cli.fill import filled
from waver.clients.options import ChatOptions


@filled(options=ChatOptions)
def chat(options: ChatOptions) -> None:
    """Chat in the terminal: colours show entropy, underlines show which engine wrote.

    In a pipe, the message is read from standard input, the answer goes to standard output, the report to standard
    error. A server that wants a key gets the one in WAVER_API_KEY.
    """
    from waver.clients.chat import chat as run

    raise typer.Exit(run(options))
