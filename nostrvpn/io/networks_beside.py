"""The host's other networks of ours: where packets for them go, while this one has an exit. Blocking."""

from __future__ import annotations

from nostrvpn.host.state import ROUTE_PROTOCOL, IPNetwork, is_marked
from nostrvpn.io.routes import parse_destination
from nostrvpn.io.rtnetlink import family_of, rtnetlink

__all__ = ["networks_beside"]

# Spec: linux/rtnetlink.h.
_RT_TABLE_MAIN = 254
# What our tunnels are; other links with our mark lead to no network.
_KINDS = ("wireguard", "tun")
# Wider ones are no network but half a way out.
_WIDEST = {4: 8, 6: 16}


def networks_beside(interface: str) -> frozenset[tuple[str, IPNetwork]]:
    """Return (interface, network) of each route into a tunnel of ours other than ``interface``.

    Only main's routes of our protocol number over links with our mark: to make one takes CAP_NET_ADMIN.
    SystemRefused.
    """
    with rtnetlink("reading the other networks' routes") as route:
        tunnels = {
            link["index"]: str(link.get("ifname"))
            for link in route.get_links()
            if is_marked(link.get("ifalias") or "")
            and (link.get(("linkinfo", "kind")) or "") in _KINDS
            and link.get("ifname") != interface
        }
        if not tunnels:
            return frozenset()
        messages = [
            message
            for version in (4, 6)
            for message in route.get_routes(family=family_of(version), table=_RT_TABLE_MAIN)
            if message["proto"] == ROUTE_PROTOCOL and message.get("oif") in tunnels
        ]
    found = ((tunnels[one.get("oif")], parse_destination(one)) for one in messages)
    return frozenset(one for one in found if one[1].prefixlen >= _WIDEST[one[1].version])
