"""Looking names up for the agent itself: STUN and TURN servers, Nostr relays, relays' WebSockets.

A lookup in a thread cannot be ended, and one that waits for the name server of a network that is gone
takes ten seconds and more. So each has a thread of its own, which neither keeps others waiting nor the
program from ending.

While an exit is used, the host's resolver answers through the tunnel, which these names are needed for
first. Then the servers outside are asked directly, with marked packets (``ask_outside``).
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from nostrvpn.endpoint import Endpoint, IPAddress, parse_endpoint
from nostrvpn.host.dns_message import is_cut, make_query, read_addresses
from nostrvpn.io.dns_forwarder import Unanswered, Way, exchange

__all__ = ["HostLookup", "StunResolver", "ask_outside", "look_up"]

TIMEOUT_S = 5.0
# Lookups under way; a change of network begins one for each STUN server and relay, a dozen.
MAX_LOOKUPS = 64
# Two addresses of one server tell nothing more about our NAT; one of each family is enough.
_PER_FAMILY = 1

_AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]

_slots = threading.BoundedSemaphore(MAX_LOOKUPS)
_HOSTS = Path("/etc/hosts")
_MAX_HOSTS = 1 << 20
_LOOPBACK = ("127.0.0.1", "::1")

# One host, one resolver: whoever looks a name up in this process must know the way.
_outside: Callable[[], Way | None] = lambda: None  # noqa: E731


def ask_outside(way: Callable[[], Way | None]) -> None:
    """From now on each lookup asks ``way()`` whom to ask; None, or no server: the host's resolver."""
    global _outside
    _outside = way


class StunResolver:
    """Looks STUN servers up, and remembers: a server's address outlives a name server's silence."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Endpoint, ...]] = {}

    async def resolve(
        self, servers: tuple[str, ...]
    ) -> tuple[tuple[Endpoint, ...], tuple[str, ...]]:
        """Return the endpoints of ``host:port`` names, and the names without an answer (within 5 s).

        A name without an answer now keeps the endpoints it had before.
        """
        answers = await asyncio.gather(*(_resolve(server) for server in servers))
        found: dict[Endpoint, None] = {}
        unresolved = []
        for server, endpoints in zip(servers, answers, strict=True):
            if endpoints:
                self._known[server] = endpoints
            else:
                unresolved.append(server)
            found.update(dict.fromkeys(self._known.get(server, ())))
        return tuple(found), tuple(unresolved)


class HostLookup(AbstractResolver):
    """The same for HTTP connections."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of ``host``; OSError if there is none."""
        answers = await look_up(host, port, socket.SOCK_STREAM, family)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=int(address[1]),
                family=found,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found, _, protocol, _, address in answers
        ]

    async def close(self) -> None:
        """Nothing is kept open."""


async def _resolve(server: str) -> tuple[Endpoint, ...]:
    try:
        return (parse_endpoint(server),)
    except ValueError:
        host, _, port = server.rpartition(":")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            answers = await look_up(host, int(port), socket.SOCK_DGRAM, socket.AF_UNSPEC)
    except (OSError, TimeoutError, ValueError, UnicodeError):
        return ()
    by_family: dict[int, list[Endpoint]] = {4: [], 6: []}
    for _, _, _, _, address in answers:
        ip = ip_address(address[0])
        by_family[ip.version].append(Endpoint(ip, int(address[1])))
    return tuple(by_family[4][:_PER_FAMILY] + by_family[6][:_PER_FAMILY])


async def look_up(host: str, port: int, kind: int, family: int = 0) -> list[_AddressInfo]:
    """Return the addresses of ``host`` in getaddrinfo's form; OSError if there is none."""
    way = _outside()
    if way is None or not way.servers:
        return await _ask_host(host, port, kind, family)
    versions = {socket.AF_INET: (4,), socket.AF_INET6: (6,)}.get(
        socket.AddressFamily(family), (4, 6)
    )
    found = [ip for ip in _known_here(host) if ip.version in versions]
    if not found:
        asked = await asyncio.gather(*(_ask_way(host, version, way) for version in versions))
        found = [ip for ips in asked for ip in ips]
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "no name server outside knows this name")
    protocol = socket.IPPROTO_UDP if kind == socket.SOCK_DGRAM else socket.IPPROTO_TCP
    return [_address_info(ip, port, kind, protocol) for ip in found]


def _address_info(ip: IPAddress, port: int, kind: int, protocol: int) -> _AddressInfo:
    if ip.version == 4:
        return (socket.AF_INET, kind, protocol, "", (str(ip), port))
    return (socket.AF_INET6, kind, protocol, "", (str(ip), port, 0, 0))


def _known_here(host: str) -> list[IPAddress]:
    """Return an address as itself, this host for its own name, and what /etc/hosts says of a name."""
    with suppress(ValueError):
        return [ip_address(host)]
    # Spec: RFC 6761 section 6.3: nobody is asked for it.
    if host.lower().rstrip(".").rpartition(".")[2] == "localhost":
        return list(map(ip_address, _LOOPBACK))
    try:
        with _HOSTS.open("rb") as file:
            text = file.read(_MAX_HOSTS).decode("utf-8", "replace")
    except OSError:
        return []
    name = re.escape(host.rstrip("."))
    line = rf"^[ \t]*(\S+)[ \t](?:[^#\n]*[ \t])?{name}\.?(?=[ \t\r#]|$)"
    found = []
    for word in re.findall(line, text, re.MULTILINE | re.IGNORECASE):
        with suppress(ValueError):
            found.append(ip_address(word))
    return found


async def _ask_way(host: str, version: int, way: Way) -> list[IPAddress]:
    try:
        query = make_query(host, version, secrets.randbits(16))
        wire = await exchange(query, way)
        if is_cut(wire):
            wire = await exchange(query, way, tcp=True)
        ips = read_addresses(wire)[0].ips
    except (Unanswered, ValueError):
        return []
    return sorted((ip for ip in ips if ip.version == version), key=int)


async def _ask_host(host: str, port: int, kind: int, family: int) -> list[_AddressInfo]:
    """Ask the system's resolver in a thread of its own; OSError also if too many ask already."""
    if not _slots.acquire(blocking=False):
        raise OSError(f"{MAX_LOOKUPS} lookups wait for name servers")
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[_AddressInfo]] = loop.create_future()

    def tell(found: list[_AddressInfo] | BaseException) -> None:
        if answer.done():
            return
        if isinstance(found, BaseException):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def ask() -> None:
        found: list[_AddressInfo] | BaseException
        try:
            found = [*socket.getaddrinfo(host, port, family, kind)]
        except Exception as exc:
            found = exc
        finally:
            _slots.release()
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, found)

    threading.Thread(target=ask, name=f"lookup {host}"[:64], daemon=True).start()
    return await answer
