"""The way out of booths, in the kernel: rules, a routing table and an nft table; and their links.

Blocking; acts in the calling thread's network namespace. All of it carries our marks, so that cleaning
up needs no record. A link goes before what holds it back does.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nostrvpn.host.booth import (
    BOOTH_NETWORKS,
    BOOTH_RULE_PRIORITIES,
    BoothRule,
    BoothWay,
    booth_alias,
    booth_marks,
    booth_number,
    booth_rules,
    booth_table,
    render_booths,
)
from nostrvpn.host.routing_tables import RoutingTable
from nostrvpn.host.state import ROUTE_PROTOCOL, is_marked
from nostrvpn.io.default_routes import (
    remove_default_routes,
    settle_default_routes,
    tables_with_routes,
)
from nostrvpn.io.netlink import delete_link, links
from nostrvpn.io.nftables import apply_ruleset, delete_table, has_marks, own_tables
from nostrvpn.io.rtnetlink import GONE, accepting, family_of, ip_versions, rtnetlink

if TYPE_CHECKING:
    from nostrvpn.io.pyroute import IPRoute

__all__ = ["apply_booths", "booth_links", "delete_booths", "remove_booth_routing"]

# Spec: linux/rtnetlink.h, linux/fib_rules.h.
_RT_TABLE_MAIN = 254
_TO_TABLE, _UNREACHABLE = 1, 7
_KEPT = ("table", "priority", "protocol", "iifname", "suppress_prefixlen", "action")
_NONE = 0xFFFFFFFF


def booth_links(interface: str | None = None) -> frozenset[str]:
    """Return the links in the host of one tunnel's booths, or of all."""
    return frozenset(
        link.name
        for link in links()
        if booth_number(link.name) is not None
        and (is_marked(link.alias) if interface is None else link.alias == booth_alias(interface))
    )


def delete_booths(interface: str | None = None, keep: frozenset[str] = frozenset()) -> list[str]:
    """Delete the links of a tunnel's booths, or of all, but for ``keep``; return their names.

    Whatever runs in there has no network any more. SystemRefused.
    """
    gone = sorted(booth_links(interface) - keep)
    for name in gone:
        delete_link(name)
    return gone


def apply_booths(way: BoothWay, interface: str) -> bool:
    """Make tables and rules what ``way`` says; return whether that took a change.

    Without the tunnel's link, all that would go there is unreachable. SystemRefused by nft or kernel.
    """
    table = booth_table(interface)
    if way.is_empty:
        changed = remove_booth_routing(interface) > 0
        if table in own_tables():
            delete_table(table)
            changed = True
        return changed
    changed = not has_marks(table, booth_marks(way, interface))
    if changed:
        apply_ruleset(render_booths(way, interface))
    with rtnetlink("routing from commands into the tunnel") as route:
        routes = RoutingTable.BOOTHS.number(interface)
        changed = settle_default_routes(route, routes, interface, way.versions) or changed
        changed = _apply_rules(route, way, routes) or changed
    _accept_answers(interface)
    return changed


def remove_booth_routing(interface: str | None = None) -> int:
    """Remove rules and routes of one tunnel's booths, or of all; return how many they were."""
    with rtnetlink("removing the routing from commands into the tunnel") as route:
        found = _rules(route)
        theirs = {table for one in found if RoutingTable.BOOTHS.includes(table := _table(one))}
        if interface is None:
            tables = theirs | tables_with_routes(route, RoutingTable.BOOTHS)
        else:
            tables = {RoutingTable.BOOTHS.number(interface)}
        # Those that say nothing of whose they are go with the last one that does.
        gone = [one for one in found if _table(one) in tables]
        if theirs <= tables and (gone or interface is None):
            gone += [one for one in found if _table(one) not in theirs]
        for message in gone:
            _delete_rule(route, message)
        return len(gone) + sum(remove_default_routes(route, table) for table in tables)


def _accept_answers(interface: str) -> None:
    """Let answers in whose senders the host itself reaches another way; it is our own interface.

    Spec: ip-sysctl.rst, ``rp_filter``: what holds is the larger value of "all" and of the interface.
    """
    path = Path("/proc/sys/net/ipv4/conf") / interface / "rp_filter"
    with suppress(OSError):
        if path.read_text().strip() != "2":
            path.write_text("2")


def _apply_rules(route: IPRoute, way: BoothWay, table: int) -> bool:
    wanted = {_rule(one, table) for one in booth_rules(way) if one.version in ip_versions()}
    found = {_spoken(message): message for message in _rules(route)}
    mine = {text: m for text, m in found.items() if _table(m) == table}
    missing = wanted - found.keys()
    for rule in sorted(missing):
        with accepting(errno.EEXIST):
            route.rule("add", **dict(rule))
    surplus = [message for text, message in mine.items() if text not in wanted]
    for message in surplus:
        _delete_rule(route, message)
    return bool(missing or surplus)


_Rule = tuple[tuple[str, Any], ...]
"""A rule as pyroute2 takes it, sorted by name."""


def _rule(rule: BoothRule, table: int) -> _Rule:
    made: dict[str, Any] = {
        "family": family_of(rule.version),
        "priority": rule.priority,
        "protocol": ROUTE_PROTOCOL,
        "action": _UNREACHABLE if rule.is_end else _TO_TABLE,
    }
    if rule.link:
        made |= {"iifname": rule.link, "table": table}
    else:
        network = next(n for n in BOOTH_NETWORKS if n.version == rule.version)
        made |= {"dst": str(network.network_address), "dst_len": network.prefixlen}
        if not rule.is_end:
            made |= {"table": _RT_TABLE_MAIN, "suppress_prefixlen": 0}
    return tuple(sorted(made.items()))


def _spoken(message: Any) -> _Rule:
    """Return a rule that was found as :func:`_rule` has it."""
    made = {name: message.get(name) for name in _KEPT}
    made["family"], made["action"] = message["family"], message["action"]
    if made["suppress_prefixlen"] == _NONE:
        made["suppress_prefixlen"] = None
    if message.get("dst"):
        made |= {"dst": message.get("dst"), "dst_len": message["dst_len"]}
    if not made["table"]:
        made["table"] = None
    return tuple(sorted((name, value) for name, value in made.items() if value is not None))


def _delete_rule(route: IPRoute, message: Any) -> None:
    with accepting(*GONE):
        route.rule("del", **dict(_spoken(message)))


def _rules(route: IPRoute) -> list[Any]:
    return [
        message
        for version in sorted(ip_versions())
        for message in route.get_rules(family=family_of(version))
        if message.get("protocol") == ROUTE_PROTOCOL
        and message.get("priority") in BOOTH_RULE_PRIORITIES
    ]


def _table(message: Any) -> int:
    return int(message.get("table") or 0)
