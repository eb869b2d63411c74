"""What this host's guests used, read every few seconds while there are any."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import NostrvpnError
from nostrvpn.exits.limits import Volume
from nostrvpn.node.events import ExitUsed, NodeEvent
from nostrvpn.node.node import Node

__all__ = ["READ_EVERY_S", "GuestMeter"]

READ_EVERY_S = 10.0

_Usage = dict[IPAddress, Volume]
_Run = Callable[[Callable[[], _Usage]], Awaitable[_Usage]]
_log = logging.getLogger(__name__)


class GuestMeter:
    """``run`` does blocking work elsewhere; ``offer`` takes what was read. Asleep without guests."""

    def __init__(
        self, node: Node, interface: str, run: _Run, offer: Callable[[NodeEvent], None]
    ) -> None:
        self._node, self._interface = node, interface
        self._run, self._offer = run, offer
        self._changed = asyncio.Event()

    def poke(self) -> None:
        """What the node wants changed."""
        self._changed.set()

    async def read_forever(self) -> None:
        """Read the counters while there are guests, and once more when the last one has gone."""
        while True:
            self._changed.clear()
            if not self._node.exit_offer.has_guests(self._node):
                await self._changed.wait()
                continue
            await asyncio.sleep(READ_EVERY_S)
            await self._read()

    async def _read(self) -> None:
        from nostrvpn.io.exit_meter import read_usage  # most nodes have no guests

        try:
            usage = await self._run(partial(read_usage, self._interface))
        except NostrvpnError as exc:
            _log.warning("what guests used could not be read: %s", exc)
            return
        self._offer(ExitUsed(usage))
