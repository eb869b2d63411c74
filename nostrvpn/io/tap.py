"""STUN on WireGuard's own UDP port: raw sockets beside the socket that owns the port.

The owner (kernel WireGuard or a userspace one) gets every packet too and drops what is not its own;
we get copies of what has STUN's cookie, and send with the port as our source. So the NAT mapping
that was checked is the one that carries data. Raw sockets sit behind the host's firewall: a packet
that it drops is not seen here either, as it should be (AF_PACKET would see it).

While a path through a NAT with unpredictable ports is searched, packets leave from other source
ports too (a field of a header, not a socket), and ``listen_on`` takes what comes to those.

No CAP_NET_RAW, no IPv6, no route: each is a value or a SystemRefused at ``open``; ``send`` returns
the reason and never raises for a network that cannot be reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import SystemRefused
from nostrvpn.io.source_address import ask_source
from nostrvpn.stun.binding import looks_like_stun, render_query

__all__ = ["Deliver", "Tap"]

Deliver = Callable[[bytes, Endpoint, IPAddress | None, int | None], None]
"""Takes data, source, destination address, and destination port (None: WireGuard's own)."""

# Linux ABI (asm-generic/socket.h, linux/in.h, linux/in6.h); Python names only some of them.
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33
SO_RXQ_OVFL = 40
IP_PKTINFO = 8
IP_TTL = 2
IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
# DF on the packet, and the path MTU that the kernel remembers is not asked: ip(7).
PMTUDISC_PROBE = 3
UDP_HEADER = struct.Struct("!HHHH")
COOKIE = 0x2112A442
# A burst of answers from a hundred peers and then some; losing probe answers looks like path loss.
RECEIVE_BUFFER = 1 << 20
# STUN packets are below 600 bytes; more is read only to be told apart.
PACKET_LIMIT = 2048
ANCILLARY_LIMIT = 256
# Packets taken per wake-up, so that a flood leaves the loop time for everything else.
BATCH = 64
# Destinations whose source address is remembered: more than a mesh checks at a time.
MAX_ROUTES = 256
SELF_TEST_WAIT = 0.1

_Instruction = tuple[int, int, int, int]
_REJECT: tuple[_Instruction, ...] = ((0x06, 0, 0, 0),)


def _filter_v4(port: int, more: range) -> tuple[_Instruction, ...]:
    """Accept UDP to ``port`` or to ``more`` with STUN's cookie; data begins at the IP header."""
    return (
        (0x28, 0, 0, 6),  # ldh [6]: flags and fragment offset
        (0x45, 8, 0, 0x1FFF),  # not the first fragment: reject
        (0xB1, 0, 0, 0),  # x = length of the IP header, options included
        (0x48, 0, 0, 2),  # ldh [x+2]: UDP destination port
        (0x15, 2, 0, port),
        (0x35, 0, 4, more.start),  # jge
        (0x25, 3, 0, more.stop - 1),  # jgt
        (0x40, 0, 0, 12),  # ld [x+12]: STUN cookie
        (0x15, 0, 1, COOKIE),
        (0x06, 0, 0, 0xFFFFFFFF),
        (0x06, 0, 0, 0),
    )


def _filter_v6(port: int, more: range) -> tuple[_Instruction, ...]:
    """The same; data begins at the UDP header, as the kernel has walked the extension headers."""
    return (
        (0x28, 0, 0, 2),
        (0x15, 2, 0, port),
        (0x35, 0, 4, more.start),
        (0x25, 3, 0, more.stop - 1),
        (0x20, 0, 0, 12),
        (0x15, 0, 1, COOKIE),
        (0x06, 0, 0, 0xFFFFFFFF),
        (0x06, 0, 0, 0),
    )


def _attach(sock: socket.socket, program: tuple[_Instruction, ...]) -> None:
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    fprog = struct.pack("HP", len(program), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)


def _attach_ports(sock: socket.socket, family: int, port: int, more: range) -> None:
    if not more:
        more = range(port, port + 1)
    render = _filter_v4 if family == socket.AF_INET else _filter_v6
    _attach(sock, render(port, more))


def _open_raw(family: int, port: int, mark: int, more: range = range(0)) -> socket.socket:
    """Open a raw socket that yields only what its filter accepts, from its first packet on."""
    sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP)
    try:
        sock.setblocking(False)
        # Between socket() and the filter everything is queued, data packets too: shut, drain, open.
        _attach(sock, _REJECT)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.recv(1)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_CHECKSUM, 6)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        _attach_ports(sock, family, port, more)
    except BaseException:
        sock.close()
        raise
    return sock


