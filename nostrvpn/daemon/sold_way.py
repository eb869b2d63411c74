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

from nostrvpn.daemon.own_link import OwnLink
from nostrvpn.daemon.settled import Settled
from nostrvpn.errors import SystemRefused
from nostrvpn.host.sold import Sold, SoldLease, sold_interface, sold_table
from nostrvpn.host.state import ALIAS_MARK, FWMARK, HostState
from nostrvpn.io.sold import SoldTable
from nostrvpn.io.wireguard import Backend
from nostrvpn.market.effects import Counted, Counters
from nostrvpn.wireguard.device import Device, ObservedDevice, Peer, SecretKey

__all__ = ["SoldWay", "counted"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_COMPLAINT = "what is sold could not be set: %s"
# What strangers said is in it.
_REFUSALS = (SystemRefused, OSError, ValueError)

_log = logging.getLogger(__name__)


class SoldWay:
    """What is sold by one interface. ``error`` says why it is not as desired; None if it is."""

    def __init__(self, backend: Backend, interface: str) -> None:
        self._backend, self._interface = backend, interface
        self._table = SoldTable(interface)
        self._link = OwnLink(backend, sold_interface(interface))
        # The table is looked at by its own rules, so here are only its errors.
        self._closed = Settled[Sold](_COMPLAINT, refusals=_REFUSALS)
        self._opened = Settled[tuple[object, ...]](_COMPLAINT, refusals=_REFUSALS)
        self._is_there: bool | None = None

    @property
    def error(self) -> str | None:
        """Why what is sold is not as desired, in words."""
        return self._closed.error or self._opened.error

    def distrust(self) -> None:
        """Look at all of it the next time."""
        self._opened.forget()
        self._table.distrust()

    def settle(self, sold: Sold | None) -> None:
        """Sell what ``sold`` says, and nothing without it. What fails is told in ``error``."""
        if sold is None:
            self._closed.end()
            self._opened.end()
            if self._is_there is not False:
                with suppress(SystemRefused):
                    self.end(self._interface)
            return
        self._is_there, now = True, time.monotonic()
        # First: nothing that comes out of the link goes unjudged.
        with self._closed.making(sold):
            if self._table.close(sold, now):
                _log.info("[#] nft: table inet %s: %s", sold_table(self._interface), sold.summary)
        wanted = _wanted(sold)
        if self._closed.error is not None or self._opened.holds(wanted):
            return
        with self._opened.making(wanted):
            host = HostState(sold.link, sold.mtu, sold.addresses, sold.networks, alias=ALIAS_MARK)
            self._link.settle(_device(sold), host)
            if self._table.forward(sold, now):
                _log.info("[#] %s is forwarded to the internet", sold.link)

    def end(self, _interface: str) -> None:
        """Remove the link, the table and what it remembers; SystemRefused by the kernel."""
        self._link.remove()
        self._table.remove()
        self._is_there = False
        self._opened.forget()

    def read(self) -> Counted | None:
        """Return what WireGuard counted; None without the link. SystemRefused."""
        return counted(self._backend, sold_interface(self._interface))


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
    return Counted(_counters(device), epoch, device.public_key or "")


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
