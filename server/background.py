"""Run what policies do in the background, each in a task of its own, for as long as the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from waver.policies.base import Policy
from waver.policies.services import Services
from waver.server.after_hooks import place

log = structlog.get_logger("waver")

PAUSE = 30.0
"""Seconds until work that failed is started again."""


class Background:
    """The running background work, one task for each kind of policy that has any."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, policies: Iterable[type[Policy]], services: Services) -> None:
        """Start the `background` of each policy that has one of its own."""
        for policy in policies:
            if policy.background.__func__ is not Policy.background.__func__:  # type: ignore[attr-defined]
                self._tasks.add(asyncio.create_task(_run(policy, services)))

    async def stop(self) -> None:
        """Cancel all of it, and wait for its end."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


async def _run(policy: type[Policy], services: Services) -> None:
    while True:
        try:
            await policy.background(services)
            return
        except Exception as error:
            # Its message may quote what somebody said: only its kind and place are logged.
            log.error("background work of a policy failed", policy=policy.__name__, error=place(error))
        await asyncio.sleep(PAUSE)