def _checksum(source: IPv4Address, destination: IPv4Address, segment: bytes) -> int:
    """Return the UDP checksum over IPv4's pseudo header (RFC 768)."""
    pseudo = source.packed + destination.packed + struct.pack("!HH", 17, len(segment))
    data = pseudo + segment + b"\0" * (len(segment) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF) or 0xFFFF


@dataclass(frozen=True, slots=True)
class _Packet:
    data: bytes
    destination: Endpoint
    ttl: int | None
    source_ip: IPAddress | None
    source_port: int


@contextlib.contextmanager
def _unfragmented(sock: socket.socket, family: int) -> Iterator[None]:
    """Set DF, whatever is known of the path's MTU, on what is sent inside the block."""
    option = (
        (socket.IPPROTO_IP, IP_MTU_DISCOVER)
        if family == socket.AF_INET
        else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
    )
    before = sock.getsockopt(*option)
    sock.setsockopt(*option, PMTUDISC_PROBE)
    try:
        yield
    finally:
        sock.setsockopt(*option, before)


def _send_v6(sock: socket.socket, packet: _Packet) -> None:
    header = UDP_HEADER.pack(packet.source_port, packet.destination.port, 8 + len(packet.data), 0)
    ancillary = []
    if packet.source_ip is not None:
        info = struct.pack("=16si", packet.source_ip.packed, 0)
        ancillary.append((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info))
    if packet.ttl is not None:
        hops = struct.pack("=i", packet.ttl)
        ancillary.append((socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT, hops))
    sock.sendmsg([header, packet.data], ancillary, 0, (str(packet.destination.ip), 0))


