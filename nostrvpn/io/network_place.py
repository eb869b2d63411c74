"""Which network this host is in: its default gateway's hardware address, and the prefix it is in.

It tells one Wi-Fi from another for whoever sets up no trap: both can be copied by anybody who is in
reach of the link.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any

from nostrvpn.endpoint import IPAddress
from nostrvpn.host.state import IPNetwork
from nostrvpn.io.port_mapping import DefaultGateway, default_gateways
from nostrvpn.io.rtnetlink import refused

__all__ = ["Place", "ask_gateway", "place_here"]

_DISCARD_PORT = 9  # RFC 863


@dataclass(frozen=True, slots=True)
class Place:
    """``network``: ``MAC PREFIX``, or empty while it is not known. ``unheard``: the gateway whose
    hardware address is not known; None if there is none, or it is known."""

    network: str = ""
    unheard: DefaultGateway | None = None


def place_here() -> Place:
    """Return the network that this host is in, by IPv4 where it has that. Blocks; SystemRefused."""
    gateways = default_gateways()
    if not gateways:
        return Place()
    from nostrvpn.io.pyroute import IPRoute, NetlinkError

    gateway = min(gateways, key=lambda gateway: gateway.ip.version)
    try:
        with IPRoute() as route:
            index = socket.if_nametoindex(gateway.interface)
            mac = _hardware_address(route, gateway.ip, index)
            prefix = _prefix(route, gateway, index)
    except NetlinkError as exc:
        raise refused("reading the default gateway", exc.code) from exc
    except OSError as exc:
        raise refused("reading the default gateway", exc.errno or errno.EIO) from exc
    if mac is None:
        return Place("", gateway)
    return Place(f"{mac} {prefix}" if prefix is not None else "")


def ask_gateway(gateway: DefaultGateway, mark: int) -> None:
    """Make the kernel ask for a gateway's hardware address: an empty datagram to the discard port."""
    family = socket.AF_INET if gateway.ip.version == 4 else socket.AF_INET6
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, gateway.interface.encode())
        scope = socket.if_nametoindex(gateway.interface)
        target: tuple[Any, ...] = (str(gateway.ip), _DISCARD_PORT)
        sock.sendto(b"", target if family == socket.AF_INET else (*target, 0, scope))


def _hardware_address(route: Any, ip: IPAddress, index: int) -> str | None:
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    for message in route.get_neighbours(family=int(family), ifindex=index):
        if message.get("dst") != str(ip) or message["ifindex"] != index:
            continue
        # The kernel shows it only while it holds it for true.
        if address := message.get("lladdr"):
            return str(address).lower()
    return None


def _prefix(route: Any, gateway: DefaultGateway, index: int) -> IPNetwork | None:
    """Return the network of our address towards the gateway."""
    for message in route.get_addr(index=index):
        if message["index"] != index:
            continue
        text = message.get("local") or message.get("address")
        if text == str(gateway.local):
            return ip_interface(f"{text}/{message['prefixlen']}").network
    return None
