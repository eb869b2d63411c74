"""The lent UDP ports: sockets, what strangers ask at them, and forwarding in user space.

User space forwards whatever the kernel does not (``nostrvpn/io/relay_table.py``): without nftables,
between IPv4 and IPv6, to and from a WebSocket, and until the kernel has taken over. With UDP_GRO and
UDP_SEGMENT (udp(7)) a system call moves up to 64 datagrams. What may pass, how much, and what is
counted is the same as in the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Protocol

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.relaying.events import Channel, End
from nostrvpn.stun.binding import looks_like_stun

__all__ = ["ChannelSender", "RelayPorts"]

# Linux ABI (linux/udp.h, asm-generic/socket.h, linux/in.h); Python names only some of them.
SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104
SO_RCVBUFFORCE = 33
IP_PKTINFO = 8
IP_MTU_DISCOVER = 10
IP_PMTUDISC_DONT = 0
# A GRO packet is at most this long; the kernel sends at most so many datagrams of one call.
PACKET_LIMIT = 65535
ANCILLARY_LIMIT = 256
# As in the kernel's table: WireGuard's four messages, and STUN's cookie (RFC 8489 section 5).
WIREGUARD = frozenset(bytes((kind, 0, 0, 0)) for kind in (1, 2, 3, 4))
COOKIE = bytes.fromhex("2112a442")
DATAGRAM_LIMIT = 1500
# 20 ms at 400 Mbit/s, and one full GRO packet.
BURST_BYTES = 1 << 20
RECEIVE_BUFFER = 4 << 20
# Packets (each up to 64 datagrams) taken per wake-up, so that other work gets its turn.
BATCH = 32
# What a datagram costs besides its payload, so that counters mean the same as the kernel's.
HEADERS = {4: 28, 6: 48}


class ChannelSender(Protocol):
    """Whoever has the WebSockets."""

    def send_frame(self, number: int, data: bytes) -> bool:
        """Send one datagram by a WebSocket; False if it is gone, or has too much to send."""
        ...


Deliver = Callable[[int, bytes, Endpoint, IPAddress | None], None]
_Address = tuple[str, int]


class _Bucket:
    """Bytes that may pass: ``rate`` a second, and a burst."""

    __slots__ = ("_at", "_level", "_rate")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._level = float(BURST_BYTES)
        self._at = time.monotonic()

    def take(self, size: int) -> bool:
        now = time.monotonic()
        self._level = min(BURST_BYTES, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < size:
            return False
        self._level -= size
        return True


@dataclass(slots=True)
class _Flow:
    """One direction of a pair: where to, and what is left of its share."""

    port: int
    overhead: int
    bucket: _Bucket
    channel: int | None = None
    sock: socket.socket | None = None
    address: _Address = ("", 0)
    info: tuple[int, int, bytes] | None = None


class RelayPorts:
    """The sockets of all lent ports, on the running loop. ``mark`` is WireGuard's fwmark.

    ``deliver(port, data, source, local_ip)`` gets STUN messages of addresses that are not forwarded.
    ``drops`` counts datagrams by reason, ``carried`` IP bytes by port since it was opened.
    """

    def __init__(
        self, mark: int, mbit_per_s: int, deliver: Deliver, channels: ChannelSender
    ) -> None:
        self._mark = mark
        self._rate = mbit_per_s * 1e6 / 8
        self._deliver = deliver
        self._channels = channels
        self._sockets: dict[int, dict[int, socket.socket]] = {}
        self._flows: dict[int, dict[_Address, _Flow]] = {}
        self._from_channel: dict[int, _Flow] = {}
        self.drops: Counter[str] = Counter()
        self.carried: Counter[int] = Counter()

    def open(self, port: int) -> bool:
        """Take ``port`` on IPv4 and, where there is IPv6, on IPv6; False if somebody has it."""
        loop = asyncio.get_running_loop()
        found: dict[int, socket.socket] = {}
        try:
            found[4] = _open(socket.AF_INET, port, self._mark)
            try:
                found[6] = _open(socket.AF_INET6, port, self._mark)
            except OSError as exc:
                if exc.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
        except OSError as exc:
            for sock in found.values():
                sock.close()
            self.drops[f"open {errno.errorcode.get(exc.errno or 0, 'error')}"] += 1
            return False
        self._sockets[port] = found
        self._flows[port] = {}
        for version, sock in found.items():
            loop.add_reader(sock, self._readable, port, version, sock)
        return True

    def close(self, port: int) -> None:
        """Give ``port`` back; one that is not open is fine."""
        self.unforward(port)
        for sock in self._sockets.pop(port, {}).values():
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._flows.pop(port, None)
        self.carried.pop(port, None)

    def close_all(self) -> None:
        """Close every port."""
        for port in tuple(self._sockets):
            self.close(port)

    def forward(self, port: int, a: End, b: End) -> None:
        """Forward between two ends of an open port, instead of any others."""
        self.unforward(port)
        for near, far in ((a, b), (b, a)):
            flow = self._flow(port, far)
            if isinstance(near.source, Channel):
                self._from_channel[near.source.number] = flow
            else:
                self._flows[port][_address(near.source)] = flow

    def unforward(self, port: int) -> None:
        """Forward nothing at ``port`` any more."""
        self._flows.get(port, {}).clear()
        for number, flow in tuple(self._from_channel.items()):
            if flow.port == port:
                del self._from_channel[number]

    def send(self, port: int, data: bytes, to: Endpoint, local_ip: IPAddress | None) -> bool:
        """Send one datagram from a lent port, out of ``local_ip`` if it is given."""
        sock = self._sockets.get(port, {}).get(to.ip.version)
        if sock is None:
            return False
        info = _packet_info(local_ip)
        try:
            sock.sendmsg([data], [info] if info else [], 0, _address(to))
        except OSError as exc:
            self._count_error(exc, 1)
            return False
        return True

    def channel_frame(self, number: int, data: bytes) -> bool:
        """Take one frame of a WebSocket; False if it is not forwarded: then it is a request."""
        flow = self._from_channel.get(number)
        if flow is None:
            return False
        self._pass(flow, data, len(data))
        return True

    def _flow(self, port: int, to: End) -> _Flow:
        bucket = _Bucket(self._rate)
        if isinstance(to.source, Channel):
            return _Flow(port, HEADERS[4], bucket, channel=to.source.number)
        version = to.source.ip.version
        return _Flow(
            port,
            HEADERS[version],
            bucket,
            sock=self._sockets[port].get(version),
            address=_address(to.source),
            info=_packet_info(to.local_ip),
        )

    def _readable(self, port: int, version: int, sock: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                data, ancillary, _, address = sock.recvmsg(PACKET_LIMIT, ANCILLARY_LIMIT)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                self._count_error(exc, 1)  # of an earlier packet: somebody's port is closed
                return
            flow = self._flows[port].get(address[:2])
            if flow is not None:
                self._pass(flow, data, _segment_size(ancillary) or len(data))
                continue
            self._from_stranger(port, version, data, ancillary, address)
            if port not in self._sockets:
                return  # what it asked for closed the port

    def _from_stranger(
        self,
        port: int,
        version: int,
        data: bytes,
        ancillary: list[tuple[int, int, bytes]],
        address: Any,
    ) -> None:
        source = Endpoint(ip_address(address[0].partition("%")[0]), address[1])
        local_ip = _local_ip(ancillary, version)
        for datagram in _split(data, _segment_size(ancillary) or len(data)):
            if not looks_like_stun(datagram):
                self.drops["stranger"] += 1
            elif not source.port or source.ip.is_link_local or source.ip.is_multicast:
                self.drops["bad_source"] += 1
            else:
                self._deliver(port, datagram, source, local_ip)

    def _pass(self, flow: _Flow, data: bytes, size: int) -> None:
        """Forward ``data``, which is datagrams of ``size`` bytes each but the last."""
        if not _is_passable(data, size):
            good = [one for one in _split(data, size) if _is_passable(one, len(one))]
            self.drops["unshaped"] += _count(data, size) - len(good)
            for one in good:
                self._pass(flow, one, len(one))
            return
        number = _count(data, size)
        weight = len(data) + number * flow.overhead
        if not flow.bucket.take(weight):
            self.drops["over_rate"] += number
        elif flow.channel is not None:
            for one in _split(data, size):
                if self._channels.send_frame(flow.channel, one):
                    self.carried[flow.port] += len(one) + flow.overhead
                else:
                    self.drops["channel"] += 1
        elif flow.sock is None:
            self.drops["no_family"] += number
        elif self._send_batch(flow, data, size, number):
            self.carried[flow.port] += weight

    def _send_batch(self, flow: _Flow, data: bytes, size: int, number: int) -> bool:
        assert flow.sock is not None
        ancillary = [flow.info] if flow.info else []
        if number > 1:
            ancillary = [*ancillary, (SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))]
        try:
            flow.sock.sendmsg([data], ancillary, 0, flow.address)
        except OSError as exc:
            # No hardware or no kernel for it, or segments above the MTU: one by one then.
            if number > 1 and exc.errno in (errno.EIO, errno.EINVAL, errno.EMSGSIZE):
                sent = [self._send_batch(flow, one, len(one), 1) for one in _split(data, size)]
                return any(sent)
            self._count_error(exc, number)
            return False
        return True

    def _count_error(self, exc: OSError, number: int) -> None:
        self.drops[errno.errorcode.get(exc.errno or 0, "error")] += number


def _open(family: int, port: int, mark: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        with contextlib.suppress(OSError):  # kernels before 5.0
            sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            # WireGuard's packets may be fragmented, so they may be on the second half too.
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        sock.bind(("" if family == socket.AF_INET else "::", port))
    except BaseException:
        sock.close()
        raise
    return sock


def _address(endpoint: Endpoint) -> _Address:
    return str(endpoint.ip), endpoint.port


def _packet_info(local_ip: IPAddress | None) -> tuple[int, int, bytes] | None:
    if local_ip is None:
        return None
    if local_ip.version == 4:
        info = struct.pack("=i4s4s", 0, local_ip.packed, bytes(4))
        return socket.IPPROTO_IP, IP_PKTINFO, info
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16si", local_ip.packed, 0)


def _local_ip(ancillary: list[tuple[int, int, bytes]], version: int) -> IPAddress | None:
    for level, kind, value in ancillary:
        if version == 4 and (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            return IPv4Address(value[4:8])
        if version == 6 and (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return IPv6Address(value[:16])
    return None


def _segment_size(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the size of the datagrams that the kernel has put together, 0 for a single one."""
    for level, kind, value in ancillary:
        if (level, kind) == (SOL_UDP, UDP_GRO):
            size: int = struct.unpack("=i", value[:4])[0]
            return size
    return 0


def _split(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)] if data else [data]


def _count(data: bytes, size: int) -> int:
    return -(-len(data) // size) if data else 1


def _is_passable(data: bytes, size: int) -> bool:
    """Say whether each datagram is WireGuard's or STUN, and of a length that a link has."""
    if size > DATAGRAM_LIMIT or not data:
        return False
    return all(
        data[at : at + 4] in WIREGUARD or data[at + 4 : at + 8] == COOKIE
        for at in range(0, len(data), size)
    )
