"""Who else on this host leads packets through an exit: another network of a node, or another node."""

from __future__ import annotations

from nostrvpn.host.routing_tables import RoutingTable
from nostrvpn.host.state import ROUTE_PROTOCOL
from nostrvpn.io.netlink import marked_interfaces
from nostrvpn.io.rtnetlink import family_of, rtnetlink

__all__ = ["exit_rivals", "rival_that_goes_first"]


def exit_rivals(interface: str) -> list[str]:
    """Return the interfaces, other than ``interface``, that rules of ours lead everything to.

    One whose interface is gone shows as its table's number. Blocks; SystemRefused.
    """
    tables = _tables() - {RoutingTable.EXIT.number(interface)}
    return [_name(table) for table in sorted(tables)]


def rival_that_goes_first(interface: str) -> str | None:
    """Return another interface that the host's one exit belongs to, or None if it is ours to take.

    Who has its rules already has it. If two took it in the same moment, both see so, and the one with
    the lower number of its table keeps it. Blocks; SystemRefused.
    """
    tables, mine = _tables(), RoutingTable.EXIT.number(interface)
    first = min((t for t in tables if t != mine and (mine not in tables or t < mine)), default=None)
    return None if first is None else _name(first)


def _name(table: int) -> str:
    names = {RoutingTable.EXIT.number(link.name): link.name for link in marked_interfaces()}
    return names.get(table, f"table {table}")


def _tables() -> frozenset[int]:
    """Return our tables that rules of ours lead everything to."""
    with rtnetlink("reading the routing rules") as route:
        return frozenset(
            table
            for version in (4, 6)
            for rule in route.get_rules(family=family_of(version))
            if rule.get("protocol") == ROUTE_PROTOCOL
            and RoutingTable.EXIT.includes(table := rule.get("table") or 0)
        )
