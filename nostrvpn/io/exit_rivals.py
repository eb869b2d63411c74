"""Who else on this host leads packets through an exit: another network of a node, or another node."""

from __future__ import annotations

import errno

from nostrvpn.host.exit_routing import exit_table, is_exit_table
from nostrvpn.host.state import ROUTE_PROTOCOL
from nostrvpn.io.netlink import marked_interfaces, refused

__all__ = ["exit_rivals"]


def exit_rivals(interface: str) -> list[str]:
    """Return the interfaces, other than ``interface``, that rules of ours lead everything to.

    One whose interface is gone shows as its table's number. Blocks; SystemRefused.
    """
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
    tables.discard(exit_table(interface))
    if not tables:
        return []
    names = {exit_table(link.name): link.name for link in marked_interfaces()}
    return sorted(names.get(table, f"table {table}") for table in tables)
