"""A router in user space: holds every packet for a while, ages its TTL, and loses some.

``python -m nostrvpn.lab.delay`` runs in the core's namespace where the kernel has no netem. The
core routes what arrives from its cables into a TUN interface; this process reads it there, keeps
it for the one-way delay, takes ``--hops`` off its TTL (IPv4) or hop limit (IPv6), and writes it
back; the kernel then routes it out. What would expire on the way is dropped, without
an ICMP answer.

All packets wait equally long, so a queue in order of arrival is also in order of departure.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import os
import random
import select
import struct
import sys
import time
from collections import deque

__all__ = ["age_packet", "main", "open_tun"]

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
"""From linux/if_tun.h."""

PACKET_LIMIT = 65_535

HELD_LIMIT = 50_000
"""Most packets held at once: 600 Mbit/s of full packets for one second; more are dropped."""

READ_BATCH = 32
"""Packets read before the due ones are looked at again: keeps departures punctual under load."""


def open_tun(name: str) -> int:
    """Create the TUN interface ``name`` in the current namespace and return its descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    request = struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI)
    fcntl.ioctl(descriptor, TUNSETIFF, request)
    return descriptor


def age_packet(packet: bytearray, hops: int) -> bool:
    """Take ``hops`` off the packet's TTL in place; return False if it expires or is not IP."""
    version = packet[0] >> 4 if len(packet) >= 20 else 0
    if version == 4:
        if packet[8] <= hops:
            return False
        packet[8] -= hops
        # RFC 1624: the TTL is the high byte of its checksum word, so the sum grows by hops << 8.
        checksum = (packet[10] << 8 | packet[11]) + (hops << 8)
        checksum = (checksum & 0xFFFF) + (checksum >> 16)
        packet[10], packet[11] = checksum >> 8, checksum & 0xFF
        return True
    if version == 6 and packet[7] > hops:
        packet[7] -= hops
        return True
    return False


def _route(descriptor: int, delay: float, hops: int, lost: random.Random, loss: float) -> None:
    """Carry packets for ever."""
    held: deque[tuple[float, bytearray]] = deque()
    clock = time.monotonic
    while True:
        while held and held[0][0] <= clock():
            # A packet that the kernel does not want back (no route, no buffer) is a lost packet.
            with contextlib.suppress(OSError):
                os.write(descriptor, held.popleft()[1])
        wait = max(0.0, held[0][0] - clock()) if held else None
        if not select.select([descriptor], [], [], wait)[0]:
            continue
        for _ in range(READ_BATCH):
            try:
                packet = bytearray(os.read(descriptor, PACKET_LIMIT))
            except BlockingIOError:
                break
            if len(held) >= HELD_LIMIT or (loss and lost.random() < loss):
                continue
            if age_packet(packet, hops):
                held.append((clock() + delay, packet))


def main() -> None:
    """Create the interface, say ``ready`` on standard output, and route until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interface", required=True)
    parser.add_argument("--delay", type=float, default=0.0, help="one way, seconds")
    parser.add_argument("--hops", type=int, default=0, help="taken off the TTL")
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="of the losses")
    options = parser.parse_args()
    descriptor = open_tun(options.interface)
    # A network does not wait for the CPU: without real-time priority a busy machine adds its own
    # delay. The loop blocks whenever it is idle, so it starves nobody.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    gc.disable()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    _route(descriptor, options.delay, options.hops, random.Random(options.seed), options.loss)


if __name__ == "__main__":
    main()
