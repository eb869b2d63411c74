"""A routing table of ours: default routes into a link, and behind them ``unreachable``.

Where the link is gone, what looks the table up goes nowhere. Functions take an open ``IPRoute``.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nostrvpn.host.routing_tables import RoutingTable
from nostrvpn.host.state import ROUTE_PROTOCOL
from nostrvpn.io.rtnetlink import GONE, accepting, family_of, ip_versions

if TYPE_CHECKING:
    from nostrvpn.io.pyroute import IPRoute

__all__ = [
    "add_default_route",
    "remove_default_routes",
    "settle_default_routes",
    "tables_with_routes",
]

# Spec: linux/rtnetlink.h.
_RTN_UNICAST, _RTN_UNREACHABLE = 1, 7
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK = 0, 253
_INTO_LINK_METRIC = 1
# The last resort, after all others: what the kernel's documentation of VRFs recommends.
_UNREACHABLE_METRIC = 4278198272
# The link is not there yet, or any more: until it is, everything is unreachable.
_NO_LINK = (errno.ENODEV, errno.ENETDOWN, errno.ENXIO)

_Way = tuple[int, int | None]
"""IP version, and the index of the link that a default route leads to; None where it is unreachable."""


def settle_default_routes(
    route: IPRoute, table: int, interface: str, versions: frozenset[int]
) -> bool:
    """Lead these IP versions into a link, and nothing else anywhere; return whether that took a change.

    Without the link, all that would go there is unreachable.
    """
    from nostrvpn.io.pyroute import NetlinkError

    changed, index = False, None
    with suppress(OSError):
        index = socket.if_nametoindex(interface)
    wanted: set[_Way] = {(version, None) for version in ip_versions()}
    if index is not None:
        wanted |= {(version, index) for version in versions & ip_versions()}
    found = _found(route, table)
    # The last resorts first.
    for version, link in sorted(wanted - found, key=lambda way: way[1] is not None):
        try:
            # Another link's goes before: the kernel takes no second one beside it.
            for other in found - wanted if link is not None else ():
                if other[0] == version:
                    _delete(route, table, *other)
            add_default_route(route, table, version, link)
            changed = True
        except NetlinkError as exc:
            if exc.code not in _NO_LINK:
                raise
    for version, link in found - wanted:
        _delete(route, table, version, link)
        changed = True
    return changed


def add_default_route(route: IPRoute, table: int, version: int, link: int | None) -> bool:
    """Lead an IP version into the link with this index, or nowhere (None); return False if it was so."""
    is_new = False
    with accepting(errno.EEXIST):
        route.route("add", **_route(table, version, link))
        is_new = True
    return is_new


def remove_default_routes(route: IPRoute, table: int) -> int:
    """Remove all of a table; return how many routes that was."""
    found = _found(route, table)
    for version, link in found:
        _delete(route, table, version, link)
    return len(found)


def tables_with_routes(route: IPRoute, kind: RoutingTable) -> set[int]:
    """Return the tables of a kind that hold routes of ours, also those that no rule leads to."""
    return {
        table
        for version in sorted(ip_versions())
        for message in route.get_routes(family=family_of(version))
        if message["proto"] == ROUTE_PROTOCOL
        and kind.includes(table := int(message.get("table") or 0))
    }


def _found(route: IPRoute, table: int) -> set[_Way]:
    return {
        (version, message.get("oif") if message["type"] == _RTN_UNICAST else None)
        for version in sorted(ip_versions())
        for message in route.get_routes(family=family_of(version), table=table)
        if message["dst_len"] == 0 and message["proto"] == ROUTE_PROTOCOL
    }


def _delete(route: IPRoute, table: int, version: int, link: int | None) -> None:
    with accepting(*GONE):
        route.route("del", **_route(table, version, link))


def _route(table: int, version: int, link: int | None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "family": family_of(version),
        "dst": "0.0.0.0/0" if version == 4 else "::/0",
        "proto": ROUTE_PROTOCOL,
        "table": table,
        "type": _RTN_UNREACHABLE if link is None else _RTN_UNICAST,
        "priority": _UNREACHABLE_METRIC if link is None else _INTO_LINK_METRIC,
    }
    if link is not None:
        made |= {"oif": link, "scope": _RT_SCOPE_LINK if version == 4 else _RT_SCOPE_UNIVERSE}
    return made
