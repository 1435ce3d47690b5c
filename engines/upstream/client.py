"""Send requests to an upstream: a bounded pool of connections, the key, time limits, and retries."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import httpx

from waver.engines.base import EngineError, reason
from waver.engines.config import UpstreamConfig
from waver.engines.upstream.health import HealthCheck
from waver.engines.upstream.limiter import ConcurrencyLimiter
from waver.engines.upstream.protocol import Protocol, Retryable, beginning, lines

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds between two tries: doubled each time, less a random part of up to a half, so that not all clients return at
once."""
PATIENCE = 10.0
"""Seconds within which a request that found nobody is sent again; after a longer `Retry-After` it is the client that
should. It is less than the server's `keepalive`, up to which an answer's status may wait for its first token."""
DRAIN = 0.2
"""Seconds that an upstream is given to end a stream after its last token."""


class UpstreamClient:
    """Sends requests to one upstream.

    Raises:
        ValueError: the key or the certificates that the configuration names are not there.
    """

    def __init__(self, name: str, config: UpstreamConfig) -> None:
        self.config = config
        self.url = config.base_url.rstrip("/")
        self.who = f"the upstream {name!r}"
        self.health = HealthCheck(self._is_up, self._lost, config.heartbeat_interval)
        self.closed = False
        self._headers = {"accept-encoding": "identity", **config.headers}
        secrets = [value for value in config.headers.values() if len(value) >= 8]
        if (key := config.key()) is not None:
            self._headers["authorization"] = f"Bearer {key}"
            secrets.append(key)
        self.protocol = Protocol(self.who, secrets)
        self._verify: ssl.SSLContext | bool = config.verify
        if config.verify and config.ca_file is not None:
            try:
                self._verify = ssl.create_default_context(cafile=config.ca_file)
            except OSError as error:  # ssl.SSLError is one
                raise ValueError(f"the certificates in {config.ca_file} cannot be read: {error}") from error
        self._home: asyncio.AbstractEventLoop | None = None
        self._client: httpx.AsyncClient | None = None
        self._limiter: ConcurrencyLimiter
        self._limits: dict[asyncio.Timeout, float] = {}
        """The waits for the upstream, and when each began (the loop's clock)."""

    def options(self) -> dict[str, Any]:
        """Make the options for an httpx client. Time limits other than for connecting are kept here, as they hold until
        a token."""
        return {
            "headers": self._headers,
            "verify": self._verify,
            "timeout": httpx.Timeout(None, connect=self.config.connect_timeout),
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=self.config.max_connections),
        }

    async def answer(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Send a request and yield its one answer.

        Raises:
            Unsupported, EngineError: there is none.
        """
        async with aclosing(self._send(body, begun=True)) as answer:
            yield await anext(answer)

    async def stream(self, body: dict[str, Any], begun: bool) -> AsyncGenerator[dict[str, Any], None]:
        """Stream the choices of a completion, without empty ones. Closing the generator closes the connection at once.
        `begun`: the answer has tokens already. A body with `messages` is a chat's.

        Raises:
            Unsupported, EngineError: there is no answer, or it breaks off.
        """
        async with aclosing(self._send(body, begun)) as answer:
            async for choice in answer:
                yield choice

    async def _send(self, body: dict[str, Any], begun: bool) -> AsyncGenerator[dict[str, Any], None]:
        """Send a request, and send it again on failure as long as nothing has come back."""
        pool = self._pool()
        async with self._limiter.admitted(begun):
            attempt, received = 0, False
            now = asyncio.get_running_loop().time
            until = now() + PATIENCE
            while True:
                try:
                    async with aclosing(self._send_once(pool, body)) as answer:
                        async for item in answer:
                            received = True
                            yield item
                    return
                except httpx.TransportError as error:
                    again = Retryable(EngineError(f"{self.who} cannot be reached", f"{self.url}: {reason(error)}"))
                except Retryable as refusal:
                    again = refusal
                if self.closed:
                    raise self._closed_error()
                if received:
                    self.health.check_now()
                    raise EngineError(f"the connection to {self.who} broke off in the middle of an answer")
                pause = max(again.seconds, _pause(attempt))
                if attempt >= (self.config.retries if self.health.alive else 0) or now() + pause > until:
                    if again.unavailable:
                        self.health.check_now()
                    raise again.error
                attempt += 1
                await asyncio.sleep(pause)

    async def _send_once(self, pool: httpx.AsyncClient, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        if self.closed:
            raise self._closed_error()
        now = asyncio.get_running_loop().time
        path = "chat/completions" if "messages" in body else "completions"
        request = pool.build_request("POST", f"{self.url}/{path}", json=body)
        until = now() + self.config.first_token_timeout
        response = await self._within(pool.send(request, stream=True), until)
        try:
            if response.status_code != 200:
                content = await self._within(beginning(response), until)
                raise self.protocol.failure(response, content)
            if not body.get("stream"):
                yield self.protocol.object(await self._within(response.aread(), until))
                return
            kind = response.headers.get("content-type", "nothing").split(";")[0]
            if kind != "text/event-stream":
                raise EngineError(f"{self.who} answered with something else than a stream", kind[:60])
            ended = False
            async with aclosing(lines(response)) as arriving:
                while (line := await self._within(anext(arriving, None), until)) is not None:
                    event = self.protocol.event(line)
                    if event is None:
                        await self._finish_stream(arriving)
                        break
                    for choice in event:
                        ended = ended or choice.get("finish_reason") is not None
                        yield choice
                        until = now() + self.config.token_timeout
            if not ended:
                raise EngineError(f"{self.who} ended its answer in the middle")
        finally:
            await response.aclose()

    async def _finish_stream(self, lines: AsyncGenerator[bytes, None]) -> None:
        """Read what follows the end of a stream, so that the connection can be used again."""
        with suppress(EngineError, httpx.TransportError):
            while await self._within(anext(lines, None), asyncio.get_running_loop().time() + DRAIN) is not None:
                pass

    async def _within(self, work: Coroutine[Any, Any, T], until: float) -> T:
        """Await something until a time of the event loop's clock.

        Raises:
            EngineError: it took too long, or the engine was closed meanwhile.
        """
        limit = asyncio.timeout_at(until)
        self._limits[limit] = asyncio.get_running_loop().time()
        try:
            async with limit:
                return await work
        except TimeoutError:
            if self.closed:
                raise self._closed_error() from None
            self.health.check_now()
            raise EngineError(f"{self.who} said nothing for too long") from None
        finally:
            self._limits.pop(limit, None)

    def _pool(self) -> httpx.AsyncClient:
        """Return the connections and the limiter of this event loop; another loop gets new ones."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._home is not loop:
            self._home, self._client = loop, httpx.AsyncClient(**self.options())
            self._limiter = ConcurrencyLimiter(self.config.max_connections)
            self.health.start()
        return self._client

    def watch(self) -> None:
        """Check from now on whether the upstream answers, also where no request goes there."""
        self._pool()

    async def _is_up(self) -> bool:
        """Ask whether the upstream answers, with whatever status below 500."""
        try:
            async with asyncio.timeout(self.config.heartbeat_timeout):
                return (await self._pool().get(f"{self.url}/models")).status_code < 500
        except (httpx.HTTPError, TimeoutError):
            return False

    def _lost(self, since: float) -> None:
        """End the waits that began before a time of the loop's clock: the upstream has been down from then on."""
        for limit, began in self._limits.items():
            if began <= since and not limit.expired():
                limit.reschedule(0)

    def _closed_error(self) -> EngineError:
        return EngineError(f"{self.who} was closed")

    async def aclose(self) -> None:
        self.closed = True
        await self.health.aclose()
        for limit in self._limits:
            limit.reschedule(0)
        if self._client is not None and self._home is asyncio.get_running_loop():
            await self._client.aclose()


def _pause(attempt: int) -> float:
    return float(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * (1 - random.random() / 2))
