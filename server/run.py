"""Start a server: load the configuration, run uvicorn, and print the address."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn

from waver.server.config import Config, load_config
from waver.server.keys import configured_keys
from waver.server.logs import configure_logs
from waver.server.preflight import check_start
from waver.server.problems import ConfigError
from waver.server.reload import reload

if TYPE_CHECKING:
    from waver.server.runtime import Runtime

log = structlog.get_logger("waver")

FLUSH, CLOSE = 3, 10
"""Seconds, when the time for running requests is over: for their last words, and then for engines and collections. A
container's `stop_grace_period` has to be longer than `shutdown_grace` and both."""
TURN = 0.0001
"""Seconds after which a thread that waits for the interpreter's lock gets it (Python's default is fifty times that). A
step of an engine asks for it after each of its many operations: with 0.0005, a busy event loop makes that step wait for
up to 0.4 seconds, and with it every stream of the server."""


class Server(uvicorn.Server):
    """uvicorn's server, which prints its address once it listens, and ends within a deadline once it is told to stop.

    Args:
        runtime: whose answers are cut when their time is over.
    """

    loop: asyncio.AbstractEventLoop
    _reload: asyncio.Task[None]

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime
        self.addresses: list[tuple[str, int]] = []
        """Hosts and ports that it listens on, or did: known from when it listens, also after it has stopped."""
        self.owns_process = False
        """True if the process ends with the server, whatever still runs in it: threads cannot be stopped. It then says
        what it does when it is told to stop."""

    async def startup(self, sockets: Any = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.owns_process and hasattr(signal, "SIGHUP"):
            self.loop.add_signal_handler(signal.SIGHUP, self._hang_up, sys.stderr.isatty())
        for server in self.servers:
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                self.addresses.append((host, port))
                say(f"Waver listens on http://{f'[{host}]' if ':' in host else host}:{port}")

    def _hang_up(self, had_terminal: bool) -> None:
        """Read the configuration again, or stop where the signal comes because the terminal was closed."""
        if had_terminal and not sys.stderr.isatty():
            self.should_exit = True
        elif not self._runtime.reloading.locked():
            self._reload = self.loop.create_task(self._read_again())

    async def _read_again(self) -> None:
        with suppress(ConfigError):  # logged
            await reload(self._runtime)

    async def shutdown(self, sockets: Any = None) -> None:
        grace = self._runtime.config.server.shutdown_grace
        asyncio.get_running_loop().call_later(grace, self._runtime.cut)
        if self.owns_process:
            last = threading.Timer(grace + FLUSH + CLOSE, end_process)
            last.daemon = True
            last.start()
        if self.owns_process and not self._runtime.failure:
            running = self._runtime.admission.running + self._runtime.admission.waiting
            waits = f", gives {running} requests up to {grace} s (Ctrl-C again: no longer)" if running else ""
            say(f"Waver stops{waits}.")
        await super().shutdown(sockets)


def say(text: str) -> None:
    """Tell the person who started the server something, on standard error."""
    print(text, file=sys.stderr, flush=True)


def end_process() -> None:
    """Exit the process at once. What was acknowledged is on disk, and vLLM's processes end with this one."""
    log.error("the server does not end by itself, and is ended")
    os._exit(1)


def make_server(config: Config, on_loaded: Callable[[], None] = lambda: None) -> Server:
    """Make the server of a configuration, not yet running; it stops if its engines cannot be loaded.

    Args:
        on_loaded: called once they are, before the first request.

    Raises:
        ValueError: it would be open to others without a key, or could not start for another reason that can be told
            before its libraries and models are loaded.
    """
    check_start(config)
    # These bring torch and transformers, which takes seconds.
    from waver.server.app import create_app
    from waver.server.connections import Connections, connection_limits

    app = create_app(config, on_failure=lambda: setattr(server, "should_exit", True), on_loaded=on_loaded)
    most, backlog = connection_limits(config.server.max_connections)
    settings = uvicorn.Config(
        app,
        host=config.server.host,
        port=config.server.port,
        http=Connections(most, config.server.header_timeout, config.server.write_timeout).protocol,
        ws="none",
        backlog=backlog,
        timeout_keep_alive=config.server.idle_timeout,  # type: ignore[arg-type]  # only ever a delay
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=config.server.shutdown_grace + FLUSH,
    )
    server = Server(settings, app.state.runtime)
    return server


def serve(config_path: str | Path | None = None, **flags: Any) -> int:
    """Run a server until it is stopped. `flags` override the configuration's `server` section; None counts as absent.

    Returns:
        The exit status: 0, 1 with a sentence on standard error if it could not start, or 130 if it was interrupted
        before it could.
    """

    def loaded() -> None:
        freeze_garbage_collector()
        say("Waver is ready: open the address in a browser, or run `waver chat` in another terminal. Ctrl-C stops it.")

    configure_logs()
    given = {key: value for key, value in flags.items() if value is not None}
    try:
        config = load_config(config_path, {"server": given} if given else None)
        configure_logs(form=config.server.log_format)
        check_start(config)
        say(f"Waver loads its libraries and {', '.join(config.engines)}.")
        server = make_server(config, on_loaded=loaded)
    except ValueError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("Goodbye.")
        return 130
    server.owns_process = True
    sys.setswitchinterval(TURN)
    # uvicorn lets running requests end on Ctrl-C, and then raises it again: here it is how a server is meant to end.
    with suppress(KeyboardInterrupt):
        server.run()
    # What was kept from the collector would be reported as leaked by the libraries that made it.
    gc.unfreeze()
    failure = server.config.app.state.runtime.failure  # type: ignore[union-attr]
    if failure:
        say(failure)
    elif server.started:
        say("Goodbye.")
    return 1 if failure or not server.started else 0


def freeze_garbage_collector() -> None:
    """Exclude all present objects from garbage collection: scanning the libraries and models would stall every stream.
    For processes that only run a server."""
    gc.collect()
    gc.freeze()


@contextmanager
def serving(config_path: str | Path | None = None) -> Iterator[tuple[str, str | None]]:
    """Run a server in a thread, on a free port of 127.0.0.1, while the context lasts. Yields, once its engines are
    warm, its address (with /v1) and a key if it needs one. It logs warnings only.

    Raises:
        ValueError: it could not start; the message is for the user.
    """
    config = load_config(config_path, {"server": {"host": "127.0.0.1", "port": 0}})
    server = make_server(config)
    configure_logs(logging.WARNING)
    thread = threading.Thread(target=server.run, name="server", daemon=True)
    thread.start()
    runtime = server.config.app.state.runtime  # type: ignore[union-attr]
    try:
        while not (server.started and runtime.ready):
            if runtime.failure or not thread.is_alive():
                raise ValueError(runtime.failure or "The server could not start.")
            time.sleep(0.05)
        port = server.addresses[0][1]
        keys = configured_keys(config.server)
        yield f"http://127.0.0.1:{port}/v1", keys[0].secret if keys else None
    finally:
        server.should_exit = True
        thread.join(config.server.shutdown_grace + 30)
