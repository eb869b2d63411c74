"""The rules, the routing table and the nft table that lead guests to a WireGuard provider. Blocking."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nostrvpn.host.routing_tables import RoutingTable
from nostrvpn.host.state import ROUTE_PROTOCOL
from nostrvpn.host.upstream import (
    UPSTREAM_RULE_PRIORITIES,
    Upstream,
    render_upstream,
    upstream_interface,
    upstream_marks,
    upstream_rules,
    upstream_table,
)
from nostrvpn.io.default_routes import (
    add_default_route,
    remove_default_routes,
    tables_with_routes,
)
from nostrvpn.io.nftables import apply_ruleset, has_marks
from nostrvpn.io.rtnetlink import GONE, accepting, family_of, ip_versions, rtnetlink

if TYPE_CHECKING:
    from nostrvpn.io.pyroute import IPRoute

__all__ = ["apply_upstream", "lead_to_upstream", "remove_upstream_routing"]

# Spec: linux/rtnetlink.h.
_MAIN = 254
_NAMES = ("table", "priority", "protocol", "iifname", "oifname", "suppress_prefixlen")


def apply_upstream(upstream: Upstream, interface: str) -> bool:
    """Close what leads past the provider: the nft table, the rules and the last resorts.

    Return whether that took a change; SystemRefused. Before ``lead_to_upstream`` no guest gets out.
    """
    changed = not has_marks(upstream_table(interface), upstream_marks(upstream, interface))
    if changed:
        apply_ruleset(render_upstream(upstream, interface))
    table = RoutingTable.UPSTREAM.number(interface)
    with rtnetlink("routing to the provider") as route:
        for version in ip_versions():
            changed |= add_default_route(route, table, version, None)
        wanted = {_key(rule): rule for rule in _rules(upstream, interface, table)}
        found = {_key(rule): rule for rule in _found(route, {table, _MAIN}, interface)}
        for key in wanted.keys() - found.keys():
            with accepting(errno.EEXIST):
                route.rule("add", **wanted[key])
                changed = True
        for key in found.keys() - wanted.keys():
            with accepting(*GONE):
                route.rule("del", **found[key])
    return changed


def lead_to_upstream(upstream: Upstream, interface: str) -> None:
    """Lead guests' packets to the provider's link, which is there and up; SystemRefused."""
    name, table = upstream.host.interface, RoutingTable.UPSTREAM.number(interface)
    with suppress(OSError):  # stricter ones ask who would answer by this link: nobody but guests
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("2", encoding="ascii")
    for version, word in ((4, "ipv4"), (6, "ipv6")):
        setting = Path(f"/proc/sys/net/{word}/conf/{name}/forwarding")
        with suppress(OSError):
            if version in upstream.versions and setting.read_text(encoding="ascii").strip() != "1":
                setting.write_text("1", encoding="ascii")
    index = socket.if_nametoindex(name)
    with rtnetlink("routing to the provider") as route:
        for version in upstream.versions & ip_versions():
            add_default_route(route, table, version, index)


def remove_upstream_routing(interface: str | None = None) -> int:
    """Remove rules and routes of one interface, or of all there ever were; return how many."""
    with rtnetlink("removing the routing to the provider") as route:
        rules = list(_found(route, None, interface))
        if interface is None:
            kind = RoutingTable.UPSTREAM
            tables = {table for rule in rules if kind.includes(table := int(rule["table"]))}
            tables |= tables_with_routes(route, kind)
        else:
            tables = {RoutingTable.UPSTREAM.number(interface)}
        for rule in rules:
            with accepting(*GONE):
                route.rule("del", **rule)
        return len(rules) + sum(remove_default_routes(route, table) for table in tables)


def _rules(upstream: Upstream, interface: str, table: int) -> list[dict[str, Any]]:
    made = []
    for wanted in upstream_rules(interface, upstream.behind):
        rule: dict[str, Any] = {**wanted}
        version, to = rule.pop("version"), rule.pop("to", None)
        if version not in ip_versions():
            continue
        rule |= {"family": family_of(version), "protocol": ROUTE_PROTOCOL}
        rule["table"] = table if to is None else _MAIN
        if to is not None:
            address, _, length = to.partition("/")
            rule |= {"dst": address, "dst_len": int(length), "suppress_prefixlen": 0}
        made.append(rule)
    return made


def _found(
    route: IPRoute, tables: set[int] | None, interface: str | None
) -> Iterator[dict[str, Any]]:
    """Yield our rules, as ``rule`` takes them; of all interfaces, or of one."""
    names = None if interface is None else {interface, upstream_interface(interface)}
    for version in sorted(ip_versions()):
        for message in route.get_rules(family=family_of(version)):
            rule = {name: message.get(name) for name in _NAMES if message.get(name) is not None}
            ours = rule.get("protocol") == ROUTE_PROTOCOL
            if not ours or rule.get("priority") not in UPSTREAM_RULE_PRIORITIES:
                continue
            if names is not None and not {rule.get("iifname"), rule.get("oifname")} & names:
                continue
            if rule.get("suppress_prefixlen") == 0xFFFFFFFF:
                del rule["suppress_prefixlen"]
            rule["family"] = family_of(version)
            if message.get("dst"):
                rule |= {"dst": message.get("dst"), "dst_len": message["dst_len"]}
            yield rule


def _key(rule: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in rule.items()))
