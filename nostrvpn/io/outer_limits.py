"""Fragments for narrow paths: a routing table of ours that only WireGuard's own packets see.

WireGuard leaves the size of its packets to the routes of the host: in the kernel it sends them
without "don't fragment", and wireguard-go with Linux's default (IP_PMTUDISC_WANT); both are
fragmented where they leave if the route's MTU is smaller, and both vanish on a narrow path that
sends no ICMP. So for an address on a narrow path the host's own route is copied, with the MTU
that was measured and locked, into a table which a rule for our fwmark puts before all others. Locked
means without "don't fragment", and that nobody's ICMP changes it.

Table, rule and routes carry our protocol number, and the table's number follows from the interface's
name: whoever cleans up needs no record. Functions take an open ``IPRoute``.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from nostrvpn.endpoint import IPAddress
from nostrvpn.host.routing_tables import RoutingTable
from nostrvpn.host.state import FWMARK, ROUTE_PROTOCOL, OuterLimit
from nostrvpn.io.rtnetlink import GONE, accepting, family_of

if TYPE_CHECKING:
    from nostrvpn.io.pyroute import IPRoute

__all__ = [
    "observe_outer_limits",
    "remove_all_outer_limits",
    "remove_outer_limit",
    "set_outer_limit",
]

# Ours: before the rules of other VPN programs (Tailscale's begin at 5210).
_PRIORITY = 4600
# Under this mark a look-up takes all rules that our packets take, but not the one made here.
_LOOKUP_MARK = FWMARK | 1
_ALL_BITS = 0xFFFFFFFF
# Spec: linux/rtnetlink.h.
_RTAX_MTU_LOCKED = 1 << 2
_RTN_UNICAST = 1
_RT_SCOPE_UNIVERSE = 0
_RT_SCOPE_LINK = 253
_FAMILIES = (family_of(4), family_of(6))

_NextHop = tuple[int, str | None]


def observe_outer_limits(route: IPRoute, interface: str) -> frozenset[OuterLimit]:
    """Return the limits of an interface; MTU 0 where one no longer follows the host's own route."""
    table = RoutingTable.OUTER_LIMITS.number(interface)
    found = []
    ruled = {message["family"] for message in _rules(route, table)}
    if not ruled:
        # The usual case. Routes that no rule leads to do nothing.
        return frozenset()
    for message in _routes(route, table):
        ip = ip_address(message.get("dst"))
        metrics = dict((message.get("metrics") or {}).get("attrs", ()))
        mtu = int(metrics.get("RTAX_MTU", 0))
        locked = int(metrics.get("RTAX_LOCK", 0)) & _RTAX_MTU_LOCKED
        here = (message.get("oif"), message.get("gateway"))
        holds = locked and message["family"] in ruled and here == _next_hop(route, ip)
        found.append(OuterLimit(ip, mtu if holds else 0))
    return frozenset(found)


def set_outer_limit(route: IPRoute, interface: str, ip: IPAddress, mtu: int) -> None:
    """Add or renew a limit; where the host has no route to ``ip``, there is nothing to limit."""
    next_hop = _next_hop(route, ip)
    if next_hop is None:
        return
    oif, gateway = next_hop
    table, family = RoutingTable.OUTER_LIMITS.number(interface), family_of(ip.version)
    arguments: dict[str, Any] = {
        "family": family,
        "dst": f"{ip}/{ip.max_prefixlen}",
        "oif": oif,
        "proto": ROUTE_PROTOCOL,
        "table": table,
        "type": _RTN_UNICAST,
        "scope": _RT_SCOPE_LINK if ip.version == 4 and gateway is None else _RT_SCOPE_UNIVERSE,
        "metrics": {"lock": _RTAX_MTU_LOCKED, "mtu": mtu},
    }
    if gateway is not None:
        arguments["gateway"] = gateway
    route.route("replace", **arguments)
    if not any(rule["family"] == family for rule in _rules(route, table)):
        route.rule("add", **_rule(family, table))


def remove_outer_limit(route: IPRoute, interface: str, ip: IPAddress) -> None:
    """Remove a limit, present or not; with the last one its rule goes."""
    table = RoutingTable.OUTER_LIMITS.number(interface)
    mine = [
        message for message in _routes(route, table) if message["family"] == family_of(ip.version)
    ]
    for message in mine:
        if ip_address(message.get("dst")) == ip:
            _delete_route(route, message, table)
    if all(ip_address(message.get("dst")) == ip for message in mine):
        _delete_rules(route, table, family_of(ip.version))


def remove_all_outer_limits(route: IPRoute, interface: str | None = None) -> int:
    """Remove the limits of one interface, or of every one there ever was in this namespace.

    Return how many routes and rules they were.
    """
    removed = 0
    if interface is not None:
        tables = {RoutingTable.OUTER_LIMITS.number(interface)}
    else:
        # Whoever was killed between a route and its rule has left only one of them.
        every = [*_rules(route, None), *_routes(route, None)]
        tables = {table for message in every if (table := _table_of(message)) is not None}
    for table in tables:
        routes = _routes(route, table)
        removed += len(routes) + len(_rules(route, table))
        for family in _FAMILIES:
            _delete_rules(route, table, family)
        for message in routes:
            _delete_route(route, message, table)
    return removed


def _table_of(message: Any) -> int | None:
    """Return the table that a rule or route of ours belongs to, None for what is not ours."""
    table = message.get("table") or 0
    return table if RoutingTable.OUTER_LIMITS.includes(table) else None


def _next_hop(route: IPRoute, ip: IPAddress) -> _NextHop | None:
    """Return where the host's own routes lead marked packets to ``ip``; None if nowhere outside."""
    from nostrvpn.io.pyroute import NetlinkError

    try:
        (found,) = route.route("get", dst=str(ip), mark=_LOOKUP_MARK, family=family_of(ip.version))
    except (NetlinkError, ValueError):
        return None
    if found["type"] != _RTN_UNICAST or found.get("oif") is None:
        return None
    return found.get("oif"), found.get("gateway")


def _routes(route: IPRoute, table: int | None) -> list[Any]:
    """Return our routes, of both families, in ``table`` (None: in any of ours)."""
    only = {} if table is None else {"table": table}
    return [
        message
        for family in _FAMILIES
        for message in route.get_routes(family=family, **only)
        if message["proto"] == ROUTE_PROTOCOL and _table_of(message) is not None
    ]


def _rules(route: IPRoute, table: int | None) -> list[Any]:
    """Return our rules, of both families, that lead to ``table`` (None: to any of ours)."""
    return [
        message
        for family in _FAMILIES
        for message in route.get_rules(family=family)
        if message.get("protocol") == ROUTE_PROTOCOL
        and (found := _table_of(message)) is not None
        and table in (None, found)
    ]


def _rule(family: int, table: int) -> dict[str, Any]:
    return {
        "family": family,
        "table": table,
        "priority": _PRIORITY,
        "fwmark": FWMARK,
        "fwmask": _ALL_BITS,
        "protocol": ROUTE_PROTOCOL,
    }


def _delete_route(route: IPRoute, message: Any, table: int) -> None:
    with accepting(*GONE):
        ip = ip_address(message.get("dst"))
        route.route(
            "del",
            family=message["family"],
            dst=f"{ip}/{ip.max_prefixlen}",
            table=table,
            proto=ROUTE_PROTOCOL,
            scope=message["scope"],
        )


def _delete_rules(route: IPRoute, table: int, family: int) -> None:
    for rule in _rules(route, table):
        if rule["family"] == family:
            with accepting(*GONE):
                route.rule("del", **_rule(family, table))
