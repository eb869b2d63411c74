"""Asking name servers, and passing questions on to them: UDP first, TCP where the question came by TCP.

Each question has a socket of its own, so a port that the kernel draws, and a number drawn for it; the
socket is connected, so only that server's packets come in, and what answers another question is passed
over (RFC 5452). Nothing is kept: the programs that ask keep answers themselves.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import Counter
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Final

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import SystemRefused
from nostrvpn.host.dns_message import (
    FORMERR,
    NOTIMP,
    REFUSED,
    SERVFAIL,
    Question,
    answers,
    fitting,
    is_plain,
    is_query,
    rcode_of,
    read_question,
    refusal_of,
    returned,
)

__all__ = ["Forwarder", "Unanswered", "Way", "exchange"]

# For one try, and for all of them: programs themselves wait five seconds (resolv.conf(5)).
TRY_S: Final = 2.0
TOTAL_S: Final = 4.0
# Questions under way. A browser's start is some 100; each costs a socket and a task.
MAX_IN_FLIGHT: Final = 256
# Packets from the server's address that answer nothing we asked: then somebody guesses numbers, and
# by TCP that is hopeless.
MAX_WRONG: Final = 8
_LARGEST: Final = 65_535


class Unanswered(SystemRefused):
    """No name server gave an answer."""

    code = "names_unanswered"


@dataclass(frozen=True, slots=True)
class Way:
    """Whom to ask, the best first, and how to get there: with ``mark`` on each packet, and by this
    ``interface`` alone (empty: as routed)."""

    servers: tuple[Endpoint, ...]
    mark: int = 0
    interface: str = ""


async def exchange(
    query: bytes, way: Way, *, tcp: bool = False, counters: Counter[str] | None = None
) -> bytes:
    """Return the answer to ``query`` (a whole message), with its own number and spelling.

    Servers are asked one after the other, twice, within 4 s; the next one where one says that it
    cannot. Unanswered if none answers.
    """
    return (await _exchange(query, way, tcp, Counter() if counters is None else counters))[0]


async def _exchange(
    query: bytes, way: Way, tcp: bool, counted: Counter[str]
) -> tuple[bytes, Endpoint]:
    asked = read_question(query)
    if asked is None:
        raise Unanswered("not a question")
    poor: dict[Endpoint, bytes] = {}
    try:
        async with asyncio.timeout(TOTAL_S):
            for server in way.servers * 2:
                if server in poor:
                    continue
                try:
                    async with asyncio.timeout(TRY_S):
                        wire = await _ask(query, server, way, tcp, counted)
                except (OSError, TimeoutError, EOFError):
                    counted["unanswered_tries"] += 1
                    continue
                found = returned(wire, asked)
                if rcode_of(found) not in (SERVFAIL, REFUSED):
                    return found, server
                poor[server] = found
    except TimeoutError:
        pass
    for server, found in poor.items():
        return found, server
    raise Unanswered("no name server answers" if way.servers else "no name server is known")


class Forwarder:
    """Passes queries on and gives answers back, so many at once. ``counters``: what became of them."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._first: Endpoint | None = None
        self.counters: Counter[str] = Counter()

    async def ask(self, query: bytes, way: Way, *, tcp: bool) -> bytes | None:
        """Return the answer to what a program asked, always one that it takes; None for noise."""
        asked = read_question(query)
        if asked is None or not is_query(query):
            return refusal_of(query, FORMERR)
        if not is_plain(query):
            return refusal_of(query, NOTIMP)
        if not way.servers or self._in_flight >= MAX_IN_FLIGHT:
            self.counters["too_many" if way.servers else "no_server"] += 1
            return refusal_of(query, SERVFAIL)
        self._in_flight += 1
        try:
            # Who answered last goes first: one that is dead costs two seconds once.
            servers = sorted(way.servers, key=lambda server: server != self._first)
            ordered = replace(way, servers=tuple(servers))
            wire, self._first = await _exchange(query, ordered, tcp, self.counters)
        except Unanswered:
            self.counters["unanswered"] += 1
            return refusal_of(query, SERVFAIL)
        finally:
            self._in_flight -= 1
        self.counters["forwarded"] += 1
        return fitting(wire, asked, tcp=tcp)


async def _ask(query: bytes, server: Endpoint, way: Way, tcp: bool, counted: Counter[str]) -> bytes:
    number = secrets.token_bytes(2)
    wire = number + query[2:]
    asked = read_question(wire)
    assert asked is not None
    if not tcp:
        found = await _by_udp(wire, asked, server, way, counted)
        if found is not None:
            return found
        counted["guessed_at"] += 1
    return await _by_tcp(wire, asked, server, way)


async def _by_udp(
    wire: bytes, asked: Question, server: Endpoint, way: Way, counted: Counter[str]
) -> bytes | None:
    """Return the answer; None if somebody seems to guess numbers."""
    loop = asyncio.get_running_loop()
    with _socket(server, way, socket.SOCK_DGRAM) as sock:
        await loop.sock_connect(sock, _address(server))
        await loop.sock_sendall(sock, wire)
        for _ in range(MAX_WRONG):
            found = await loop.sock_recv(sock, _LARGEST)
            if answers(found, asked):
                return found
            counted["wrong_answers"] += 1
    return None


async def _by_tcp(wire: bytes, asked: Question, server: Endpoint, way: Way) -> bytes:
    loop = asyncio.get_running_loop()
    with _socket(server, way, socket.SOCK_STREAM) as sock:
        await loop.sock_connect(sock, _address(server))
        await loop.sock_sendall(sock, len(wire).to_bytes(2, "big") + wire)
        length = int.from_bytes(await _read(sock, 2), "big")
        found = await _read(sock, length)
    if not answers(found, asked):
        raise EOFError("an answer to another question")
    return found


async def _read(sock: socket.socket, length: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < length:
        more = await loop.sock_recv(sock, length - len(data))
        if not more:
            raise EOFError("the name server closed the connection")
        data += more
    return data


def _socket(server: Endpoint, way: Way, kind: int) -> socket.socket:
    family = socket.AF_INET if server.ip.version == 4 else socket.AF_INET6
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if way.mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, way.mark)
        if way.interface:
            name = way.interface.encode() + b"\0"
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
    except BaseException:
        sock.close()
        raise
    return sock


def _address(server: Endpoint) -> tuple[str, int] | tuple[str, int, int, int]:
    if not isinstance(server.ip, IPv6Address):
        return str(server.ip), server.port
    scope = server.ip.scope_id
    if scope is None:
        return str(server.ip), server.port, 0, 0
    index = int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
    return str(server.ip).partition("%")[0], server.port, 0, index
