"""The server of our names, for programs on this host only: UDP and TCP on a loopback address.

A loopback address of its own, since it can be reached by nobody else, needs no route, and refuses at
once when the daemon is gone. ``offer_at`` adds an address of the mesh for those who cannot use it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import SystemRefused

__all__ = ["DnsServer"]

# Several nodes on one host take one each.
_ADDRESSES = tuple(ip_address(f"127.118.112.{number}") for number in range(1, 9))
_PORT = 53
# Where something listens on port 53 of every address; systemd-resolved can be told the port.
_OTHER_PORT = 53053
# Answers a second and at once: far beyond what programs ask (a browser's start is some 100), and a
# tenth of one processor.
RATE, BURST = 200.0, 400.0
# RFC 7766: short idle time; resolvers use TCP after a truncated answer, one question each.
MAX_CONNECTIONS = 16
IDLE_S = 5.0
MAX_QUESTIONS = 64
_MAX_QUERY = 4096

Answer = Callable[[bytes, bool], "bytes | None"]

_log = logging.getLogger(__name__)


class DnsServer:
    """Serves ``answer(query, by_tcp)``. ``counters`` says what was answered and dropped, and why."""

    def __init__(self, answer: Answer, clock: Callable[[], float] = time.monotonic) -> None:
        self._answer = answer
        self._clock = clock
        self._transports: list[asyncio.DatagramTransport] = []
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._allowance, self._counted_at = BURST, 0.0
        self._own: set[IPAddress] = set()
        self.counters: Counter[str] = Counter()

    async def start(self, *, port: int = _PORT, other_port: int = _OTHER_PORT) -> Endpoint:
        """Listen on the first loopback address that is free; return where. SystemRefused if none is."""
        refused: OSError | None = None
        for number in (port, other_port):
            for address in _ADDRESSES:
                try:
                    await self._listen(address, number)
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

    async def offer_at(self, address: IPAddress, *, port: int = _PORT) -> None:
        """Listen on an address of our own in the mesh too; others who ask there get no answer."""
        if address in self._own:
            return
        self._own.add(address)
        try:
            await self._listen(address, port)
        except OSError as exc:
            self._own.discard(address)
            text = f"no name server can be started at {address}: {exc.strerror or exc}"
            raise SystemRefused(text) from exc

    async def stop(self) -> None:
        """Close everything."""
        for transport in self._transports:
            transport.close()
        for server in self._servers:
            server.close()
        for writer in self._writers:
            writer.close()
        self._transports, self._servers = [], []
        self._own.clear()
        await asyncio.sleep(0)  # for the transports to close

    async def _listen(self, address: IPAddress, port: int) -> None:
        loop, family = asyncio.get_running_loop(), socket.AF_INET
        if address.version == 6:
            family = socket.AF_INET6
        where = (str(address), port)
        server = await asyncio.start_server(self._serve, *where, family=family, limit=_MAX_QUERY)
        try:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(self), where, family=family
            )
        except OSError:
            server.close()
            raise
        self._servers.append(server)
        self._transports.append(transport)

    def respond(self, query: bytes, source: Any, *, tcp: bool) -> bytes | None:
        """Return the answer for ``source`` (a socket's address), or None, counted."""
        try:
            asker = ip_address(str(source[0]).partition("%")[0])
        except (ValueError, TypeError, IndexError):
            asker = None
        # A host can be made to route others' packets to 127/8 (route_localnet), so it is looked at.
        if asker is None or not (asker.is_loopback or asker in self._own):
            self.counters["not_local"] += 1
            return None
        if not self._may():
            self.counters["too_many"] += 1
            return None
        answered = self._answer(query, tcp)
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

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._writers) >= MAX_CONNECTIONS:
            self.counters["connections_refused"] += 1
            writer.close()
            return
        self._writers.add(writer)
        try:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                await self._converse(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = writer.get_extra_info("peername")
        for _ in range(MAX_QUESTIONS):
            async with asyncio.timeout(IDLE_S):
                length = int.from_bytes(await reader.readexactly(2), "big")
                if length > _MAX_QUERY:
                    self.counters["dropped"] += 1
                    return
                query = await reader.readexactly(length)
                answered = self.respond(query, source, tcp=True)
                if answered is None:
                    return
                writer.write(len(answered).to_bytes(2, "big") + answered)
                await writer.drain()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: Any = None  # asyncio's own is no DatagramTransport to isinstance

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        answered = self._server.respond(data, addr, tcp=False)
        if answered is not None and self._transport is not None:
            self._transport.sendto(answered, addr)

    def error_received(self, exc: Exception) -> None:
        _log.debug("an answer to a name query was not delivered: %s", exc)
