"""Which of this host's addresses the kernel would send from."""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from nostrvpn.endpoint import IPAddress

__all__ = ["ask_source", "is_ours", "outward_sources", "source_towards"]

# Addresses far outside (a.root-servers.net): nothing is sent to them.
_OUTSIDE = (IPv4Address("198.41.0.4"), IPv6Address("2001:503:ba3e::2:30"))


def ask_source(destination: IPAddress, mark: int = 0) -> IPAddress:
    """Return the source address that leads to ``destination``; OSError says why there is none.

    ``mark`` is the packets' fwmark, which policy routing may look at.
    """
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as asked:
        if mark:
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        # The port does not matter: connecting a UDP socket sends nothing.
        asked.connect((str(destination), 9))
        return ip_address(asked.getsockname()[0].partition("%")[0])


def source_towards(destination: IPAddress, mark: int = 0) -> IPAddress | None:
    """Return the same, or None if there is no route."""
    try:
        return ask_source(destination, mark)
    except OSError:
        return None


def is_ours(address: IPAddress) -> bool:
    """Whether this host has ``address``; a deprecated one too, which lives on in connections."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as tried:
            tried.bind((str(address), 0))
    except OSError as exc:
        # Link-local addresses need more than the address; they are not judged here.
        return exc.errno != errno.EADDRNOTAVAIL
    return True


def outward_sources(mark: int = 0) -> frozenset[IPAddress]:
    """Return the addresses that the default routes of both families lead out by."""
    found = (source_towards(outside, mark) for outside in _OUTSIDE)
    return frozenset(source for source in found if source is not None)
