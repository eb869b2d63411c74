"""The link of strangers who pay: their peers, addresses and table, made and kept as desired.

Blocking; used by the reconciler's worker thread only.
"""

from __future__ import annotations

import logging
import socket
import time
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

from nostrvpn.errors import SystemRefused
from nostrvpn.host import diff as host_diff
from nostrvpn.host.sold import Sold, SoldLease, sold_interface, sold_table
from nostrvpn.host.state import ALIAS_MARK, FWMARK, HostState
from nostrvpn.io.netlink import apply_host, find_link, observe_host
from nostrvpn.io.sold import SoldTable
from nostrvpn.io.wireguard import Backend
from nostrvpn.market.effects import Counted, Counters
from nostrvpn.wireguard import diff as wireguard_diff
from nostrvpn.wireguard.device import Device, ObservedDevice, Peer, SecretKey

__all__ = ["SoldWay", "counted"]

# As for everything else that the reconciler found as desired.
TRUSTED_S = 20.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_log = logging.getLogger(__name__)


class SoldWay:
    """What is sold by one interface. ``error`` says why it is not as desired; None if it is."""

    def __init__(self, backend: Backend, interface: str) -> None:
        self._backend, self._interface = backend, interface
        self._table = SoldTable(interface)
        self._link: tuple[tuple[object, ...], float] | None = None
        self._applied: dict[str, int] = {}
        self._is_there: bool | None = None
        self.error: str | None = None

    def distrust(self) -> None:
        """Look at all of it the next time."""
        self._link = None
        self._table.distrust()

    def settle(self, sold: Sold | None) -> None:
        """Sell what ``sold`` says, and nothing without it. What fails is told in ``error``."""
        if sold is None:
            self.error = None
            if self._is_there is not False:
                with suppress(SystemRefused):
                    self.end(self._interface)
            return
        try:
            self._settle(sold)
        except (SystemRefused, OSError, ValueError) as exc:  # what strangers said is in it
            if self.error is None:
                _log.warning("what is sold could not be set: %s", exc)
            self.error = str(exc)
        else:
            self.error = None

    def end(self, _interface: str) -> None:
        """Remove the link, the table and what it remembers; SystemRefused by the kernel."""
        name = sold_interface(self._interface)
        link = find_link(name)
        if link is not None and link.is_ours:
            self._backend.delete(name)
        self._table.remove()
        self._is_there, self._link, self._applied = False, None, {}

    def read(self) -> Counted | None:
        """Return what WireGuard counted; None without the link. SystemRefused."""
        return counted(self._backend, sold_interface(self._interface))

    def _settle(self, sold: Sold) -> None:
        now = time.monotonic()
        self._is_there = True
        # First: nothing that comes out of the link goes unjudged.
        if self._table.close(sold, now):
            _log.info("[#] nft: table inet %s: %s", sold_table(self._interface), sold.summary)
        wanted = _wanted(sold)
        held = self._link
        if held is not None and held[0] == wanted and now - held[1] < TRUSTED_S:
            return
        self._link = None
        self._make_link(sold)
        if self._table.forward(sold, now):
            _log.info("[#] %s is forwarded to the internet", sold.link)
        self._link = wanted, now

    def _make_link(self, sold: Sold) -> None:
        name = sold.link
        observed = self._backend.observe(name) if self._is_ours(name) else None
        if observed is None:
            self._backend.create(name, sold.mtu)
            self._applied = {}
            observed = self._backend.observe(name)
        device = _device(sold)
        operations = wireguard_diff.diff(observed, device, self._applied, interface=name)
        for operation in operations:
            _log.info("[#] %s", operation)
        if operations:
            self._backend.apply(name, operations, device)
        self._applied = wireguard_diff.applied_generations(device)
        state = HostState(name, sold.mtu, sold.addresses, sold.networks, alias=ALIAS_MARK)
        changes = host_diff.diff(observe_host(name), state)
        for change in changes:
            _log.info("[#] %s", change)
        apply_host(changes)

    def _is_ours(self, name: str) -> bool:
        link = find_link(name)
        return link is not None and link.is_ours


def counted(backend: Backend, link: str) -> Counted | None:
    """Return the counters of a link's peers, and whose life they are of; None without the link.

    SystemRefused.
    """
    device = backend.observe(link)
    if device is None:
        return None
    try:
        epoch = f"{_BOOT_ID.read_text(encoding='ascii').strip()}/{socket.if_nametoindex(link)}"
    except OSError:
        return None
    return Counted(_counters(device), epoch)


def _counters(device: ObservedDevice) -> dict[str, Counters]:
    return {
        peer.public_key: Counters(
            peer.rx_bytes,
            peer.tx_bytes,
            None if peer.last_handshake_wall is None else int(peer.last_handshake_wall),
            None if peer.endpoint is None else peer.endpoint.ip,
        )
        for peer in device.peers
    }


def _wanted(sold: Sold) -> tuple[object, ...]:
    peers = tuple((lease.key, lease.psk, lease.addresses) for lease in sold.leases)
    return sold.link, sold.listen_port, sold.private_key, sold.addresses, sold.mtu, peers


def _device(sold: Sold) -> Device:
    peers = tuple(map(_peer, sold.leases))
    return Device(SecretKey(sold.private_key.raw), sold.listen_port, FWMARK, peers)


def _peer(lease: SoldLease) -> Peer:
    addresses = frozenset(ip_network(ip) for ip in lease.addresses)
    psk = None if lease.psk is None else SecretKey(lease.psk.raw)
    return Peer(lease.key, addresses, preshared_key=psk)
