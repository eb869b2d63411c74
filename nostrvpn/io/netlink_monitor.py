"""Notice when links, addresses or routes of this network namespace change.

A bare netlink socket on the event loop: what changed is not parsed, the listener looks for itself.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable

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

# Ours: a change of network comes as a burst (link, addresses, routes); one call per burst is
# enough, and a tenth of a second is little beside what a new address needs to become usable.
_SETTLE_S = 0.1

# Ours: datagrams read per wake-up, so that a storm of routes cannot hold the event loop.
_MAX_READS = 64

# Ours: more than any message of interest; the rest of a longer one is not looked at.
_READ_BYTES = 65536


class NetlinkMonitor:
    """Calls ``changed`` with the kinds of change ("link", "address", "route"), once per burst.

    Must be started within a running event loop, in the network namespace to watch. If the kernel
    dropped notices because too many came at once, every kind is reported.
    """

    def __init__(self, changed: Callable[[frozenset[str]], None]) -> None:
        self._changed = changed
        self._socket: socket.socket | None = None
        self._pending: set[str] = set()
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
            self._pending.update(_kinds(data))
        if self._pending and self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(_SETTLE_S, self._report)

    def _report(self) -> None:
        self._timer = None
        kinds = frozenset(self._pending)
        self._pending.clear()
        self._changed(kinds)


def _kinds(data: bytes) -> set[str]:
    """Return the kinds of the messages in one datagram (struct nlmsghdr, padded to 4 bytes)."""
    kinds = set()
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if kind in _KINDS:
            kinds.add(_KINDS[kind])
        offset += max(_HEADER.size, (length + 3) & ~3)
    return kinds
