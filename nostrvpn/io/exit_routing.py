"""The rules and the routing table that lead into the tunnel to an exit, over rtnetlink.

Blocking; acts in the calling thread's network namespace. All of it carries our protocol number, so
cleaning up needs no record. The rule that leads into a table of ours says whose the other rules are: it
comes last and goes last. Nothing is taken away before what replaces it is there.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nostrvpn.host.exit_routing import (
    RULE_PRIORITIES,
    ExitRouting,
    ExitRule,
    exit_rules,
    exit_table,
    is_exit_table,
)
from nostrvpn.host.state import FWMARK, MARK_MASK, ROUTE_PROTOCOL
from nostrvpn.io.netlink import refused

if TYPE_CHECKING:
    from nostrvpn.io.pyroute import IPRoute

__all__ = ["apply_exit_routing", "remove_exit_routing"]

# Spec: linux/rtnetlink.h, linux/fib_rules.h, linux/in.h.
_RT_TABLE_MAIN = 254
_RTN_UNICAST, _RTN_UNREACHABLE = 1, 7
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK = 0, 253
_FIB_RULE_INVERT = 2
_UDP = 17
_IN_TUNNEL_METRIC = 1
# The last resort, after all others: what the kernel's documentation of VRFs recommends.
_UNREACHABLE_METRIC = 4278198272
_GONE = (errno.ESRCH, errno.ENOENT, errno.ENODEV)
# The link is not there yet, or any more: until it is, everything is unreachable.
_NO_LINK = (errno.ENODEV, errno.ENETDOWN, errno.ENXIO)
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

_Route = tuple[int, int | None]
"""IP version, and the index of the link that a default route leads to; None where it is unreachable."""


def apply_exit_routing(routing: ExitRouting, interface: str) -> bool:
    """Make our rules and our table what ``routing`` says; return whether that took a change.

    Without the link, all that would go there is unreachable. SystemRefused if the kernel refuses.
    """
    with _rtnetlink("routing through the exit") as route:
        if not routing.active:
            return _remove(route, exit_table(interface)) > 0
        changed = _apply_routes(route, routing, interface)
        return _apply_rules(route, routing, interface) or changed


def remove_exit_routing(interface: str | None = None) -> int:
    """Remove rules and routes of one interface, or of every one there ever was in this namespace.

    Return how many they were.
    """
    with _rtnetlink("removing the routing through the exit") as route:
        if interface is not None:
            return _remove(route, exit_table(interface))
        tables = {table for message in _rules(route) if is_exit_table(table := _table(message))}
        removed = sum(_remove(route, table) for table in tables)
        for message in (left := _rules(route)):
            _delete_rule(route, message)
        return removed + len(left)


def _apply_routes(route: IPRoute, routing: ExitRouting, interface: str) -> bool:
    from nostrvpn.io.pyroute import NetlinkError

    table, index, changed = exit_table(interface), _index(interface), False
    wanted: set[_Route] = {(version, None) for version in _versions()}
    if index is not None:
        wanted |= {(version, index) for version in routing.tunnelled & _versions()}
    found = _routes(route, table)
    # The last resorts first.
    for version, link in sorted(wanted - found.keys(), key=lambda item: item[1] is not None):
        try:
            with _allowed(errno.EEXIST):
                route.route("add", **_route(table, version, link))
            changed = True
        except NetlinkError as exc:
            if exc.code not in _NO_LINK:
                raise
    for key in found.keys() - wanted:
        _delete_route(route, found[key], table)
        changed = True
    return changed


def _apply_rules(route: IPRoute, routing: ExitRouting, interface: str) -> bool:
    table, versions = exit_table(interface), _versions()
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
        with _allowed(errno.EEXIST):
            route.rule("add", **_rule(rule, interface, table))
    if others:
        # Another network of this host has its exit; its rules are not for us to judge.
        surplus = [message for message in surplus if _table(message) == table]
    for message in surplus:
        _delete_rule(route, message)
    return bool(missing or surplus)


def _remove(route: IPRoute, table: int) -> int:
    """Remove a table of ours and the rules that go with it."""
    rules, routes = _rules(route), _routes(route, table)
    mine = [message for message in rules if _table(message) == table]
    if all(_table(message) in (_RT_TABLE_MAIN, table) for message in rules):
        # Nobody else's: also those of a start that never came to the last one.
        mine = [message for message in rules if _table(message) != table] + mine
    for message in mine:
        _delete_rule(route, message)
    for message in routes.values():
        _delete_route(route, message, table)
    return len(mine) + len(routes)


def _rules(route: IPRoute) -> list[Any]:
    """Return the rules of ours, of both families."""
    return [
        message
        for version in sorted(_versions())
        for message in route.get_rules(family=_family(version))
        if message.get("protocol") == ROUTE_PROTOCOL and message.get("priority") in RULE_PRIORITIES
    ]


def _routes(route: IPRoute, table: int) -> dict[_Route, Any]:
    found: dict[_Route, Any] = {}
    for version in sorted(_versions()):
        for message in route.get_routes(family=_family(version), table=table):
            if message["dst_len"] == 0 and message["proto"] == ROUTE_PROTOCOL:
                link = message.get("oif") if message["type"] == _RTN_UNICAST else None
                found[version, link] = message
    return found


def _route(table: int, version: int, link: int | None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "family": _family(version),
        "dst": "0.0.0.0/0" if version == 4 else "::/0",
        "proto": ROUTE_PROTOCOL,
        "table": table,
        "type": _RTN_UNREACHABLE if link is None else _RTN_UNICAST,
        "priority": _UNREACHABLE_METRIC if link is None else _IN_TUNNEL_METRIC,
    }
    if link is not None:
        made["oif"] = link
        made["scope"] = _RT_SCOPE_LINK if version == 4 else _RT_SCOPE_UNIVERSE
    return made


def _delete_route(route: IPRoute, message: Any, table: int) -> None:
    version = 4 if message["family"] == socket.AF_INET else 6
    link = message.get("oif") if message["type"] == _RTN_UNICAST else None
    with _allowed(*_GONE):
        route.route("del", **_route(table, version, link))


def _rule(rule: ExitRule, interface: str, table: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "family": _family(rule.version),
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
    with _allowed(*_GONE):
        route.rule("del", family=message["family"], flags=flags, **made)


def _table(message: Any) -> int:
    return int(message.get("table") or 0)


def _versions() -> frozenset[int]:
    """Return the IP versions that this kernel speaks."""
    return frozenset({4, 6} if Path("/proc/sys/net/ipv6").exists() else {4})


def _index(interface: str) -> int | None:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return None


def _family(version: int) -> int:
    return int(socket.AF_INET if version == 4 else socket.AF_INET6)


@contextmanager
def _allowed(*codes: int) -> Iterator[None]:
    """Accept a refusal that means: it is so already."""
    from nostrvpn.io.pyroute import NetlinkError

    try:
        yield
    except NetlinkError as exc:
        if exc.code not in codes:
            raise


@contextmanager
def _rtnetlink(action: str) -> Iterator[IPRoute]:
    from nostrvpn.io.pyroute import IPRoute, NetlinkError

    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as exc:
        raise refused(action, exc.code) from exc
    except OSError as exc:
        raise refused(action, exc.errno or errno.EIO) from exc
