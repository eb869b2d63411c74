"""Who else on this host leads packets through an exit: another network of a node, or another node."""

from __future__ import annotations

import errno

from nostrvpn.host.exit_routing import exit_table, is_exit_table
from nostrvpn.host.state import ROUTE_PROTOCOL
from nostrvpn.io.netlink import marked_interfaces, refused

__all__ = ["exit_rivals", "rival_that_goes_first"]


def exit_rivals(interface: str) -> list[str]:
    """Return the interfaces, other than ``interface``, that rules of ours lead everything to.

    One whose interface is gone shows as its table's number. Blocks; SystemRefused.
    """
    tables = _tables() - {exit_table(interface)}
    return [_name(table) for table in sorted(tables)]


def rival_that_goes_first(interface: str) -> str | None:
    """Return another interface that the host's one exit belongs to, or None if it is ours to take.

    Who has its rules already has it. If two took it in the same moment, both see so, and the one with
    the lower number of its table keeps it. Blocks; SystemRefused.
    """
    tables, mine = _tables(), exit_table(interface)
    first = min((t for t in tables if t != mine and (mine not in tables or t < mine)), default=None)
    return None if first is None else _name(first)


def _name(table: int) -> str:
    names = {exit_table(link.name): link.name for link in marked_interfaces()}
    return names.get(table, f"table {table}")


def _tables() -> frozenset[int]:
    """Return our tables that rules of ours lead everything to."""
    from nostrvpn.io.pyroute import IPRoute, NetlinkError

    tables: set[int] = set()
    try:
        with IPRoute() as route:
            for family in (2, 10):  # AF_INET, AF_INET6
                for rule in route.get_rules(family=family):
                    table = rule.get("table") or 0
                    ours = rule.get("protocol") == ROUTE_PROTOCOL
                    if ours and is_exit_table(table):
                        tables.add(table)
    except NetlinkError as exc:
        raise refused("reading the routing rules", exc.code) from exc
    except OSError as exc:
        raise refused("reading the routing rules", exc.errno or errno.EIO) from exc
    return frozenset(tables)
