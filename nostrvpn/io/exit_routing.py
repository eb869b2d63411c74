"""The rules and the routing table that lead into the tunnel to an exit, over rtnetlink.

Blocking; acts in the calling thread's network namespace. All of it carries our protocol number, so
cleaning up needs no record. The rule that leads into a table of ours says whose the other rules are: it
comes last and goes last. Nothing is taken away before what replaces it is there.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

from nostrvpn.host.exit_routing import RULE_PRIORITIES, ExitRouting, ExitRule, exit_rules
from nostrvpn.host.routing_tables import RoutingTable
from nostrvpn.host.state import FWMARK, MARK_MASK, ROUTE_PROTOCOL
from nostrvpn.io.default_routes import (
    remove_default_routes,
    settle_default_routes,
    tables_with_routes,
)
from nostrvpn.io.rtnetlink import GONE, accepting, family_of, ip_versions, rtnetlink

if TYPE_CHECKING:
    from nostrvpn.io.pyroute import IPRoute

__all__ = ["apply_exit_routing", "remove_exit_routing"]

# Spec: linux/rtnetlink.h, linux/fib_rules.h, linux/in.h.
_RT_TABLE_MAIN = 254
_FIB_RULE_INVERT = 2
_UDP = 17
_RULE_ATTRIBUTES = (
    "table",
    "priority",
    "protocol",
    "iifname",
    "fwmark",
    "fwmask",
    "ip_proto",
    "sport_range",
    "dport_range",
)


def apply_exit_routing(routing: ExitRouting, interface: str) -> bool:
    """Make our rules and our table what ``routing`` says; return whether that took a change.

    Without the link, all that would go there is unreachable. SystemRefused if the kernel refuses.
    """
    with rtnetlink("routing through the exit") as route:
        table = RoutingTable.EXIT.number(interface)
        if not routing.active:
            return _remove(route, table) > 0
        link = routing.link or interface
        changed = settle_default_routes(route, table, link, routing.tunnelled)
        return _apply_rules(route, routing, interface) or changed


def remove_exit_routing(interface: str | None = None) -> int:
    """Remove rules and routes of one interface, or of every one there ever was in this namespace.

    Return how many they were.
    """
    with rtnetlink("removing the routing through the exit") as route:
        if interface is not None:
            return _remove(route, RoutingTable.EXIT.number(interface))
        ruled = {_table(message) for message in _rules(route)}
        tables = {table for table in ruled if RoutingTable.EXIT.includes(table)}
        tables |= tables_with_routes(route, RoutingTable.EXIT)
        removed = sum(_remove(route, table) for table in tables)
        for message in (left := _rules(route)):
            _delete_rule(route, message)
        return removed + len(left)


def _apply_rules(route: IPRoute, routing: ExitRouting, interface: str) -> bool:
    table, versions = RoutingTable.EXIT.number(interface), ip_versions()
    wanted = {rule for rule in exit_rules(routing) if rule.version in versions}
    found = _rules(route)
    others = any(_table(message) not in (_RT_TABLE_MAIN, table) for message in found)
    there: dict[ExitRule, Any] = {}
    surplus = []
    for message in found:
        rule = _parse(message, interface, table)
        if rule is None or rule not in wanted or rule in there:
            surplus.append(message)
        else:
            there[rule] = message
    missing = sorted(wanted - there.keys())
    for rule in missing:
        with accepting(errno.EEXIST):
            route.rule("add", **_rule(rule, interface, table))
    if others:
        # Another network of this host has its exit; its rules are not for us to judge.
        surplus = [message for message in surplus if _table(message) == table]
    for message in surplus:
        _delete_rule(route, message)
    return bool(missing or surplus)


def _remove(route: IPRoute, table: int) -> int:
    """Remove a table of ours and the rules that go with it."""
    rules = _rules(route)
    mine = [message for message in rules if _table(message) == table]
    if all(_table(message) in (_RT_TABLE_MAIN, table) for message in rules):
        # Nobody else's: also those of a start that never came to the last one.
        mine = [message for message in rules if _table(message) != table] + mine
    for message in mine:
        _delete_rule(route, message)
    return len(mine) + remove_default_routes(route, table)


def _rules(route: IPRoute) -> list[Any]:
    """Return the rules of ours, of both families."""
    return [
        message
        for version in sorted(ip_versions())
        for message in route.get_rules(family=family_of(version))
        if message.get("protocol") == ROUTE_PROTOCOL and message.get("priority") in RULE_PRIORITIES
    ]


def _rule(rule: ExitRule, interface: str, table: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "family": family_of(rule.version),
        "priority": rule.priority,
        "protocol": ROUTE_PROTOCOL,
        "table": table if rule.is_exit else _RT_TABLE_MAIN,
    }
    if rule.is_exit:
        return made | {"fwmark": FWMARK, "fwmask": MARK_MASK, "flags": _FIB_RULE_INVERT}
    made["suppress_prefixlen"] = 0
    if rule.to:
        address, _, length = rule.to.partition("/")
        made |= {"dst": address, "dst_len": int(length)}
    if rule.ports:
        source, destination = (f"{port}:{port}" for port in rule.ports)
        made |= {"ip_proto": _UDP, "sport_range": source, "dport_range": destination}
    return made | ({"iifname": interface} if rule.inside else {})


def _parse(message: Any, interface: str, table: int) -> ExitRule | None:
    """Return the rule that a message is; None where it does not do what such a rule of ours does."""
    version = 4 if message["family"] == socket.AF_INET else 6
    to = f"{message.get('dst')}/{message['dst_len']}" if message.get("dst") else ""
    ports = None
    if message.get("ip_proto") == _UDP:
        ranges = [str(message.get(name) or "0:0") for name in ("sport_range", "dport_range")]
        source, destination = (int(text.partition(":")[0]) for text in ranges)
        ports = source, destination
    rule = ExitRule(
        message.get("priority"), version, to, ports, message.get("iifname") == interface
    )
    wanted = _rule(rule, interface, table)
    for name in (*_RULE_ATTRIBUTES, "suppress_prefixlen"):
        found = message.get(name)
        if name == "suppress_prefixlen" and found == 0xFFFFFFFF:
            found = None
        if (found or None) != (wanted.get(name) or None):
            return None
    suppressed = message.get("suppress_prefixlen") == 0
    inverted = bool(message["flags"] & _FIB_RULE_INVERT)
    fits = suppressed == (not rule.is_exit) and inverted == rule.is_exit
    return rule if fits else None


def _delete_rule(route: IPRoute, message: Any) -> None:
    made = {name: message.get(name) for name in _RULE_ATTRIBUTES if message.get(name) is not None}
    if message.get("dst"):
        made |= {"dst": message.get("dst"), "dst_len": message["dst_len"]}
    flags = message["flags"] & _FIB_RULE_INVERT
    with accepting(*GONE):
        route.rule("del", family=message["family"], flags=flags, **made)


def _table(message: Any) -> int:
    return int(message.get("table") or 0)
