"""Watching the host: its addresses and routes at start and after each change."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from nostrvpn.daemon.loop import Loop
from nostrvpn.daemon.reconcile import Reconciler
from nostrvpn.errors import NostrvpnError
from nostrvpn.io.netlink import LocalInterface, local_addresses, main_routes
from nostrvpn.io.netlink_monitor import NetlinkMonitor
from nostrvpn.io.source_address import outward_sources
from nostrvpn.node.desired import FWMARK
from nostrvpn.node.events import HostChanged
from nostrvpn.paths.candidates import LocalAddress

__all__ = ["HostWatch", "candidate_addresses"]

# Other tunnels' addresses lead back into this host. More is left out by name (PathSettings).
_SKIPPED_KINDS = frozenset({"wireguard", "tun"})

_log = logging.getLogger(__name__)


def candidate_addresses(interfaces: tuple[LocalInterface, ...]) -> tuple[LocalAddress, ...]:
    """Return the addresses that a peer might reach this host by."""
    return tuple(
        LocalAddress(address.ip, interface.name, address.network.prefixlen)
        for interface in interfaces
        if interface.up and not interface.is_ours and interface.kind not in _SKIPPED_KINDS
        for address in interface.addresses
    )


class HostWatch:
    """Turns netlink changes into HostChanged events."""

    def __init__(self, loop: Loop, reconciler: Reconciler, interface: str) -> None:
        self._loop = loop
        self._interface = interface
        self._reconciler = reconciler
        self._last: HostChanged | None = None
        self._is_stale = self._is_reading = self._has_moved = False
        self._monitor = NetlinkMonitor(self._changed)

    async def start(self) -> None:
        """Read the host once, and then whenever it changes."""
        self._is_reading = True
        self._monitor.start()
        await self._read()
        self._loop.supervisor.start("host", self._read_until_fresh())

    def stop(self) -> None:
        """Stop watching."""
        self._monitor.stop()

    def _changed(self, _kinds: frozenset[str]) -> None:
        # Before anything else is sent: it would leave with the old source address.
        self._loop.tap.routes_changed()
        self._reconciler.host_changed()
        self._is_stale = True
        if not self._is_reading:
            self._is_reading = True
            self._loop.supervisor.start("host", self._read_until_fresh())

    async def _read_until_fresh(self) -> None:
        try:
            while self._is_stale or self._has_moved:
                if self._is_stale:
                    await self._read()
                    continue
                self._has_moved = False
                if self._loop.services is not None:
                    await self._loop.services.network_changed(self._reconciler.run)
        finally:
            self._is_reading = False

    async def _read(self) -> None:
        self._is_stale = False
        lost = self._monitor.take_lost()
        try:
            interfaces = await self._reconciler.run(local_addresses)
            routes = await self._reconciler.run(partial(main_routes, self._interface))
        except NostrvpnError as exc:
            _log.warning("the host's addresses could not be read: %s", exc)
            return
        last, sources = self._last, outward_sources(FWMARK)
        interrupted = last is not None and not lost.isdisjoint(a.ip for a in last.addresses)
        event = HostChanged(candidate_addresses(interfaces), routes, sources)
        if event == last and not interrupted:
            return
        self._last = event
        self._loop.sockets.moved(
            {address.ip: found.name for found in interfaces for address in found.addresses},
            restart=interrupted or last is None or last.sources != sources,
        )
        await self._loop.put(replace(event, interrupted=interrupted))
        self._has_moved = True
