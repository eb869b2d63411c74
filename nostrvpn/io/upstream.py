"""The rules, the routing table and the nft table that lead guests to a WireGuard provider. Blocking."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nostrvpn.host.state import ROUTE_PROTOCOL
from nostrvpn.host.upstream import (
    UPSTREAM_RULE_PRIORITIES,
    Upstream,
    is_upstream_table,
    render_upstream,
    upstream_interface,
    upstream_marks,
    upstream_routing_table,
    upstream_rules,
    upstream_table,
)
from nostrvpn.io.netlink import refused
from nostrvpn.io.nftables import apply_ruleset, has_marks

if TYPE_CHECKING:
    from nostrvpn.io.pyroute import IPRoute

__all__ = ["apply_upstream", "lead_to_upstream", "remove_upstream_routing"]

# Spec: linux/rtnetlink.h.
_MAIN = 254
_UNICAST, _UNREACHABLE = 1, 7
_LINK_METRIC, _LAST_METRIC = 1, 4278198272
_NAMES = ("table", "priority", "protocol", "iifname", "oifname", "suppress_prefixlen")


def apply_upstream(upstream: Upstream, interface: str) -> bool:
    """Close what leads past the provider: the nft table, the rules and the last resorts.

    Return whether that took a change; SystemRefused. Before ``lead_to_upstream`` no guest gets out.
    """
    changed = not has_marks(upstream_table(interface), upstream_marks(upstream, interface))
    if changed:
        apply_ruleset(render_upstream(upstream, interface))
    table = upstream_routing_table(interface)
    with _rtnetlink("routing to the provider") as route:
        for version in _versions():
            changed |= _add(route, "route", _route(table, version, None))
        wanted = {_key(rule): rule for rule in _rules(upstream, interface, table)}
        found = {_key(rule): rule for rule in _found(route, {table, _MAIN}, interface)}
        for key in wanted.keys() - found.keys():
            changed |= _add(route, "rule", wanted[key])
        for key in found.keys() - wanted.keys():
            with _suppress_gone():
                route.rule("del", **found[key])
    return changed


def lead_to_upstream(upstream: Upstream, interface: str) -> None:
    """Lead guests' packets to the provider's link, which is there and up; SystemRefused."""
    name, table = upstream.host.interface, upstream_routing_table(interface)
    with suppress(OSError):  # stricter ones ask who would answer by this link: nobody but guests
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("2", encoding="ascii")
    for version, word in ((4, "ipv4"), (6, "ipv6")):
        setting = Path(f"/proc/sys/net/{word}/conf/{name}/forwarding")
        with suppress(OSError):
            if version in upstream.versions and setting.read_text(encoding="ascii").strip() != "1":
                setting.write_text("1", encoding="ascii")
    index = socket.if_nametoindex(name)
    with _rtnetlink("routing to the provider") as route:
        for version in upstream.versions & _versions():
            _add(route, "route", _route(table, version, index))


def remove_upstream_routing(interface: str | None = None) -> int:
    """Remove rules and routes of one interface, or of all there ever were; return how many."""
    with _rtnetlink("removing the routing to the provider") as route:
        rules = list(_found(route, None, interface))
        tables = {int(rule["table"]) for rule in rules if is_upstream_table(int(rule["table"]))}
        if interface is not None:
            tables = {upstream_routing_table(interface)}
        for rule in rules:
            with _suppress_gone():
                route.rule("del", **rule)
        count = len(rules)
        for table in tables:
            for version in _versions():
                for message in route.get_routes(family=_family(version), table=table):
                    link = message.get("oif") if message["type"] == _UNICAST else None
                    with _suppress_gone():
                        route.route("del", **_route(table, version, link))
                    count += 1
    return count


def _rules(upstream: Upstream, interface: str, table: int) -> list[dict[str, Any]]:
    made = []
    for wanted in upstream_rules(interface, upstream.behind):
        rule: dict[str, Any] = {**wanted}
        version, to = rule.pop("version"), rule.pop("to", None)
        if version not in _versions():
            continue
        rule |= {"family": _family(version), "protocol": ROUTE_PROTOCOL}
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
    for version in sorted(_versions()):
        for message in route.get_rules(family=_family(version)):
            rule = {name: message.get(name) for name in _NAMES if message.get(name) is not None}
            ours = rule.get("protocol") == ROUTE_PROTOCOL
            if not ours or rule.get("priority") not in UPSTREAM_RULE_PRIORITIES:
                continue
            if names is not None and not {rule.get("iifname"), rule.get("oifname")} & names:
                continue
            if rule.get("suppress_prefixlen") == 0xFFFFFFFF:
                del rule["suppress_prefixlen"]
            rule["family"] = _family(version)
            if message.get("dst"):
                rule |= {"dst": message.get("dst"), "dst_len": message["dst_len"]}
            yield rule


def _key(rule: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in rule.items()))


def _route(table: int, version: int, link: int | None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "family": _family(version),
        "dst": "0.0.0.0/0" if version == 4 else "::/0",
        "proto": ROUTE_PROTOCOL,
        "table": table,
        "type": _UNREACHABLE if link is None else _UNICAST,
        "priority": _LAST_METRIC if link is None else _LINK_METRIC,
    }
    if link is not None:
        made |= {"oif": link, "scope": 253 if version == 4 else 0}
    return made


def _add(route: IPRoute, what: str, made: dict[str, Any]) -> bool:
    from nostrvpn.io.pyroute import NetlinkError

    try:
        (route.route if what == "route" else route.rule)("add", **made)
    except NetlinkError as exc:
        if exc.code != errno.EEXIST:
            raise
        return False
    return True


def _versions() -> frozenset[int]:
    return frozenset({4, 6} if Path("/proc/sys/net/ipv6").exists() else {4})


def _family(version: int) -> int:
    return int(socket.AF_INET if version == 4 else socket.AF_INET6)


@contextmanager
def _suppress_gone() -> Iterator[None]:
    """Accept a refusal that means: it is gone already."""
    from nostrvpn.io.pyroute import NetlinkError

    try:
        yield
    except NetlinkError as exc:
        if exc.code not in (errno.ESRCH, errno.ENOENT, errno.ENODEV):
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
