"""Looking names up: the STUN servers' and the relays'.

A lookup in a thread cannot be ended, and one that waits for the name server of a network that is gone
takes ten seconds and more. So each has a thread of its own, which neither keeps others waiting nor the
program from ending.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from nostrvpn.endpoint import Endpoint, parse_endpoint

__all__ = ["HostLookup", "StunResolver"]

TIMEOUT_S = 5.0
# Lookups under way; a change of network begins one for each STUN server and relay, a dozen.
MAX_LOOKUPS = 64
# Two addresses of one server tell nothing more about our NAT; one of each family is enough.
_PER_FAMILY = 1

_AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]

_slots = threading.BoundedSemaphore(MAX_LOOKUPS)


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
        answers = await _look_up(host, port, socket.SOCK_STREAM, family)
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
            answers = await _look_up(host, int(port), socket.SOCK_DGRAM, socket.AF_UNSPEC)
    except (OSError, TimeoutError, ValueError, UnicodeError):
        return ()
    by_family: dict[int, list[Endpoint]] = {4: [], 6: []}
    for _, _, _, _, address in answers:
        ip = ip_address(address[0])
        by_family[ip.version].append(Endpoint(ip, int(address[1])))
    return tuple(by_family[4][:_PER_FAMILY] + by_family[6][:_PER_FAMILY])


async def _look_up(host: str, port: int, kind: int, family: int) -> list[_AddressInfo]:
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
