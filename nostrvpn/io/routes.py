"""Our routes into the tunnel, in the main table, with their metrics; on an open ``IPRoute``."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

from nostrvpn.errors import SystemRefused
from nostrvpn.host.diff import AddRoute
from nostrvpn.host.state import ROUTE_PROTOCOL, IPNetwork, RouteLimit

if TYPE_CHECKING:
    from nostrvpn.io.pyroute import IPRoute

__all__ = ["add_route", "our_routes", "parse_destination", "remove_route"]

# Spec: linux/rtnetlink.h.
_RT_TABLE_MAIN = 254
_RT_SCOPE_UNIVERSE = 0
_RT_SCOPE_LINK = 253
_RTN_UNICAST = 1


def add_route(route: IPRoute, op: AddRoute, index: int) -> None:
    """Add or replace a route over link ``index``; SystemRefused if somebody else has it."""
    from nostrvpn.io.pyroute import NetlinkError

    arguments = _route(op.network, index)
    if op.limit is not None:
        arguments["metrics"] = {"mtu": op.limit.mtu, "advmss": op.limit.mss}
    try:
        route.route("replace" if op.replace else "add", **arguments)
    except NetlinkError as exc:
        if exc.code != errno.EEXIST:
            raise
        if op.network not in our_routes(route, index):
            raise SystemRefused(
                f"{op}: the host has another route to {op.network}",
                "Another program or the local network uses these addresses.",
            ) from exc


def remove_route(route: IPRoute, network: IPNetwork, index: int) -> None:
    """Remove a route of ours over link ``index``."""
    route.route("del", **_route(network, index))


def our_routes(route: IPRoute, index: int) -> dict[IPNetwork, RouteLimit | None]:
    """Return our routes over link ``index``, each with its metrics if it has any."""
    return {
        (network := parse_destination(message)): _parse_limit(network, message)
        for family in (socket.AF_INET, socket.AF_INET6)
        for message in route.get_routes(family=int(family), table=_RT_TABLE_MAIN)
        if message["proto"] == ROUTE_PROTOCOL and message.get("oif") == index
    }


def _parse_limit(network: IPNetwork, message: Any) -> RouteLimit | None:
    metrics = dict((message.get("metrics") or {}).get("attrs", ()))
    mtu, mss = metrics.get("RTAX_MTU"), metrics.get("RTAX_ADVMSS")
    return None if mtu is None and mss is None else RouteLimit(network, mtu or 0, mss)


def parse_destination(message: Any) -> IPNetwork:
    """Return the destination of a route in pyroute2's form."""
    # A default route has no destination attribute.
    unspecified = "0.0.0.0" if message["family"] == socket.AF_INET else "::"
    return ip_network(f"{message.get('dst') or unspecified}/{message['dst_len']}")


def _route(network: IPNetwork, index: int) -> dict[str, Any]:
    return {
        "family": int(socket.AF_INET if network.version == 4 else socket.AF_INET6),
        "dst": str(network),
        "oif": index,
        "proto": ROUTE_PROTOCOL,
        "table": _RT_TABLE_MAIN,
        "type": _RTN_UNICAST,
        "scope": _RT_SCOPE_LINK if network.version == 4 else _RT_SCOPE_UNIVERSE,
    }
