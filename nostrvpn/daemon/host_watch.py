"""Watching the host: its addresses and routes at start and after each change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from nostrvpn.daemon.loop import Loop
from nostrvpn.daemon.reconcile import Reconciler
from nostrvpn.errors import NostrvpnError
from nostrvpn.host.booth import booth_table
from nostrvpn.host.firewall import table_name
from nostrvpn.host.inbound import inbound_table
from nostrvpn.host.shield import shield_table
from nostrvpn.host.subnet_gateway import gateway_table
from nostrvpn.io.netlink import LocalInterface, local_addresses, main_routes
from nostrvpn.io.netlink_monitor import NetlinkMonitor
from nostrvpn.io.relay_routing import relay_table_name
from nostrvpn.io.source_address import outward_sources
from nostrvpn.node.desired import FWMARK
from nostrvpn.node.events import HostChanged
from nostrvpn.paths.candidates import LocalAddress

if TYPE_CHECKING:
    from nostrvpn.io.network_place import Place

__all__ = ["HostWatch", "candidate_addresses"]

# Other tunnels' addresses lead back into this host. More is left out by name (PathSettings).
_SKIPPED_KINDS = frozenset({"wireguard", "tun"})

# A gateway answers the kernel within milliseconds, or is not there yet.
_ASK_EVERY_S = 0.5
_MAX_ASKED = 10
# After what refused to be read: out of memory, of descriptors.
_READ_AGAIN_S = 1.0

_log = logging.getLogger(__name__)


def candidate_addresses(interfaces: tuple[LocalInterface, ...]) -> tuple[LocalAddress, ...]:
    """Return the addresses that a peer might reach this host by."""
    return tuple(
        LocalAddress(address.ip, interface.name, address.network.prefixlen)
        for interface in interfaces
        if interface.up and not interface.is_ours and interface.kind not in _SKIPPED_KINDS
        for address in interface.addresses
    )


def _place_here() -> Place:
    # In the worker thread the import holds up nothing.
    from nostrvpn.io.network_place import place_here

    return place_here()


class HostWatch:
    """Turns netlink changes into HostChanged events."""

    def __init__(self, loop: Loop, reconciler: Reconciler, interface: str) -> None:
        self._loop = loop
        self._interface = interface
        self._reconciler = reconciler
        self._last: HostChanged | None = None
        self._is_stale = self._is_reading = self._has_moved = False
        tables = [table(interface) for table in (table_name, inbound_table, gateway_table)]
        tables += [shield_table(interface), relay_table_name(interface), booth_table(interface)]
        self._monitor = NetlinkMonitor(self._changed, tables)
        self._asked, self._is_stopped = 0, False
        self.must_know_network: Callable[[], bool] = lambda: False
        """Whether the network's default gateway may be asked for its hardware address."""

    async def start(self) -> None:
        """Read the host once, and then whenever it changes."""
        self._is_reading = True
        self._monitor.start()
        await self._read()
        self._loop.supervisor.start("host", self._read_until_fresh())

    def stop(self) -> None:
        """Stop watching."""
        self._is_stopped = True
        self._monitor.stop()

    async def _where(self) -> str:
        """Return the network that the host is in; look again soon if its gateway is silent."""
        place = await self._reconciler.run(_place_here)
        if place.unheard is None:
            self._asked = 0
        elif self._asked < _MAX_ASKED:
            self._asked += 1
            if self.must_know_network():
                from nostrvpn.io.network_place import ask_gateway

                ask_gateway(place.unheard, FWMARK)
            asyncio.get_running_loop().call_later(_ASK_EVERY_S, self._look_again)
        return place.network

    def _look_again(self) -> None:
        if self._is_stopped:
            return
        self._is_stale = True
        if not self._is_reading:
            self._is_reading = True
            self._loop.supervisor.start("host", self._read_until_fresh())

    def _changed(self, kinds: frozenset[str]) -> None:
        if "table" in kinds:
            self._tables_changed()
            if len(kinds) == 1:
                return
        # Before anything else is sent: it would leave with the old source address.
        self._loop.tap.routes_changed()
        self._reconciler.host_changed()
        if "rule" in kinds:
            # One of ours went, or the one of another network that kept us from our exit.
            self._loop.reconcile_soon()
        self._asked = 0
        self._look_again()

    def _tables_changed(self) -> None:
        """Somebody (a restart of nftables.service, say) removed of our tables: they are made anew."""
        self._reconciler.tables_changed()
        self._loop.reconcile_soon()
        if self._loop.services is not None and self._loop.services.relay is not None:
            self._loop.services.relay.tables_changed()

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
            network = await self._where()
        except NostrvpnError as exc:
            _log.warning("the host's addresses could not be read: %s", exc)
            self._monitor.keep_lost(lost)
            asyncio.get_running_loop().call_later(_READ_AGAIN_S, self._look_again)
            return
        last, sources = self._last, outward_sources(FWMARK)
        interrupted = last is not None and not lost.isdisjoint(a.ip for a in last.addresses)
        event = HostChanged(candidate_addresses(interfaces), routes, sources, network=network)
        if event == last and not interrupted:
            return
        self._last = event
        self._loop.sockets.moved(
            {address.ip: found.name for found in interfaces for address in found.addresses},
            restart=interrupted or last is None or last.sources != sources,
        )
        await self._loop.put(replace(event, interrupted=interrupted))
        self._has_moved = True
