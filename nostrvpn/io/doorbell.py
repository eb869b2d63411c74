"""The doorbell: what WireGuard is told as the endpoint of a peer that sleeps.

A sleeping peer has no path, and costs nothing: no checks, no keepalives. Its endpoint is an address
in 127.78/16 on one socket of ours, shared by all sleeping peers. WireGuard's first packet to it, a
handshake initiation, says that somebody wants to talk to the peer: it rings.

WireGuard repeats an initiation only after 5 s, whatever its endpoint becomes meanwhile. So the last
one of each peer is kept, and ``take`` gives it back once there is a path: sent there from WireGuard's
port (the tap does that), the handshake completes at once. A peer that has not slept for long still
has a session, and the first packets for it are sealed already: some of those are kept as well.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import SystemRefused

__all__ = ["Doorbell"]

# Linux ABI (linux/in.h); Python names it only from 3.14 on.
IP_PKTINFO: Final = 8
PKTINFO: Final = struct.Struct("=i4s4s")
# Ours: 127.78/16, without its first address.
FIRST: Final = int(IPv4Address("127.78.0.1"))
MAX_PEERS: Final = 0xFFFE
# Spec (WireGuard, section 5.4.2): type 1, three zeros, 148 bytes in all.
INITIATION: Final = b"\1\0\0\0"
INITIATION_BYTES: Final = 148
# Spec (section 6.1): REKEY_TIMEOUT. After it WireGuard sends a new one, and the kept one is void.
REKEY_TIMEOUT: Final = 5.0
# Spec (section 5.4.6): type 4, and the size of an empty packet, a keepalive, which nobody waits for.
DATA: Final = b"\4\0\0\0"
KEEPALIVE_BYTES: Final = 32
# Ours: sealed packets kept for a peer.
MAX_KEPT: Final = 32
# Ours: one ring in this time; below REKEY_TIMEOUT, so that every repetition rings.
RING_SECONDS: Final = 4.0
RECEIVE_BUFFER: Final = 256 * 1024
PACKET_LIMIT: Final = 2048
ANCILLARY_LIMIT: Final = 64
BATCH: Final = 64


@dataclass(slots=True)
class _Sleeper:
    peer: str
    rang_at: float | None = None
    initiation: bytes = b""
    initiated_at: float = 0.0
    kept: deque[tuple[float, bytes]] = field(default_factory=lambda: deque(maxlen=MAX_KEPT))


class Doorbell:
    """One socket for all sleeping peers; ``on_ring(peer)`` is called when WireGuard wants one.

    ``counters``: "rings", "initiations", "kept" (sealed packets), "swallowed" (others), "stranger"
    and "nobody" (dropped: not from WireGuard's port, to an address of no peer).
    """

    def __init__(self, wireguard_port: int, on_ring: Callable[[str], None]) -> None:
        self.wireguard_port = wireguard_port
        self._on_ring = on_ring
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sleepers: dict[int, _Sleeper] = {}
        self._addresses: dict[str, int] = {}
        self._next = FIRST
        self.counters: Counter[str] = Counter()

    @property
    def is_open(self) -> bool:
        """Whether it can ring."""
        return self._socket is not None

    @property
    def peers(self) -> tuple[str, ...]:
        """The peers that have an endpoint here."""
        return tuple(self._addresses)

    def open(self) -> None:
        """Bind on the running loop; SystemRefused if the system does not let us."""
        self._loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            # On any address, as the peers have one each; what comes by a cable cannot get here.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            sock.bind(("0.0.0.0", 0))
        except OSError as exc:
            sock.close()
            raise SystemRefused(f"no socket for sleeping peers: {exc.strerror}") from exc
        self._socket = sock
        self._loop.add_reader(sock, self._readable)

    def close(self) -> None:
        """Close the socket and forget all peers; a second call does nothing."""
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        self._sleepers.clear()
        self._addresses.clear()

    def endpoint(self, peer: str) -> Endpoint:
        """Return the endpoint that WireGuard shall have for ``peer``; the same until ``forget``.

        SystemRefused if it is closed, or if too many peers sleep.
        """
        if self._socket is None:
            raise SystemRefused("no endpoint for a sleeping peer: the doorbell is closed")
        address = self._addresses.get(peer)
        if address is None:
            if len(self._sleepers) >= MAX_PEERS:
                raise SystemRefused(f"more than {MAX_PEERS} peers sleep")
            while self._next in self._sleepers:
                self._advance()
            address = self._next
            self._advance()  # not the one just freed: late packets to it are another peer's
            self._addresses[peer] = address
            self._sleepers[address] = _Sleeper(peer)
        return Endpoint(IPv4Address(address), self._socket.getsockname()[1])

    def take(self, peer: str) -> list[bytes]:
        """Return what is to be sent to the peer's real endpoint, once, as far as it is still good.

        That is the handshake initiation that WireGuard sent last, and packets of a session of before.
        """
        sleeper = self._sleepers.get(self._addresses.get(peer, 0))
        if sleeper is None or self._loop is None:
            return []
        good_since = self._loop.time() - REKEY_TIMEOUT
        packets = [data for at, data in sleeper.kept if at > good_since]
        if sleeper.initiation and sleeper.initiated_at > good_since:
            packets.insert(0, sleeper.initiation)
        sleeper.initiation = b""
        sleeper.kept.clear()
        return packets

    def forget(self, peer: str) -> None:
        """``peer`` is awake or gone: its endpoint is nobody's any more."""
        address = self._addresses.pop(peer, None)
        if address is not None:
            del self._sleepers[address]

    def _advance(self) -> None:
        self._next = FIRST + (self._next - FIRST + 1) % MAX_PEERS

    def _readable(self) -> None:
        for _ in range(BATCH):
            if self._socket is None:
                return
            try:
                data, ancillary, _, source = self._socket.recvmsg(PACKET_LIMIT, ANCILLARY_LIMIT)
            except OSError:
                return
            address = 0
            for level, kind, value in ancillary:
                if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
                    address = int.from_bytes(PKTINFO.unpack_from(value)[2], "big")
            if source != ("127.0.0.1", self.wireguard_port):
                self.counters["stranger"] += 1
            elif (sleeper := self._sleepers.get(address)) is None:
                self.counters["nobody"] += 1
            else:
                self._take(sleeper, data)

    def _take(self, sleeper: _Sleeper, data: bytes) -> None:
        assert self._loop is not None
        now = self._loop.time()
        if len(data) == INITIATION_BYTES and data.startswith(INITIATION):
            sleeper.initiation, sleeper.initiated_at = data, now
            self.counters["initiations"] += 1
        elif len(data) > KEEPALIVE_BYTES and data.startswith(DATA):
            sleeper.kept.append((now, data))
            self.counters["kept"] += 1
        else:
            self.counters["swallowed"] += 1
            return
        if sleeper.rang_at is None or now - sleeper.rang_at >= RING_SECONDS:
            sleeper.rang_at = now
            self.counters["rings"] += 1
            self._on_ring(sleeper.peer)
