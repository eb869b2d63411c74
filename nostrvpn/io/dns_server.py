"""Our name server: for programs on this host, on a loopback address; and for an exit's guests.

A loopback address of its own, since it can be reached by nobody else, needs no route, and refuses at
once when the daemon is gone. ``offer_at`` adds our addresses of the mesh, for those who cannot use it,
and for guests: on the tunnel's interface alone, with limits of their own.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import SystemRefused

__all__ = ["DnsServer", "Reply"]

# Several nodes on one host take one each.
_ADDRESSES = tuple(ip_address(f"127.118.112.{number}") for number in range(1, 9))
_PORT = 53
# Where something listens on port 53 of every address; systemd-resolved can be told the port.
_OTHER_PORT = 53053
# Answers a second and at once: far beyond what programs ask (a browser's start is some 100), and a
# tenth of one processor.
RATE, BURST = 200.0, 400.0
# RFC 7766: short idle time; resolvers use TCP after a truncated answer, one question each.
MAX_CONNECTIONS = 32
IDLE_S = 5.0
MAX_QUESTIONS = 64
_MAX_QUERY = 4096

# For all guests together, and for one of them.
MAX_GUEST_CONNECTIONS, MAX_OF_ONE_GUEST = 128, 4

# Now, or later; None: nothing is said.
Reply = bytes | None | Awaitable[bytes | None]
Answer = Callable[[bytes, bool], Reply]
GuestAnswer = Callable[[bytes, IPAddress, bool], Reply]
_Respond = Callable[[bytes, Any, bool], Reply]
_NOWHERE: tuple[tuple[IPAddress, ...], int, GuestAnswer | None, int] = ((), 0, None, _PORT)

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Entrance:
    """Sockets that are answered in the same way, and who is connected."""

    respond: _Respond
    most: int
    of_one: int
    transports: list[asyncio.DatagramTransport] = field(default_factory=list)
    servers: list[asyncio.Server] = field(default_factory=list)
    writers: dict[asyncio.StreamWriter, str] = field(default_factory=dict)

    def close(self) -> None:
        for transport in self.transports:
            transport.close()
        for server in self.servers:
            server.close()
        for writer in self.writers:
            writer.close()
        self.transports, self.servers = [], []


class DnsServer:
    """Serves ``answer(query, by_tcp)``. ``counters`` says what was answered and dropped, and why."""

    def __init__(self, answer: Answer, clock: Callable[[], float] = time.monotonic) -> None:
        self._answer = answer
        self._clock = clock
        self._local = _Entrance(
            lambda query, source, tcp: self.respond(query, source, tcp=tcp),
            MAX_CONNECTIONS,
            MAX_CONNECTIONS,
        )
        self._mesh = _Entrance(self._respond_mesh, MAX_GUEST_CONNECTIONS, MAX_OF_ONE_GUEST)
        self._mesh_as = _NOWHERE
        self._guests: GuestAnswer | None = None
        self._allowance, self._counted_at = BURST, 0.0
        self._own: frozenset[IPAddress] = frozenset()
        self._answering: set[asyncio.Future[bytes | None]] = set()
        self.counters: Counter[str] = Counter()

    async def start(self, *, port: int = _PORT, other_port: int = _OTHER_PORT) -> Endpoint:
        """Listen on the first loopback address that is free; return where. SystemRefused if none is."""
        refused: OSError | None = None
        for number in (port, other_port):
            for address in _ADDRESSES:
                try:
                    await self._listen(self._local, address, number)
                except OSError as exc:
                    refused = exc
                    if exc.errno == errno.EADDRINUSE:
                        continue
                    break
                return Endpoint(address, number)
        assert refused is not None
        raise SystemRefused(
            f"no name server can be started on port {port}: {refused.strerror or refused}",
            "see which program has it: ss -lnup sport = :53",
        ) from refused

    async def offer_at(
        self,
        addresses: Sequence[IPAddress],
        interface: str,
        *,
        guests: GuestAnswer | None = None,
        port: int = _PORT,
    ) -> None:
        """Listen on our own addresses in the mesh, on their interface alone; none: no more.

        This host's programs are answered there as everywhere, others by ``guests(query, asker,
        by_tcp)``, which decides who is. Does nothing if it is so already; SystemRefused where the port
        is taken.
        """
        try:
            index = socket.if_nametoindex(interface) if addresses else 0
            wanted = (tuple(addresses), index, guests, port)
            if wanted == self._mesh_as:
                return
            self._leave_mesh()
            await asyncio.sleep(0)  # transports close with the next turn
            self._guests, self._own = guests, frozenset(addresses)
            for address in addresses:
                # What this host sends to its own addresses counts as come in by their interface.
                await self._listen(self._mesh, address, port, interface)
        except OSError as exc:
            self._leave_mesh()
            where = ", ".join(map(str, addresses))
            text = f"no name server can be started at {where}: {exc.strerror or exc}"
            raise SystemRefused(text) from exc
        self._mesh_as = wanted

    def _leave_mesh(self) -> None:
        self._mesh.close()
        self._guests, self._own, self._mesh_as = None, frozenset(), _NOWHERE

    async def stop(self) -> None:
        """Close everything."""
        self._local.close()
        self._leave_mesh()
        for answering in self._answering:
            answering.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
        await asyncio.sleep(0)  # for the transports to close

    async def _listen(
        self,
        entrance: _Entrance,
        address: IPAddress,
        port: int,
        device: str = "",
    ) -> None:
        loop = asyncio.get_running_loop()
        stream = _bound(socket.SOCK_STREAM, Endpoint(address, port), device)
        try:
            server = await asyncio.start_server(
                lambda reader, writer: self._serve(entrance, reader, writer),
                sock=stream,
                limit=_MAX_QUERY,
            )
        except BaseException:
            stream.close()
            raise
        try:
            datagrams = _bound(socket.SOCK_DGRAM, Endpoint(address, port), device)
            try:
                transport, _ = await loop.create_datagram_endpoint(
                    lambda: _Datagrams(self, entrance), sock=datagrams
                )
            except BaseException:
                datagrams.close()
                raise
        except BaseException:
            server.close()
            raise
        entrance.servers.append(server)
        entrance.transports.append(transport)

    def respond(self, query: bytes, source: Any, *, tcp: bool) -> Reply:
        """Return the answer for ``source`` (a socket's address) on this host, or None, counted."""
        asker = _asker(source)
        # A host can be made to route others' packets to 127/8 (route_localnet), so it is looked at.
        if asker is None or not (asker.is_loopback or asker in self._own):
            self.counters["not_local"] += 1
            return None
        if not self._may():
            self.counters["too_many"] += 1
            return None
        return self._counted(self._answer(query, tcp))

    def _respond_mesh(self, query: bytes, source: Any, tcp: bool) -> Reply:
        asker = _asker(source)
        if self._guests is None or asker is None or asker in self._own:
            return self.respond(query, source, tcp=tcp)
        return self._counted(self._guests(query, asker, tcp))

    def _counted(self, answered: Reply) -> Reply:
        self.counters["dropped" if answered is None else "answered"] += 1
        return answered

    def _may(self) -> bool:
        now = self._clock()
        passed, self._counted_at = now - self._counted_at, now
        self._allowance = min(BURST, self._allowance + passed * RATE)
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def deliver(self, reply: Reply, send: Callable[[bytes], None]) -> None:
        """Send a reply, now or when it is there."""
        if reply is None:
            return
        if isinstance(reply, bytes):
            send(reply)
            return
        answering = asyncio.ensure_future(reply)
        self._answering.add(answering)

        def done(answered: asyncio.Future[bytes | None]) -> None:
            self._answering.discard(answered)
            if answered.cancelled():
                return
            if (flaw := answered.exception()) is not None:
                _log.error("a name query was not answered", exc_info=flaw)
            elif (wire := answered.result()) is not None:
                send(wire)

        answering.add_done_callback(done)

    async def _serve(
        self, entrance: _Entrance, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        source = writer.get_extra_info("peername")
        whose = str(_asker(source))
        of_one = sum(1 for other in entrance.writers.values() if other == whose)
        is_greedy = of_one >= entrance.of_one and _asker(source) not in self._own
        if len(entrance.writers) >= entrance.most or is_greedy:
            self.counters["connections_refused"] += 1
            writer.close()
            return
        entrance.writers[writer] = whose
        try:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                await self._converse(entrance.respond, reader, writer)
        finally:
            entrance.writers.pop(writer, None)
            writer.close()

    async def _converse(
        self, respond: _Respond, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        source = writer.get_extra_info("peername")
        for _ in range(MAX_QUESTIONS):
            async with asyncio.timeout(IDLE_S):
                length = int.from_bytes(await reader.readexactly(2), "big")
                if length > _MAX_QUERY:
                    self.counters["dropped"] += 1
                    return
                query = await reader.readexactly(length)
                reply = respond(query, source, True)
            async with asyncio.timeout(IDLE_S):
                answered = reply if isinstance(reply, bytes | None) else await reply
                if answered is None:
                    return
                writer.write(len(answered).to_bytes(2, "big") + answered)
                await writer.drain()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer, entrance: _Entrance) -> None:
        self._server = server
        self._entrance = entrance
        self._transport: Any = None  # asyncio's own is no DatagramTransport to isinstance

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        reply = self._entrance.respond(data, addr, False)
        self._server.deliver(reply, lambda wire: self._send(wire, addr))

    def _send(self, wire: bytes, addr: Any) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(wire, addr)

    def error_received(self, exc: Exception) -> None:
        _log.debug("an answer to a name query was not delivered: %s", exc)


def _asker(source: Any) -> IPAddress | None:
    try:
        return ip_address(str(source[0]).partition("%")[0])
    except (ValueError, TypeError, IndexError):
        return None


def _bound(kind: int, at: Endpoint, device: str) -> socket.socket:
    family = socket.AF_INET if at.ip.version == 4 else socket.AF_INET6
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if device:
            name = device.encode() + b"\0"
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
        sock.bind((str(at.ip), at.port))
    except BaseException:
        sock.close()
        raise
    return sock
