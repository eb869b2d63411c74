"""Work that many ask for, done for all who asked at once, and not more often than it may be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from nostrvpn.errors import NostrvpnError

__all__ = ["Pace"]


class Pace:
    """``work`` is done soon after each ``ask``; ``rest`` says how many seconds there are after it."""

    def __init__(self, work: Callable[[], Awaitable[object]], rest: Callable[[], float]) -> None:
        self._work, self._rest = work, rest
        self._asked: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> asyncio.Future[None]:
        """Return what is done once work that begins after this call has ended."""
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="pace")
        return self._asked

    async def stop(self) -> None:
        """Do no more; nobody waits any longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._asked is not None:
            self._asked.cancel()

    async def _run(self) -> None:
        while self._asked is not None:
            asked, self._asked = self._asked, None
            try:
                with suppress(NostrvpnError):
                    await self._work()
            finally:
                # However it ended: who waits looks for himself.
                if not asked.done():
                    asked.set_result(None)
            await asyncio.sleep(self._rest())
