"""ICMPv6 echo through the tunnel (RFC 4443 section 4.1): what ``nostrvpn ping`` measures."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time
from ipaddress import IPv6Address

from nostrvpn.errors import SystemRefused

__all__ = ["echo"]

_REQUEST, _REPLY = 128, 129
_HEADER = struct.Struct("!BBHHH")


async def echo(address: IPv6Address, timeout_s: float, interface: str) -> float | None:
    """Send one echo request over ``interface``; return its round trip in ms, None if none came.

    SystemRefused if the kernel does not let us send.
    """
    identifier, sequence = os.getpid() & 0xFFFF, int.from_bytes(os.urandom(2), "big")
    loop = asyncio.get_running_loop()
    try:
        sock = socket.socket(
            socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6
        )
    except OSError as exc:
        raise SystemRefused(f"no ICMP socket: {exc.strerror}", "run as root") from exc
    with sock:
        payload = os.urandom(16)
        started = time.perf_counter()
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            # The kernel fills in the checksum of a raw ICMPv6 socket (RFC 3542 section 3.1).
            packet = _HEADER.pack(_REQUEST, 0, 0, identifier, sequence) + payload
            sock.sendto(packet, (str(address), 0))
        except OSError as exc:
            if exc.errno in (errno.EDESTADDRREQ, errno.ENOKEY, errno.EHOSTUNREACH, errno.ENETDOWN):
                return None  # no tunnel to this peer yet
            raise SystemRefused(f"the echo request was refused: {exc.strerror}") from exc
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    data = await loop.sock_recv(sock, 2048)
                    if len(data) < _HEADER.size:
                        continue
                    kind, _, _, got_identifier, got_sequence = _HEADER.unpack_from(data)
                    answer = (kind, got_identifier, got_sequence, data[_HEADER.size :])
                    if answer == (_REPLY, identifier, sequence, payload):
                        return (time.perf_counter() - started) * 1000
        except TimeoutError:
            return None
