"""Named background tasks: none is lost to the garbage collector, and none fails in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

__all__ = ["Supervisor"]

_log = logging.getLogger(__name__)


class Supervisor:
    """Starts tasks, reports each one that fails (to the log, unless ``on_failure`` is given), and
    cancels them all in the end."""

    def __init__(self, on_failure: Callable[[str, BaseException], None] | None = None) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_failure = on_failure or _told

    def __len__(self) -> int:
        """How many run."""
        return len(self._tasks)

    def start(self, name: str, work: Coroutine[object, object, None]) -> None:
        """Run ``work`` until it ends; an exception that leaves it is reported with the task's name."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(task.get_name(), error)

    async def stop(self) -> None:
        """Cancel what still runs and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _told(name: str, error: BaseException) -> None:
    _log.error("%s failed: %r", name, error, exc_info=error)
