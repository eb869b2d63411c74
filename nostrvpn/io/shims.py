"""Shims: loopback UDP sockets that stand for the far end of a carrier that is not UDP.

WireGuard and the tap send to a shim's endpoint as to any remote endpoint; what comes out of the
carrier is sent from there to WireGuard's port. Every shim has an address of its own in 127.77/16,
so that two of them never look alike, and none looks like a service of this host.

A packet counts only if it comes from 127.0.0.1 and WireGuard's port. The kernel takes that source
towards all of 127/8, for WireGuard (in the kernel, or wireguard-go) as for the tap, and nobody else
can have it while WireGuard owns the port. Shims are bounded by the kernel: a full receive buffer
drops, as any UDP queue does.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from ipaddress import IPv4Address
from typing import Final

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import SystemRefused

__all__ = ["MAX_FRAME", "Shim"]

# A packet of WireGuard at an MTU of 1500 and below; STUN is smaller. Carriers take no more.
MAX_FRAME: Final = 1500
# Ours: 127.77/16 for shims. The address follows the number; the port, drawn by the kernel, makes two
# shims differ whose numbers are 65,536 apart.
SHIM_NETWORK: Final = int(IPv4Address("127.77.0.0"))
# About 40 full packets (the kernel counts twice the size): a burst, not a long queue.
RECEIVE_BUFFER: Final = 64 * 1024
# Packets taken without a pause, so that a flood leaves the loop time for everything else.
BATCH: Final = 64


class Shim:
    """One socket: ``receive`` what WireGuard or the tap sent, ``deliver`` to WireGuard's port.

    ``counters`` is the owner's: "stranger", "wrong size", "undelivered".
    """

    def __init__(self, number: int, wireguard_port: int, counters: Counter[str]) -> None:
        """Bind; SystemRefused if the system has no socket or port left."""
        self._port = wireguard_port
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._taken = 0
        ip = IPv4Address(SHIM_NETWORK + (number & 0xFFFF))
        try:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
                self._socket.bind((str(ip), 0))
            except BaseException:
                self._socket.close()
                raise
        except OSError as exc:
            raise SystemRefused(f"no UDP socket on {ip}: {exc.strerror}") from exc
        self.endpoint = Endpoint(ip, self._socket.getsockname()[1])

    async def receive(self) -> bytes:
        """Return the next packet that came from WireGuard's port; OSError if the socket fails."""
        while True:
            self._taken += 1
            if not self._taken % BATCH:
                await asyncio.sleep(0)
            data, source = await self._loop.sock_recvfrom(self._socket, MAX_FRAME + 1)
            if source != ("127.0.0.1", self._port):
                self._counters["stranger"] += 1
            elif not 0 < len(data) <= MAX_FRAME:
                self._counters["wrong size"] += 1
            else:
                return data

    def deliver(self, data: bytes) -> None:
        """Send ``data`` to WireGuard's port, with this shim as its source."""
        try:
            self._socket.sendto(data, ("127.0.0.1", self._port))
        except OSError:
            self._counters["undelivered"] += 1

    def close(self) -> None:
        """Close the socket; nobody may be in ``receive`` any more."""
        with contextlib.suppress(OSError):
            self._socket.close()