class Tap:
    """Sends and receives STUN on UDP ``port``; ``mark`` is WireGuard's fwmark.

    ``counters``: "received", "sent", and drops by reason. ``self_test_result`` is None if packets
    were seen to come through, else the reason why not, in words.
    """

    def __init__(self, port: int, mark: int, deliver: Deliver) -> None:
        self._port = port
        self._more = range(0)
        self._mark = mark
        self._deliver = deliver
        self._sockets: dict[int, socket.socket] = {}
        self._routes: OrderedDict[IPv4Address, IPAddress] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.counters: Counter[str] = Counter()
        self.self_test_result: str | None = None

    def open(self) -> None:
        """Open the sockets on the running loop; SystemRefused if the system forbids raw sockets."""
        self._loop = asyncio.get_running_loop()
        try:
            self._sockets[socket.AF_INET] = self._open_one(socket.AF_INET)
            try:
                self._sockets[socket.AF_INET6] = self._open_one(socket.AF_INET6)
            except PermissionError:
                raise
            except OSError:
                self.counters["no_ipv6"] += 1
            self.self_test_result = _self_test(self._mark)
        except OSError as exc:
            self.close()
            raise SystemRefused(
                f"the system refuses raw sockets on port {self._port}: {exc.strerror}",
                "Run as root, or give the service CAP_NET_RAW and CAP_NET_ADMIN.",
            ) from exc
        for family, sock in self._sockets.items():
            self._loop.add_reader(sock, self._readable, family, sock)

    def _open_one(self, family: int) -> socket.socket:
        return _open_raw(family, self._port, self._mark, self._more)

    def listen_on(self, ports: range | None) -> None:
        """Also take STUN that comes to these ports (a range without gaps); None: no more."""
        self._more = ports or range(0)
        for family, sock in self._sockets.items():
            _attach_ports(sock, family, self._port, self._more)

    def close(self) -> None:
        """Close the sockets; a second call does nothing."""
        for sock in self._sockets.values():
            if self._loop is not None:
                self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()

    def routes_changed(self) -> None:
        """Forget which source address leads where."""
        self._routes.clear()

    def send(
        self,
        data: bytes,
        destination: Endpoint,
        ttl: int | None = None,
        source_ip: IPAddress | None = None,
        *,
        source_port: int | None = None,
        dont_fragment: bool = False,
    ) -> str | None:
        """Send ``data`` from our port, or ``source_port``; return None, or why it could not be sent.

        ``dont_fragment``: the packet arrives whole or not at all, and one that is larger than the
        interface's MTU is refused with EMSGSIZE (RFC 8899 section 4.1).
        """
        packet = _Packet(data, destination, ttl, source_ip, source_port or self._port)
        family = socket.AF_INET if destination.ip.version == 4 else socket.AF_INET6
        sock = self._sockets.get(family)
        reason: str | None = None
        if sock is None:
            reason = "no IPv6" if self._sockets else "closed"
        elif source_ip is not None and source_ip.version != destination.ip.version:
            reason = "source of the other family"
        else:
            send = self._send_v4 if family == socket.AF_INET else _send_v6
            try:
                with _unfragmented(sock, family) if dont_fragment else contextlib.nullcontext():
                    send(sock, packet)
            except OSError as exc:
                reason = errno.errorcode.get(exc.errno or 0, "unknown error")
        self.counters["sent" if reason is None else f"send {reason}"] += 1
        return reason

    def _send_v4(self, sock: socket.socket, packet: _Packet) -> None:
        ip, port = packet.destination.ip, packet.destination.port
        assert isinstance(ip, IPv4Address)
        source = packet.source_ip or self._source(ip)
        assert isinstance(source, IPv4Address)
        header = UDP_HEADER.pack(packet.source_port, port, 8 + len(packet.data), 0)
        checksum = _checksum(source, ip, header + packet.data)
        header = UDP_HEADER.pack(packet.source_port, port, 8 + len(packet.data), checksum)
        # The checksum covers the source address, so the kernel must not choose another one.
        info = struct.pack("=i4s4s", 0, source.packed, b"\0\0\0\0")
        ancillary = [(socket.IPPROTO_IP, IP_PKTINFO, info)]
        if packet.ttl is not None:
            ancillary.append((socket.IPPROTO_IP, IP_TTL, struct.pack("=i", packet.ttl)))
        try:
            sock.sendmsg([header, packet.data], ancillary, 0, (str(ip), 0))
        except OSError:
            # The address may be gone: ask for the route next time.
            self._routes.pop(ip, None)
            raise

    def _source(self, ip: IPv4Address) -> IPAddress:
        """Return the source address that the kernel takes towards ``ip``, asked once."""
        known = self._routes.get(ip)
        if known is None:
            known = self._routes[ip] = ask_source(ip, self._mark)
            if len(self._routes) > MAX_ROUTES:
                self._routes.popitem(last=False)
        return known

    def _readable(self, family: int, sock: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                packet, ancillary, flags, address = sock.recvmsg(PACKET_LIMIT, ANCILLARY_LIMIT)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                # Errors of earlier sends surface here: they say nothing of this socket.
                self.counters[f"receive {errno.errorcode.get(exc.errno or 0, 'error')}"] += 1
                return
            for level, kind, value in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, SO_RXQ_OVFL):
                    self.counters["overflowed"] = struct.unpack("=I", value[:4])[0]
            if flags & socket.MSG_TRUNC:
                self.counters["oversized"] += 1
            elif family == socket.AF_INET:
                self._take_v4(packet)
            else:
                self._take_v6(packet, ancillary, address[0])
            if not self._sockets:
                return

    def _take_v4(self, packet: bytes) -> None:
        start = (packet[0] & 0x0F) * 4 if packet else 0
        if start < 20 or len(packet) < start + 8:
            self.counters["truncated"] += 1
            return
        source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        self._take_udp(packet[start:], source, destination)

    def _take_v6(
        self, packet: bytes, ancillary: list[tuple[int, int, bytes]], address: str
    ) -> None:
        source = IPv6Address(address.partition("%")[0])
        if source.is_link_local:
            self.counters["link_local"] += 1
            return
        destination = None
        for level, kind, value in ancillary:
            if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                destination = IPv6Address(value[:16])
        self._take_udp(packet, source, destination)

    def _take_udp(self, segment: bytes, source: IPAddress, destination: IPAddress | None) -> None:
        if len(segment) < UDP_HEADER.size:
            self.counters["truncated"] += 1
            return
        source_port, port, length, _ = UDP_HEADER.unpack_from(segment)
        if not source_port or (port != self._port and port not in self._more):
            self.counters["wrong_port"] += 1
        elif not UDP_HEADER.size <= length <= len(segment):
            self.counters["truncated"] += 1
        elif not looks_like_stun(data := segment[UDP_HEADER.size : length]):
            self.counters["malformed"] += 1
        else:
            self.counters["received"] += 1
            to = None if port == self._port else port
            self._deliver(data, Endpoint(source, source_port), destination, to)


def _self_test(mark: int) -> str | None:
    """Send a STUN packet over loopback past a filter of its own; return why it was not seen."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as owner:
        try:
            owner.bind(("127.0.0.1", 0))
            port = owner.getsockname()[1]
            with contextlib.closing(_open_raw(socket.AF_INET, port, mark)) as raw:
                owner.sendto(render_query(os.urandom(12)), ("127.0.0.1", port))
                if select.select([raw], [], [], SELF_TEST_WAIT)[0]:
                    return None
        except OSError as exc:
            return f"the raw socket test could not be run: {exc.strerror}"
    return "a raw socket sees no packets here: a firewall on loopback, or a sandbox"
