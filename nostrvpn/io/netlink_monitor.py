"""Notice when links, addresses or routes of this network namespace change.

A bare netlink socket on the event loop. What changed is not parsed, the listener looks for itself;
only addresses that went are told, since one that is back a moment later would not be noticed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import SystemRefused

__all__ = ["NetlinkMonitor"]

# Spec: linux/rtnetlink.h, multicast groups and message types.
_GROUPS = (
    0x1  # RTMGRP_LINK
    | 0x10  # RTMGRP_IPV4_IFADDR
    | 0x40  # RTMGRP_IPV4_ROUTE
    | 0x100  # RTMGRP_IPV6_IFADDR
    | 0x400  # RTMGRP_IPV6_ROUTE
)
_KINDS = {
    16: "link",
    17: "link",
    20: "address",
    21: "address",
    24: "route",
    25: "route",
}
_HEADER = struct.Struct("=IHHII")
# Spec: linux/rtnetlink.h and linux/if_addr.h: RTM_DELADDR's struct ifaddrmsg, then attributes.
_ADDRESS_GONE = 21
_ADDRESS_HEADER_BYTES = 8
_ATTRIBUTE = struct.Struct("=HH")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2

# Ours: a change of network comes as a burst (link, addresses, routes) within some milliseconds; one
# call per burst is enough.
_SETTLE_S = 0.03

# Ours: calls in two seconds. A change of network is two or three bursts (the old one goes, IPv4 comes,
# IPv6 comes), each told at once; a flapping interface or a storm of routes is told twice a second.
_CALLS, _CALLS_S = 4, 2.0

# Ours: datagrams read per wake-up, so that a storm of routes cannot hold the event loop.
_MAX_READS = 64

# Ours: more addresses than a host of ours has; without a reader they must not gather.
_MAX_LOST = 1024

# Ours: more than any message of interest; the rest of a longer one is not looked at.
_READ_BYTES = 65536


class NetlinkMonitor:
    """Calls ``changed`` with the kinds of change ("link", "address", "route"), once per burst.

    The first bursts are told within 30 ms, at most four in two seconds. Must be started within a
    running event loop, in the network namespace to watch. If the kernel dropped notices because too
    many came at once, every kind is reported.
    """

    def __init__(self, changed: Callable[[frozenset[str]], None]) -> None:
        self._changed = changed
        self._socket: socket.socket | None = None
        self._pending: set[str] = set()
        self._lost: set[IPAddress] = set()
        self._told: deque[float] = deque(maxlen=_CALLS)
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to watch; raise SystemRefused if the kernel gives no netlink socket."""
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        except OSError as exc:
            raise SystemRefused(f"watching the network: {os.strerror(exc.errno or 0)}") from exc
        try:
            sock.setblocking(False)
            sock.bind((0, _GROUPS))
        except OSError as exc:
            sock.close()
            raise SystemRefused(f"watching the network: {os.strerror(exc.errno or 0)}") from exc
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)
        self._socket = sock

    def stop(self) -> None:
        """Stop watching; a change not yet reported is forgotten. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._pending.clear()

    def take_lost(self) -> frozenset[IPAddress]:
        """Return the addresses that were removed since the last time, also those that are back."""
        lost = frozenset(self._lost)
        self._lost.clear()
        return lost

    def _readable(self) -> None:
        assert self._socket is not None
        for _ in range(_MAX_READS):
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError as exc:
                # ENOBUFS: notices were lost, so anything may have changed.
                if exc.errno != errno.ENOBUFS:
                    raise
                self._pending.update(_KINDS.values())
                continue
            self._take(data)
        if self._pending and self._timer is None and self._loop is not None:
            at = self._loop.time() + _SETTLE_S
            if len(self._told) == _CALLS:
                at = max(at, self._told[0] + _CALLS_S)
            self._timer = self._loop.call_at(at, self._report)

    def _report(self) -> None:
        assert self._loop is not None
        self._timer = None
        self._told.append(self._loop.time())
        kinds = frozenset(self._pending)
        self._pending.clear()
        self._changed(kinds)

    def _take(self, data: bytes) -> None:
        """Note the messages in one datagram (struct nlmsghdr, padded to 4 bytes)."""
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, offset)
            if kind in _KINDS:
                self._pending.add(_KINDS[kind])
            if kind == _ADDRESS_GONE and len(self._lost) < _MAX_LOST:
                self._lost.update(_address(data[offset + _HEADER.size : offset + length]))
            offset += max(_HEADER.size, (length + 3) & ~3)


def _address(message: bytes) -> set[IPAddress]:
    """Return the address of an RTM_DELADDR message; IFA_LOCAL is ours on point-to-point links."""
    found: dict[int, IPAddress] = {}
    offset = _ADDRESS_HEADER_BYTES
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        value = message[offset + _ATTRIBUTE.size : offset + length]
        if kind in (_IFA_ADDRESS, _IFA_LOCAL) and len(value) in (4, 16):
            found[kind] = IPv4Address(value) if len(value) == 4 else IPv6Address(value)
        offset += max(_ATTRIBUTE.size, (length + 3) & ~3)
    address = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
    return set() if address is None else {address}
