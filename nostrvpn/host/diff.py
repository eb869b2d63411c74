"""The least change that makes the found state of a link the desired one, in an order that works."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from nostrvpn.endpoint import IPAddress
from nostrvpn.host.state import (
    IPV6_MIN_MTU,
    MAX_MTU,
    MIN_MTU,
    ROUTE_PROTOCOL,
    HostState,
    IPInterface,
    IPNetwork,
    RouteLimit,
    is_marked,
)

__all__ = [
    "AddAddress",
    "AddRoute",
    "HostOp",
    "RemoveAddress",
    "RemoveOuterLimit",
    "RemoveRoute",
    "SetLink",
    "SetOuterLimit",
    "diff",
]


@dataclass(frozen=True, slots=True)
class SetLink:
    """Change the link itself; None leaves an attribute as it is."""

    interface: str
    mtu: int | None = None
    alias: str | None = None
    up: bool | None = None

    def __str__(self) -> str:
        words = [f"ip link set dev {self.interface}"]
        if self.mtu is not None:
            words.append(f"mtu {self.mtu}")
        if self.alias is not None:
            words.append(f'alias "{self.alias}"')
        if self.up is not None:
            words.append("up" if self.up else "down")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Add an address without its connected route: routes are ours to decide."""

    interface: str
    address: IPInterface

    def __str__(self) -> str:
        return f"ip addr add {self.address} dev {self.interface} noprefixroute"


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    """Remove an address."""

    interface: str
    address: IPInterface

    def __str__(self) -> str:
        return f"ip addr del {self.address} dev {self.interface}"


@dataclass(frozen=True, slots=True)
class AddRoute:
    """Add a route of ours to the main table; ``replace``: it is there, with other metrics."""

    interface: str
    network: IPNetwork
    limit: RouteLimit | None = None
    replace: bool = False

    def __str__(self) -> str:
        verb = "replace" if self.replace else "add"
        words = f"ip route {verb} {self.network} dev {self.interface} proto {ROUTE_PROTOCOL}"
        if self.limit is not None:
            words += f" mtu {self.limit.mtu}"
            words += "" if self.limit.mss is None else f" advmss {self.limit.mss}"
        return words


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Remove a route of ours from the main table."""

    interface: str
    network: IPNetwork

    def __str__(self) -> str:
        return f"ip route del {self.network} dev {self.interface} proto {ROUTE_PROTOCOL}"


@dataclass(frozen=True, slots=True)
class SetOuterLimit:
    """Have WireGuard's packets to an address fragmented: the host's own route to it, with an MTU."""

    interface: str
    ip: IPAddress
    mtu: int

    def __str__(self) -> str:
        return (
            f"ip route replace {self.ip} mtu lock {self.mtu} proto {ROUTE_PROTOCOL}"
            f" (for marked packets of {self.interface})"
        )


@dataclass(frozen=True, slots=True)
class RemoveOuterLimit:
    """Have WireGuard's packets to an address leave as the host's routes say."""

    interface: str
    ip: IPAddress

    def __str__(self) -> str:
        return f"ip route del {self.ip} proto {ROUTE_PROTOCOL} (for marked packets of {self.interface})"


_T = TypeVar("_T", IPInterface, IPNetwork)

HostOp = (
    SetLink | AddAddress | RemoveAddress | AddRoute | RemoveRoute | SetOuterLimit | RemoveOuterLimit
)


def diff(observed: HostState | None, desired: HostState) -> list[HostOp]:
    """Return the operations that turn ``observed`` (None: a link just created) into ``desired``.

    IPv6 link-local addresses that the kernel gave the link are left alone. Applying the result and
    asking again gives an empty list. Raises ValueError if ``desired`` cannot be: no mark in the
    alias, an MTU out of range, IPv6 below its least MTU, or addresses of another link.
    """
    _check(desired)
    name = desired.interface
    found = observed or HostState(name, mtu=0, alias="", up=False)
    if found.interface != name:
        raise ValueError(f"state of {found.interface} compared with {name}")
    routes = desired.routes if desired.up else frozenset[IPNetwork]()
    ops: list[HostOp] = []
    if found.up and not desired.up:
        # The kernel drops the link's routes and its IPv6 addresses when it goes down.
        ops.append(SetLink(name, up=False))
        kept = frozenset(address for address in found.addresses if address.version == 4)
        found = replace(
            found, up=False, addresses=kept, routes=frozenset(), route_limits=frozenset()
        )
    surplus = {a for a in found.addresses - desired.addresses if not _is_kernels_own(a)}
    ops += [RemoveRoute(name, route) for route in _ordered(found.routes - routes)]
    ops += [RemoveAddress(name, address) for address in _ordered(surplus)]
    link = SetLink(
        name,
        mtu=desired.mtu if found.mtu != desired.mtu else None,
        alias=desired.alias if found.alias != desired.alias else None,
    )
    if link != SetLink(name):
        ops.append(link)
    missing = desired.addresses - found.addresses
    ops += [AddAddress(name, address) for address in _ordered(missing)]
    # Routes need a link that is up, and an address to prefer as their source.
    if desired.up and not found.up:
        ops.append(SetLink(name, up=True))
    return [*ops, *_route_ops(found, desired, routes), *_outer_ops(found, desired)]


def _route_ops(found: HostState, desired: HostState, routes: frozenset[IPNetwork]) -> list[HostOp]:
    had = {limit.network: limit for limit in found.route_limits}
    wanted = {limit.network: limit for limit in desired.route_limits}
    return [
        AddRoute(desired.interface, route, wanted.get(route), replace=route in found.routes)
        for route in _ordered(routes)
        if route not in found.routes or had.get(route) != wanted.get(route)
    ]


def _outer_ops(found: HostState, desired: HostState) -> list[HostOp]:
    had = {limit.ip: limit.mtu for limit in found.outer_limits}
    wanted = {limit.ip: limit.mtu for limit in desired.outer_limits if desired.up}
    name = desired.interface
    gone = sorted(set(had) - set(wanted), key=str)
    changed = sorted((ip for ip, mtu in wanted.items() if had.get(ip) != mtu), key=str)
    return [
        *(RemoveOuterLimit(name, ip) for ip in gone),
        *(SetOuterLimit(name, ip, wanted[ip]) for ip in changed),
    ]


def _check(desired: HostState) -> None:
    if not is_marked(desired.alias):
        raise ValueError("a link of ours must carry our mark in its alias")
    has_ipv6 = any(address.version == 6 for address in desired.addresses)
    # Spec: below 1280 the kernel turns IPv6 off on the link (RFC 8200, section 5).
    mtus = [(desired.mtu, has_ipv6)]
    # Nor does it send anything over an IPv6 route with less.
    mtus += [(limit.mtu, limit.network.version == 6) for limit in desired.route_limits]
    mtus += [(limit.mtu, limit.ip.version == 6) for limit in desired.outer_limits]
    for mtu, ipv6 in mtus:
        least = IPV6_MIN_MTU if ipv6 else MIN_MTU
        if not least <= mtu <= MAX_MTU:
            raise ValueError(f"mtu out of range ({least} to {MAX_MTU}): {mtu}")


def _is_kernels_own(address: IPInterface) -> bool:
    return address.version == 6 and address.is_link_local


def _ordered(values: Iterable[_T]) -> list[_T]:
    return sorted(values, key=str)
