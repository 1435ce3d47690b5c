"""Several servers of one model as one upstream: the one that holds a prompt's beginning, else the least loaded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from waver.engines.base import EngineError
from waver.engines.config import UpstreamConfig
from waver.engines.upstream.client import UpstreamClient

BLOCKS = {int: 64, str: 256}
"""Tokens, or characters where an upstream takes text, after which the beginning of a prompt is remembered again."""
MOST_BLOCKS = 256
REMEMBERED = 65_536
"""Beginnings that are remembered of all prompts together; the oldest are forgotten."""
SLACK = 1.25
"""The load, against the mean, up to which a replica is chosen for what it holds (consistent hashing with bounded loads,
arXiv 1608.01350)."""


class Prefixes:
    """The places to which beginnings of prompts were sent last: servers keep what they have computed for them."""

    def __init__(self) -> None:
        self._places: OrderedDict[int, int] = OrderedDict()

    def blocks(self, prompt: Sequence[int] | str) -> list[int]:
        """Return a hash of each beginning of a prompt, shortest first."""
        size = BLOCKS[str if isinstance(prompt, str) else int]
        parts = prompt if isinstance(prompt, str) else tuple(prompt)
        found, before = [], 0
        for end in range(size, min(len(parts), size * MOST_BLOCKS) + 1, size):
            before = hash((before, parts[end - size : end]))
            found.append(before)
        return found

    def find(self, blocks: Sequence[int]) -> int | None:
        """Return the place of the longest beginning that is known."""
        return next((self._places[block] for block in reversed(blocks) if block in self._places), None)

    def put(self, blocks: Sequence[int], place: int) -> None:
        """Remember where these beginnings are now."""
        for block in blocks:
            self._places[block] = place
            self._places.move_to_end(block)
        while len(self._places) > REMEMBERED:
            self._places.popitem(last=False)


class Replicas:
    """The servers of one model: `base_url` of the configuration, and its `replicas`.

    A request goes to the server that has read the longest part of its prompt, so that the next segment of an answer and
    the next turn of a conversation find their cache, unless that has more than its share of the load; then to the least
    loaded one that answers. Where it fails before its first token, another one is asked.

    Raises:
        ValueError: the key or the certificates that the configuration names are not there.
    """

    def __init__(self, name: str, config: UpstreamConfig) -> None:
        urls = (config.base_url, *config.replicas)
        # With others to ask, none is asked twice.
        each = config if len(urls) == 1 else config.model_copy(update={"retries": 0})
        self.clients = [UpstreamClient(name, each.model_copy(update={"base_url": url})) for url in urls]
        self.loads = [0] * len(urls)
        self._prefixes = Prefixes()

    @property
    def first(self) -> UpstreamClient:
        return self.clients[0]

    @property
    def who(self) -> str:
        return self.first.who

    @property
    def closed(self) -> bool:
        return self.first.closed

    @property
    def alive(self) -> bool:
        """Return whether one of them answers."""
        return any(client.health.alive for client in self.clients)

    async def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its one answer.

        Raises:
            Unsupported, EngineError: there is none.
        """
        async with aclosing(self._try(body, lambda client: client.answer(body))) as answer:
            return await anext(answer)

    async def stream(self, body: dict[str, Any], begun: bool) -> AsyncGenerator[dict[str, Any], None]:
        """Stream the choices of a completion, as `UpstreamClient.stream`.

        Raises:
            Unsupported, EngineError: there is no answer, or it breaks off.
        """
        async with aclosing(self._try(body, lambda client: client.stream(body, begun))) as answer:
            async for choice in answer:
                yield choice

    async def _try(self, body: dict[str, Any], send: Any) -> AsyncGenerator[dict[str, Any], None]:
        blocks = []
        if len(self.clients) > 1:
            blocks = self._prefixes.blocks(body.get("prompt", ""))
            for client in self.clients:
                client.watch()
        left = set(range(len(self.clients)))
        while True:
            place = self._choose(blocks, left)
            left.discard(place)
            self._prefixes.put(blocks, place)
            received = False
            self.loads[place] += 1
            try:
                async with aclosing(send(self.clients[place])) as answer:
                    async for item in answer:
                        received = True
                        yield item
                return
            except EngineError:
                if received or not left or self.closed:
                    raise
            finally:
                self.loads[place] -= 1

    def _choose(self, blocks: Sequence[int], among: set[int]) -> int:
        alive = [place for place in among if self.clients[place].health.alive] or list(among)
        known = self._prefixes.find(blocks)
        mean = (sum(self.loads[place] for place in alive) + 1) / len(alive)
        if known in alive and self.loads[known] <= SLACK * mean:
            return known
        return min(alive, key=lambda place: (self.loads[place], place))

    async def aclose(self) -> None:
        for client in self.clients:
            await client.aclose()
