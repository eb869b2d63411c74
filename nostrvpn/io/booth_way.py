"""The way out of booths, in the kernel: rules, a routing table and an nft table; and their links.

Blocking; acts in the calling thread's network namespace. All of it carries our marks, so that cleaning
up needs no record. A link goes before what holds it back does.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    booth_routing_table,
    booth_rules,
    booth_table,
    is_booth_table,
    render_booths,
)
from nostrvpn.host.state import ROUTE_PROTOCOL, is_marked
from nostrvpn.io.netlink import delete_link, links, refused
from nostrvpn.io.nftables import apply_ruleset, delete_table, has_marks, own_tables

if TYPE_CHECKING:
    from nostrvpn.io.pyroute import IPRoute

__all__ = ["apply_booths", "booth_links", "delete_booths", "remove_booth_routing"]

# Spec: linux/rtnetlink.h, linux/fib_rules.h.
_RT_TABLE_MAIN = 254
_RTN_UNICAST, _RTN_UNREACHABLE = 1, 7
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK = 0, 253
_TO_TABLE, _UNREACHABLE = 1, 7
_IN_TUNNEL_METRIC, _UNREACHABLE_METRIC = 1, 4278198272
_GONE = (errno.ESRCH, errno.ENOENT, errno.ENODEV)
_NO_LINK = (errno.ENODEV, errno.ENETDOWN, errno.ENXIO)
_FAMILIES = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
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
    with _rtnetlink("routing from commands into the tunnel") as route:
        changed = _apply_routes(route, way, interface) or changed
        changed = _apply_rules(route, way, interface) or changed
    _accept_answers(interface)
    return changed


def remove_booth_routing(interface: str | None = None) -> int:
    """Remove rules and routes of one tunnel's booths, or of all; return how many they were."""
    with _rtnetlink("removing the routing from commands into the tunnel") as route:
        found = _rules(route)
        if interface is None:
            tables = {table for one in found if is_booth_table(table := _table(one))}
        else:
            tables = {booth_routing_table(interface)}
        # Those that say nothing of whose they are go with the last one that does.
        others = any(is_booth_table(t := _table(one)) and t not in tables for one in found)
        gone = [one for one in found if _table(one) in tables]
        if not others and (gone or interface is None):
            gone += [one for one in found if not is_booth_table(_table(one))]
        for message in gone:
            _delete_rule(route, message)
        routes = [(table, key) for table in tables for key in _routes(route, table)]
        for table, (version, link) in routes:
            with _allowed(*_GONE):
                route.route("del", **_route(table, version, link))
        return len(gone) + len(routes)


def _accept_answers(interface: str) -> None:
    """Let answers in whose senders the host itself reaches another way; it is our own interface.

    Spec: ip-sysctl.rst, ``rp_filter``: what holds is the larger value of "all" and of the interface.
    """
    path = Path("/proc/sys/net/ipv4/conf") / interface / "rp_filter"
    with suppress(OSError):
        if path.read_text().strip() != "2":
            path.write_text("2")


def _apply_routes(route: IPRoute, way: BoothWay, interface: str) -> bool:
    from nostrvpn.io.pyroute import NetlinkError

    table, changed, index = booth_routing_table(interface), False, None
    with suppress(OSError):
        index = socket.if_nametoindex(interface)
    wanted: set[tuple[int, int | None]] = {(version, None) for version in _versions()}
    if index is not None:
        wanted |= {(version, index) for version in way.versions & _versions()}
    found = _routes(route, table)
    # The last resorts first.
    for version, link in sorted(wanted - found, key=lambda item: item[1] is not None):
        try:
            with _allowed(errno.EEXIST):
                route.route("add", **_route(table, version, link))
            changed = True
        except NetlinkError as exc:
            if exc.code not in _NO_LINK:
                raise
    for version, link in found - wanted:
        with _allowed(*_GONE):
            route.route("del", **_route(table, version, link))
        changed = True
    return changed


def _apply_rules(route: IPRoute, way: BoothWay, interface: str) -> bool:
    table = booth_routing_table(interface)
    wanted = {_rule(one, table) for one in booth_rules(way) if one.version in _versions()}
    found = {_spoken(message): message for message in _rules(route)}
    mine = {text: m for text, m in found.items() if _table(m) == table}
    missing = wanted - found.keys()
    for rule in sorted(missing):
        with _allowed(errno.EEXIST):
            route.rule("add", **dict(rule))
    surplus = [message for text, message in mine.items() if text not in wanted]
    for message in surplus:
        _delete_rule(route, message)
    return bool(missing or surplus)


_Rule = tuple[tuple[str, Any], ...]
"""A rule as pyroute2 takes it, sorted by name."""


def _rule(rule: BoothRule, table: int) -> _Rule:
    made: dict[str, Any] = {
        "family": _FAMILIES[rule.version],
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
    with _allowed(*_GONE):
        route.rule("del", **dict(_spoken(message)))


def _rules(route: IPRoute) -> list[Any]:
    return [
        message
        for version in sorted(_versions())
        for message in route.get_rules(family=_FAMILIES[version])
        if message.get("protocol") == ROUTE_PROTOCOL
        and message.get("priority") in BOOTH_RULE_PRIORITIES
    ]


def _routes(route: IPRoute, table: int) -> set[tuple[int, int | None]]:
    return {
        (version, message.get("oif") if message["type"] == _RTN_UNICAST else None)
        for version in sorted(_versions())
        for message in route.get_routes(family=_FAMILIES[version], table=table)
        if message["dst_len"] == 0 and message["proto"] == ROUTE_PROTOCOL
    }


def _route(table: int, version: int, link: int | None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "family": _FAMILIES[version],
        "dst": "0.0.0.0/0" if version == 4 else "::/0",
        "proto": ROUTE_PROTOCOL,
        "table": table,
        "type": _RTN_UNREACHABLE if link is None else _RTN_UNICAST,
        "priority": _UNREACHABLE_METRIC if link is None else _IN_TUNNEL_METRIC,
    }
    if link is not None:
        scope = _RT_SCOPE_LINK if version == 4 else _RT_SCOPE_UNIVERSE
        made |= {"oif": link, "scope": scope}
    return made


def _table(message: Any) -> int:
    return int(message.get("table") or 0)


def _versions() -> frozenset[int]:
    """Return the IP versions that this kernel speaks."""
    return frozenset({4, 6} if Path("/proc/sys/net/ipv6").exists() else {4})


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
