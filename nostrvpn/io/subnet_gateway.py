"""This host forwards into networks behind it, or out: the nft table for it, and the kernel's settings.

What was off before is remembered in the table itself (``relay_routing.py``). Blocking; acts in the
calling thread's network namespace.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress

from nostrvpn.host.state import ROUTE_PROTOCOL, IPNetwork
from nostrvpn.host.subnet_gateway import Gateway, gateway_marks, gateway_table, render_gateway
from nostrvpn.io.nftables import apply_ruleset, has_marks
from nostrvpn.io.relay_routing import (
    RoutingBefore,
    RoutingMemory,
    is_routing,
    turn_on_routing,
    uplinks,
)
from nostrvpn.io.routes import parse_destination

__all__ = ["apply_gateway", "interfaces_towards"]

_RT_TABLE_MAIN = 254


def apply_gateway(gateway: Gateway, interface: str, memory: RoutingMemory) -> bool:
    """Forward what ``gateway`` says, and nothing with the empty one; return whether that took a change.

    ``memory`` is that of the gateway's table, the same one for each call. SystemRefused if nft or the
    kernel refuses.
    """
    name = gateway_table(interface)
    if gateway.is_empty:
        is_needed = memory.is_needed
        if is_needed:
            memory.put_back()
        return is_needed
    outward = uplinks() if gateway.exit_versions else ()
    inward = interfaces_towards(gateway.networks | gateway.opened)
    interfaces = tuple({interface: None} | dict.fromkeys((*inward, *outward)))
    routes = all(is_routing(one, version) for one in interfaces for version in gateway.versions)
    if routes and has_marks(name, gateway_marks(gateway, interface)):
        memory.learn()
        return False

    def remember(before: RoutingBefore) -> None:
        sets = (before.routed4, before.routed6, before.advertised)
        apply_ruleset(render_gateway(gateway, interface, *sets))

    turn_on_routing(interfaces, memory, remember, gateway.versions)
    return True


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
