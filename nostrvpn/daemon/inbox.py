"""Events that wait for the node: bounded, and with one room each for what may wait and what cannot."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine

from nostrvpn.node.events import NodeEvent

__all__ = ["INBOX", "Inbox"]

# Events that wait. Relay connections wait for room (their sockets then stop being read); datagrams
# do not wait, they are dropped and counted: a lost probe is repeated.
INBOX = 4_096


class Inbox(asyncio.Queue[NodeEvent]):
    """``put`` waits for room. ``start`` runs a task; ``lost`` is called for each event that is lost."""

    def __init__(
        self,
        start: Callable[[str, Coroutine[object, object, None]], None],
        lost: Callable[[], None],
    ) -> None:
        super().__init__(INBOX)
        self._start = start
        self._lost = lost
        self._late: deque[NodeEvent] = deque()

    def offer(self, event: NodeEvent) -> None:
        """Put in an event that may be lost (a datagram)."""
        try:
            self.put_nowait(event)
        except asyncio.QueueFull:
            self._lost()

    def deliver(self, event: NodeEvent) -> None:
        """Put in an event from where nothing can wait; lost only if ``INBOX`` such wait already."""
        if not self._late and not self.full():
            self.put_nowait(event)
        elif len(self._late) < INBOX:
            self._late.append(event)
            if len(self._late) == 1:
                self._start("deliver", self._put_late())
        else:
            self._lost()

    async def _put_late(self) -> None:
        # One task for all, and in order: the first one stays where it is until it is in.
        while self._late:
            await self.put(self._late[0])
            self._late.popleft()
