"""Notice when links, addresses, routes or our nftables tables of this network namespace change.

Bare netlink sockets on the event loop. What changed is not parsed, the listener looks for itself;
only addresses that went are told, since one that is back a moment later would not be noticed.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import SystemRefused
from nostrvpn.io import table_notices
from nostrvpn.io.rtnetlink import refused
from nostrvpn.io.table_notices import TableNotices

__all__ = ["NetlinkMonitor"]

# Spec: linux/rtnetlink.h, multicast groups and message types.
_GROUPS = (
    0x1  # RTMGRP_LINK
    | 0x10  # RTMGRP_IPV4_IFADDR
    | 0x40  # RTMGRP_IPV4_ROUTE
    | 0x80  # RTMGRP_IPV4_RULE
    | 0x100  # RTMGRP_IPV6_IFADDR
    | 0x400  # RTMGRP_IPV6_ROUTE
    | 0x40000  # RTNLGRP_IPV6_RULE
)
_KINDS = {
    16: "link",
    17: "link",
    20: "address",
    21: "address",
    24: "route",
    25: "route",
    # Only that one went: systemd-networkd removes rules that it did not make.
    33: "rule",
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
    """Calls ``changed`` with the kinds of change ("link", "address", "route", "rule", "table"), once
    per burst.

    "table": something was removed from one of ``tables`` (names, family inet); never told where the
    kernel has no nftables. The first bursts are told within 30 ms, at most four in two seconds. Must
    be started within a running event loop, in the network namespace to watch. If the kernel dropped
    notices because too many came at once, every kind that they may have been of is reported.
    """

    def __init__(
        self, changed: Callable[[frozenset[str]], None], tables: Collection[str] = ()
    ) -> None:
        self._changed = changed
        self._tables = TableNotices(tables)
        self._table_socket: socket.socket | None = None
        self._socket: socket.socket | None = None
        self._pending: set[str] = set()
        self._lost: set[IPAddress] = set()
        self._told: deque[float] = deque(maxlen=_CALLS)
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to watch; raise SystemRefused if the kernel gives no netlink socket."""
        self._socket = _listen("watching the network", socket.NETLINK_ROUTE, _GROUPS)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._readable)
        with suppress(SystemRefused):
            protocol, groups = table_notices.PROTOCOL, table_notices.GROUPS
            self._table_socket = _listen("watching nftables", protocol, groups)
            self._loop.add_reader(self._table_socket.fileno(), self._tables_readable)

    def stop(self) -> None:
        """Stop watching; a change not yet reported is forgotten. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for sock in (self._socket, self._table_socket):
            if sock is not None and self._loop is not None:
                self._loop.remove_reader(sock.fileno())
                sock.close()
        self._socket = self._table_socket = None
        self._pending.clear()

    def take_lost(self) -> frozenset[IPAddress]:
        """Return the addresses that were removed since the last time, also those that are back."""
        lost = frozenset(self._lost)
        self._lost.clear()
        return lost

    def keep_lost(self, lost: frozenset[IPAddress]) -> None:
        """Put back what was taken and could not be used: it is taken again."""
        self._lost |= lost

    def _readable(self) -> None:
        assert self._socket is not None
        for data in _read_all(self._socket):
            if data is None:
                self._pending.update(_KINDS.values())
            else:
                self._take(data)
        self._report_soon()

    def _tables_readable(self) -> None:
        assert self._table_socket is not None
        for data in _read_all(self._table_socket):
            if data is None or self._tables.take(data):
                self._pending.add("table")
        self._report_soon()

    def _report_soon(self) -> None:
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


def _listen(action: str, protocol: int, groups: int) -> socket.socket:
    """Return a netlink socket that is told of changes; SystemRefused naming the action."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        try:
            sock.setblocking(False)
            sock.bind((0, groups))
        except OSError:
            sock.close()
            raise
    except OSError as exc:
        raise refused(action, exc.errno or errno.EIO) from exc
    return sock


def _read_all(sock: socket.socket) -> Iterator[bytes | None]:
    """Yield the datagrams that are there, a bounded number; None where notices were lost."""
    for _ in range(_MAX_READS):
        try:
            yield sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as exc:
            # So anything may have changed.
            if exc.errno != errno.ENOBUFS:
                raise
            yield None


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
