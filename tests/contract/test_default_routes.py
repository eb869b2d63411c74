"""What is left of our routing tables when the rules that led there are gone: found without a record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nostrvpn.host.routing_tables import RoutingTable
from nostrvpn.io.booth_way import remove_booth_routing
from nostrvpn.io.default_routes import settle_default_routes
from nostrvpn.io.exit_routing import remove_exit_routing
from nostrvpn.io.rtnetlink import rtnetlink
from nostrvpn.io.upstream import remove_upstream_routing


def settle(table: int, interface: str) -> bool:
    with rtnetlink("testing") as route:
        return settle_default_routes(route, table, interface, frozenset({4, 6}))


def shown(netns: Any, table: int) -> str:
    # A table without a route cannot be asked for by its number.
    both = "".join(netns.ip(f, "route", "show", "table", "all") for f in ("-4", "-6"))
    return "\n".join(line for line in both.splitlines() if f"table {table} " in line)


@pytest.mark.parametrize(
    ("kind", "remove"),
    [
        (RoutingTable.EXIT, remove_exit_routing),
        (RoutingTable.BOOTHS, remove_booth_routing),
        (RoutingTable.UPSTREAM, remove_upstream_routing),
    ],
)
def test_routes_that_no_rule_leads_to_are_removed(
    netns: Any, kind: RoutingTable, remove: Callable[[], int]
) -> None:
    netns.ip("link", "set", "lo", "up")
    table, other = kind.number("nv0"), kind.number("nv0") ^ 0x01000000
    # Without a link of that name: only the last resorts; of lo as well as into it.
    assert netns.call(settle, table, "lo")
    assert not netns.call(settle, table, "lo")
    assert shown(netns, table).count("default") == 4
    netns.ip("route", "add", "unreachable", "192.0.2.0/24", "table", str(other))
    assert netns.call(remove) == 4
    assert shown(netns, table) == ""
    assert netns.call(remove) == 0
    assert "192.0.2.0/24" in shown(netns, other)


def test_a_link_that_went_leaves_what_is_unreachable(netns: Any) -> None:
    table = RoutingTable.EXIT.number("nv0")
    netns.ip("link", "add", "nv0", "type", "veth", "peer", "name", "far")
    for name in ("nv0", "far"):
        netns.ip("link", "set", name, "up")
    netns.call(settle, table, "nv0")
    assert shown(netns, table).count("dev nv0") == 2
    netns.ip("link", "del", "nv0")
    netns.call(settle, table, "nv0")
    assert shown(netns, table).count("unreachable default") == 2
    assert "nv0" not in shown(netns, table)
