"""The one way out for HTTP and WebSockets: around an exit, or by the user's proxy.

Sockets carry our packets' mark, and names are asked of the servers outside: what an exit needs, and
what pays for it, must not depend on it. Behind a proxy all of that is the proxy's.

Where a stranger's word says what is connected to, it leads to the internet and not into this host or
the networks around it, whatever its name resolves to (``refuses``).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import aiohttp

from nostrvpn.endpoint import IPAddress
from nostrvpn.exits.guest_names import is_private_name
from nostrvpn.exits.policy import is_public
from nostrvpn.host.state import FWMARK
from nostrvpn.io.resolver import HostLookup

if TYPE_CHECKING:
    from nostrvpn.io.proxy import SocksProxy

__all__ = ["PLAIN", "TooLong", "body_of", "connector_for", "is_inside", "leads_inside"]

# For what is read up to a bound: a small compressed answer may be a large one.
PLAIN: Final = {"Accept-Encoding": "identity"}
MAX_CONNECTIONS: Final = 100
KEEPALIVE_S: Final = 15.0


class TooLong(Exception):
    """A body of more bytes than were to be read."""


def connector_for(
    lane: str,
    proxy: SocksProxy | None = None,
    mark: int = FWMARK,
    *,
    refuses: Callable[[IPAddress], bool] | None = None,
    limit: int = MAX_CONNECTIONS,
    keepalive_s: float = KEEPALIVE_S,
) -> aiohttp.BaseConnector:
    """Return what connects outside, or through ``proxy`` in a lane of its own; close it.

    ``mark``: 0 is none. ``refuses``: OSError for such an address; a proxy looks names up itself, so
    there the caller asks ``is_inside`` first. ``limit``: connections at a time; ``keepalive_s``: how
    long an idle one is kept, 0 is not at all.
    """
    if proxy is not None:
        return proxy.connector(lane)
    # No cache: a lookup that waits for a name server of the last network would be shared.
    return aiohttp.TCPConnector(
        resolver=HostLookup(),
        use_dns_cache=False,
        socket_factory=partial(_socket, mark, refuses),
        limit=limit,
        force_close=not keepalive_s,
        keepalive_timeout=keepalive_s or None,
    )


def leads_inside(ip: IPAddress) -> bool:
    """Whether an address is this host's, or one in a private network."""
    return not is_public(ip)


def is_inside(host: str) -> bool:
    """Whether a URL's host is, as it is written, this host or one in a private network."""
    with suppress(ValueError):
        return leads_inside(ip_address(host.partition("%")[0]))
    labels = tuple(host.lower().rstrip(".").split("."))
    if labels[-1] == "onion":  # who runs it is a stranger, and may be anywhere
        return False
    # "127.1" and "0x7f000001" are addresses to many resolvers.
    return labels[-1].startswith(tuple("0123456789")) or is_private_name(labels, ())


async def body_of(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the body, of ``most`` bytes or fewer; TooLong as soon as it has more."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > most:
            response.close()
            raise TooLong
        parts.append(part)
    return b"".join(parts)


def _socket(
    mark: int, refuses: Callable[[IPAddress], bool] | None, target: aiohttp.AddrInfoType
) -> socket.socket:
    family, kind, protocol, _, address = target
    if refuses is not None and refuses(ip_address(str(address[0]).partition("%")[0])):
        raise OSError(errno.EACCES, "no address that others may send us to")
    made = socket.socket(family, kind, protocol)
    if mark:
        with suppress(PermissionError):  # nobody without CAP_NET_ADMIN uses an exit
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    return made
