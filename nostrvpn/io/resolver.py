"""Looking up the STUN servers' names."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

from nostrvpn.endpoint import Endpoint, parse_endpoint

__all__ = ["resolve_servers"]

TIMEOUT_S = 5.0
# Two addresses of one server tell nothing more about our NAT; one of each family is enough.
_PER_FAMILY = 1


async def resolve_servers(
    servers: tuple[str, ...],
) -> tuple[tuple[Endpoint, ...], tuple[str, ...]]:
    """Return the endpoints of ``host:port`` names, and the names that have none (bounded: 5 s)."""
    answers = await asyncio.gather(*(_resolve(server) for server in servers))
    found: dict[Endpoint, None] = {}
    unresolved = []
    for server, endpoints in zip(servers, answers, strict=True):
        found.update(dict.fromkeys(endpoints))
        if not endpoints:
            unresolved.append(server)
    return tuple(found), tuple(unresolved)


async def _resolve(server: str) -> tuple[Endpoint, ...]:
    try:
        return (parse_endpoint(server),)
    except ValueError:
        host, _, port = server.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            answers = await loop.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)
    except (OSError, TimeoutError, ValueError, UnicodeError):
        return ()
    by_family: dict[int, list[Endpoint]] = {4: [], 6: []}
    for _, _, _, _, address in answers:
        ip = ip_address(address[0])
        by_family[ip.version].append(Endpoint(ip, int(address[1])))
    return tuple(by_family[4][:_PER_FAMILY] + by_family[6][:_PER_FAMILY])
