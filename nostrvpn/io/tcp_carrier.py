"""What makes a TCP connection bearable under datagrams: short queues, and a dead end noticed soon.

A datagram that waits is worth less than one that was dropped, as whoever sent it slows down only by
loss. So before each write a carrier asks the kernel how much it still holds unsent, and drops the
datagram if that is much. What is on its way does not count: that is the path's own length.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from typing import Final, Protocol

__all__ = ["is_congested", "prepare_carrier"]

# Linux ABI (linux/sockios.h).
SIOCOUTQNSD: Final = 0x894B
# 50 ms at 5 Mbit/s, and some twenty packets: below that, bursts would be cut.
UNSENT_LIMIT: Final = 32 * 1024
# How long sent bytes may stay unacknowledged. The path engine leaves a silent path after 6.5 s.
UNACKNOWLEDGED_MS: Final = 4500


class _Socket(Protocol):
    """What asyncio's TransportSocket and a socket have in common."""

    def fileno(self) -> int: ...

    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def prepare_carrier(sock: _Socket) -> None:
    """Set the options of a connected TCP socket; OSError if it is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)


def is_congested(sock: _Socket) -> bool:
    """Say whether more than ``UNSENT_LIMIT`` bytes wait in the kernel; True if it is closed."""
    descriptor = sock.fileno()
    if descriptor < 0:
        return True
    try:
        answer = fcntl.ioctl(descriptor, SIOCOUTQNSD, b"\0\0\0\0")
    except OSError:
        return True
    unsent = int.from_bytes(answer[: struct.calcsize("=i")], sys.byteorder)
    return unsent > UNSENT_LIMIT
