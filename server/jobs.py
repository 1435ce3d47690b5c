"""Run work in threads for requests, each bounded by a slot that stays taken until the threads have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import structlog

from waver.retrieval.base import Busy, Damaged
from waver.retrieval.cancellation import Cancelled, CancelToken
from waver.server.admission import Admission
from waver.server.errors import not_ready
from waver.server.memory import Trimmer

log = structlog.get_logger("waver")
Result = TypeVar("Result")

LONG = 1.0
"""Seconds of work after which memory is given back: a large document leaves a tenth of the server's behind."""
STOP_SECONDS = 10.0
"""Time that cancelled work is given to notice it when the server stops."""


class Jobs:
    """The work of all requests that runs now."""

    def __init__(self) -> None:
        self._tokens: dict[asyncio.Task[object], CancelToken] = {}
        self._trimmer = Trimmer()

    async def run(
        self, admission: Admission | None, work: Callable[[CancelToken], Awaitable[Result]], until: float
    ) -> Result:
        """Do `work` while it holds a slot of `admission`, and wait for it until the loop's time is `until`.

        A caller that is cancelled cancels the work, unless it is committing at that moment: then its result is returned
        after all. The work keeps its slot for as long as its threads are busy.

        Raises:
            TimeoutError: it is not done by then, and nothing of it will be.
            APIError: 429, there is no place; 503, the server stops.
        """
        token = CancelToken()

        async def hold() -> Result:
            if admission is None:
                return await work(token)
            async with admission.slot():
                return await work(token)

        task = self._start(hold(), token)
        try:
            await asyncio.wait({task}, timeout=until - asyncio.get_running_loop().time())
            if not task.done() and token.cancel():
                raise TimeoutError
            await asyncio.wait({task})
        except BaseException:
            if token.cancel():
                task.cancel()
            raise
        if task.cancelled() or isinstance(task.exception(), Cancelled):
            raise not_ready("The server is stopping.")
        return task.result()

    def spawn(self, work: Callable[[CancelToken], Awaitable[None]], what: str) -> None:
        """Do `work` in the background; its failure is logged."""
        token = CancelToken()

        async def guarded() -> None:
            try:
                await work(token)
            except Cancelled:
                pass
            except Exception as error:
                busy = isinstance(error, Busy)  # somebody else's next try does as well
                write = log.error if isinstance(error, Damaged) else log.info if busy else log.warning
                write(f"{what} failed", reason=str(error), kind=type(error).__name__)

        self._start(guarded(), token)

    def _start(self, work: Awaitable[Result], token: CancelToken) -> asyncio.Task[Result]:
        task: asyncio.Task[Result] = asyncio.ensure_future(work)
        self._tokens[task] = token
        task.add_done_callback(partial(self._forget, began=asyncio.get_running_loop().time()))
        return task

    def _forget(self, task: asyncio.Task[object], began: float) -> None:
        del self._tokens[task]
        if asyncio.get_running_loop().time() - began > LONG:
            self._trimmer.soon()
        if not task.cancelled():
            task.exception()  # seen, also where its caller has left

    def cancel(self) -> None:
        """Cancel all work that is not committing at this moment."""
        for task, token in self._tokens.items():
            if token.cancel():
                task.cancel()

    async def aclose(self) -> None:
        """Cancel all work, and wait at most `STOP_SECONDS` for it to end."""
        self.cancel()
        if self._tokens:
            await asyncio.wait(set(self._tokens), timeout=STOP_SECONDS)
