"""Where strangers come to: this host's addresses from outside, and what the kernel has for them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv6Interface, ip_network
from typing import Final

from nostrvpn.daemon.market_parts import Host
from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.exits.policy import ExitPolicy, is_public
from nostrvpn.host.sold import Sold, sold_interface
from nostrvpn.host.state import IPNetwork
from nostrvpn.identity.keys import wireguard_public_key
from nostrvpn.io.forward_policy import forward_obstacle
from nostrvpn.io.link_speed import DEFAULT_SPEED, uplink_speed
from nostrvpn.io.resolver import StunResolver
from nostrvpn.io.source_address import outward_sources
from nostrvpn.market.exit_service import ExitPlace, ExitService
from nostrvpn.market.sale import Sale
from nostrvpn.node.node import Node
from nostrvpn.node.subnets import overlay_of
from nostrvpn.wireguard.device import SecretKey

__all__ = ["Premises", "is_taken"]

MTU: Final = 1280
CONNECTIONS: Final = 50  # new ones of each buyer a second: a page opens some dozens at once
_SOLD4: Final = IPv4Interface("198.18.0.1/16")
# Networks as wide as a LAN's; wider ones are the way to the internet.
_WIDEST: Final = {4: 8, 6: 32}
_MAX_ENDPOINTS: Final = 4
# Reading all tables of the host takes a process; other firewalls change rarely. Whoever takes away what
# is in the way is not kept waiting.
_LOOK_S, _LOOK_AGAIN_S = 300.0, 15.0


class Premises:
    """``port``: where WireGuard listens for strangers, unless the sale says otherwise. ``error``: why
    nobody can come, or None; ``only_ipv4``: why this host's IPv6 is not sold. ``speed``: of the uplink,
    bytes a second."""

    def __init__(self, host: Host, port: int, seller: str) -> None:
        self._host, self._port, self._seller = host, port, seller
        self._wireguard = SecretKey(host.root.market_wireguard_key())
        self._policy = ExitPolicy()
        self.link = sold_interface(host.interface)
        self.error: str | None = None
        self.only_ipv4: str | None = None
        self.speed = DEFAULT_SPEED
        self._obstacles: dict[int, str] = {}
        self._looked_at = float("-inf")

    async def find(self, sale: Sale | None, *, is_wanted: bool) -> ExitPlace | None:
        """Return where buyers reach this host; None, and why in ``error``, if they cannot."""
        self.error = self.only_ipv4 = None
        if not is_wanted:
            return None
        if self._host.node.exits.is_wanted:
            self.error = "this host leaves through an exit itself: end that first"
            return None
        sources = await asyncio.to_thread(outward_sources)
        self.speed = await asyncio.to_thread(uplink_speed)
        endpoints = await self._endpoints(sale, sources)
        if not endpoints:
            self.error = "this host has no public address that buyers could reach"
            return None
        has_ipv6 = any(ip.version == 6 for ip in sources) and (sale is None or sale.ipv6)
        obstacles = await self._look_for_obstacles()
        # IPv4 decides whether anything is sold: it is what every buyer comes for.
        self.error = obstacles.get(4)
        if has_ipv6 and 6 in obstacles:
            has_ipv6, self.only_ipv4 = False, obstacles[6]
        return ExitPlace(
            endpoints,
            wireguard_public_key(self._wireguard.raw),
            _SOLD4,
            _own_ipv6(self._seller) if has_ipv6 else None,
            MTU,
        )

    async def _look_for_obstacles(self) -> dict[int, str]:
        """Return by IP version which other firewall drops what buyers send here, and what helps."""
        now = self._host.moment().now
        if now - self._looked_at >= (_LOOK_AGAIN_S if self._obstacles else _LOOK_S):
            self._looked_at, seen = now, dict[int, str]()
            for version in (4, 6):
                found = await asyncio.to_thread(forward_obstacle, self.link, (version,))
                if found is not None:
                    seen[version] = f"{found.where} drops what buyers send: {found.remedy}"
            self._obstacles = seen
        return self._obstacles

    def sold(self, sale: Sale | None, service: ExitService, rate: int) -> Sold | None:
        """Return what the kernel is to have; None while nobody can come. ``rate``: bytes a second each
        way of each lease, 0 for any."""
        place, node = service.place, self._host.node
        if place is None:
            return None
        if sale is not None:
            self._policy = sale.policy
        addresses = frozenset(i for i in (place.ipv4, place.ipv6) if i is not None)
        never: set[IPNetwork] = {address.network for address in addresses}
        never |= {ip_network(address.ip) for address in node.addresses}
        if node.membership.roster is not None:
            never |= {*overlay_of(node.membership.roster), *node.subnets.used}
        around = {n for n in node.routes if n.prefixlen >= _WIDEST[n.version]}
        limits = sale.limits if sale is not None else None
        port = self._listen_port(sale)
        return Sold(
            self.link,
            port,
            self._wireguard,
            addresses,
            place.mtu,
            self._policy.compile(never, around),
            frozenset({4, 6} if place.ipv6 is not None else {4}),
            service.sold_leases(),
            dns=place.dns,
            rate=rate,
            connections=(limits.connections if limits is not None else 0) or CONNECTIONS,
            reserved=frozenset({node.settings.tunnel.listen_port, port}),
        )

    def _listen_port(self, sale: Sale | None) -> int:
        return self._port if sale is None else sale.port or self._port

    async def _endpoints(
        self, sale: Sale | None, sources: frozenset[IPAddress]
    ) -> tuple[Endpoint, ...]:
        if sale is not None and sale.endpoint:
            found, _ = await StunResolver().resolve((sale.endpoint,))
            # Buyers refuse what is of no use to them, and could be theirs.
            return tuple(one for one in found if is_public(one.ip))[:_MAX_ENDPOINTS]
        public = sorted((ip for ip in sources if ip.is_global), key=lambda ip: ip.version)
        return tuple(Endpoint(ip, self._listen_port(sale)) for ip in public)


def is_taken(node: Node, addresses: Iterable[IPAddress]) -> bool:
    """Whether a stranger's addresses in its tunnel are of the mesh, or of a network of this host.

    Where the host itself sells, its own tunnel's IPv4 network is what every seller has.
    """
    used: set[IPNetwork] = set(node.subnets.used)
    if node.membership.roster is not None:
        used |= {*overlay_of(node.membership.roster)}
    used |= {n for n in node.routes if _WIDEST[n.version] <= n.prefixlen < n.max_prefixlen}
    used.discard(_SOLD4.network)
    return any(ip in network for ip in addresses for network in used)


def _own_ipv6(seller: str) -> IPv6Interface:
    """Return the seller's address in a /64 of its own (RFC 4193), drawn from its key."""
    drawn = hashlib.sha256(f"nostrvpn sold {seller}".encode()).digest()[:7]
    return IPv6Interface((b"\xfd" + drawn + bytes(7) + b"\x01", 64))
