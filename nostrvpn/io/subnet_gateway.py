"""This host forwards into networks behind it: the nft table for it, and the kernel's settings.

What was off before is remembered in the table itself, written before anything is changed: it needs no
file, outlives a killed daemon, and whoever removes the table puts it back. Blocking; acts in the
calling thread's network namespace.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress

from nostrvpn.host.state import ROUTE_PROTOCOL, IPNetwork
from nostrvpn.host.subnet_gateway import Gateway, gateway_marks, gateway_table, render_gateway
from nostrvpn.io.nftables import apply_ruleset, delete_table, has_marks, list_table, own_tables
from nostrvpn.io.relay_routing import (
    RoutingBefore,
    is_routing,
    restore_routing,
    turn_on_routing,
)
from nostrvpn.io.routes import parse_destination

__all__ = ["apply_gateway", "interfaces_towards", "remove_gateway"]

_RT_TABLE_MAIN = 254


def apply_gateway(gateway: Gateway, interface: str) -> bool:
    """Forward what ``gateway`` says, and nothing with the empty one; return whether that took a change.

    SystemRefused if nft or the kernel refuses.
    """
    name = gateway_table(interface)
    if not gateway.networks:
        exists = name in own_tables()
        if exists:
            remove_gateway(name)
        return exists
    interfaces = (interface, *interfaces_towards(gateway.networks))
    routes = all(is_routing(one, version) for one in interfaces for version in gateway.versions)
    if routes and has_marks(name, gateway_marks(gateway, interface)):
        return False

    def remember(before: RoutingBefore) -> None:
        sets = (before.routed4, before.routed6, before.advertised)
        apply_ruleset(render_gateway(gateway, interface, *sets))

    turn_on_routing(interfaces, _remembered(name), remember, gateway.versions)
    return True


def remove_gateway(name: str) -> None:
    """Remove a gateway's table by its name, and put the routing back that it remembers."""
    before = _remembered(name)
    delete_table(name)
    restore_routing(before)


def interfaces_towards(networks: Iterable[IPNetwork]) -> tuple[str, ...]:
    """Return the interfaces that packets to these networks leave by, without those of ours."""
    from nostrvpn.io.pyroute import IPRoute, NetlinkError

    found: set[int] = set()
    with suppress(NetlinkError, OSError), IPRoute() as route:
        routes = [
            (parse_destination(message), int(message.get("oif")))
            for message in route.get_routes(table=_RT_TABLE_MAIN)
            if message["proto"] != ROUTE_PROTOCOL
            and message["family"] in (socket.AF_INET, socket.AF_INET6)
            and message.get("oif") is not None
        ]
        for network in networks:
            same = [item for item in routes if item[0].version == network.version]
            # The parts of it that go their own way, and the most specific that leads to all the rest.
            wide = [r for r in same if r[0].prefixlen <= network.prefixlen]
            around = [r for r in wide if r[0].overlaps(network)]
            longest = max((r[0].prefixlen for r in around), default=0)
            found |= {oif for to, oif in around if to.prefixlen == longest}
            parts = (r for r in same if r[0].prefixlen > network.prefixlen)
            found |= {oif for to, oif in parts if to.overlaps(network)}
    names = set()
    for index in found:
        with suppress(OSError):
            names.add(socket.if_indextoname(index))
    return tuple(sorted(names))


def _remembered(name: str) -> RoutingBefore:
    """Return what the table remembers of the host; nothing if there is no such table."""
    names = ("routed4", "routed6", "advertised")
    listed = [item["set"] for item in list_table(name) or () if "set" in item]
    sets = {one["name"]: frozenset(one.get("elem", ())) for one in listed if one["name"] in names}
    return RoutingBefore(*(sets.get(one, frozenset()) for one in names))
