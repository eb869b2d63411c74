"""Sleeping peers: their endpoints for WireGuard, the ring that wakes them, and what they missed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from nostrvpn.errors import SystemRefused
from nostrvpn.io.doorbell import Doorbell
from nostrvpn.io.tap import Tap
from nostrvpn.node.desired import Desired
from nostrvpn.node.events import NodeEvent
from nostrvpn.paths.events import Wake

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["Sleepers"]

_log = logging.getLogger(__name__)


class Sleepers:
    """The doorbell as the daemon uses it. ``is_open`` False: the system refused, so nobody may sleep."""

    def __init__(self, port: int) -> None:
        self._node: Node | None = None
        self._offer: Callable[[NodeEvent], None] | None = None
        self._bell = Doorbell(port, self._ring)
        try:
            self._bell.open()
        except SystemRefused as exc:
            _log.warning("idle paths are kept open: %s", exc)
        self.is_open = self._bell.is_open

    def serve(self, node: Node, offer: Callable[[NodeEvent], None]) -> None:
        """Give ``node`` endpoints for its sleeping peers, and ``offer`` it who is wanted."""
        if self.is_open:
            node.tunnel.doorbell = self._bell.endpoint
        self._node, self._offer = node, offer

    def applied(self, desired: Desired, tap: Tap) -> None:
        """WireGuard has these endpoints now: what rang for a peer goes there, from WireGuard's port."""
        for peer in self._bell.peers:
            if self._node is not None and peer not in self._node.peers:
                self._bell.forget(peer)
            endpoint = desired.awake.get(peer)
            if endpoint is not None:
                for packet in self._bell.take(peer):
                    tap.send(packet, endpoint)
                self._bell.forget(peer)

    def close(self) -> None:
        """Stop listening."""
        self._bell.close()

    def _ring(self, peer: str) -> None:
        if self._offer is not None:
            self._offer(Wake(peer))
