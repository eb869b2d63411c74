"""What this host's guests used, read every few seconds while there are any."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import NostrvpnError, SystemRefused
from nostrvpn.exits.limits import Volume
from nostrvpn.host.upstream import upstream_interface
from nostrvpn.io.wireguard import Backend
from nostrvpn.node.events import ExitUsed, NodeEvent
from nostrvpn.node.node import Node

__all__ = ["READ_EVERY_S", "GuestMeter"]

READ_EVERY_S = 10.0
# With a provider, whose silence guests shall not sit through.
READ_PROVIDER_EVERY_S = 5.0

_Usage = dict[IPAddress, Volume]
_Read = tuple[_Usage, tuple[int, int] | None]
_Run = Callable[[Callable[[], _Read]], Awaitable[_Read]]
_log = logging.getLogger(__name__)


class GuestMeter:
    """``run`` does blocking work elsewhere; ``offer`` takes what was read. Asleep without guests.

    ``backend``: what the link to a provider is read with.
    """

    def __init__(
        self,
        node: Node,
        interface: str,
        backend: Backend,
        run: _Run,
        offer: Callable[[NodeEvent], None],
    ) -> None:
        self._node, self._interface, self._backend = node, interface, backend
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
            has_provider = self._node.exit_offer.provider is not None
            await asyncio.sleep(READ_PROVIDER_EVERY_S if has_provider else READ_EVERY_S)
            await self._read()

    async def _read(self) -> None:
        has_provider = self._node.exit_offer.provider is not None
        try:
            usage, provider = await self._run(partial(self._look, has_provider))
        except NostrvpnError as exc:
            _log.warning("what guests used could not be read: %s", exc)
            return
        self._offer(ExitUsed(usage, provider))

    def _look(self, has_provider: bool) -> _Read:
        from nostrvpn.io.exit_meter import read_usage  # most nodes have no guests

        usage = read_usage(self._interface)
        link = None
        if has_provider:
            with suppress(SystemRefused):  # the reconciler says why
                link = self._backend.observe(upstream_interface(self._interface))
        if link is None or len(link.peers) != 1:
            return usage, None
        return usage, (link.peers[0].rx_bytes, link.peers[0].tx_bytes)
