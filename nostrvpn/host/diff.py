"""The least change that makes the found state of a link the desired one, in an order that works."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from nostrvpn.host.state import (
    MAX_MTU,
    MIN_MTU,
    ROUTE_PROTOCOL,
    HostState,
    IPInterface,
    IPNetwork,
    is_marked,
)

__all__ = [
    "AddAddress",
    "AddRoute",
    "HostOp",
    "RemoveAddress",
    "RemoveRoute",
    "SetLink",
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
    """Add a route of ours to the main table."""

    interface: str
    network: IPNetwork

    def __str__(self) -> str:
        return f"ip route add {self.network} dev {self.interface} proto {ROUTE_PROTOCOL}"


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Remove a route of ours from the main table."""

    interface: str
    network: IPNetwork

    def __str__(self) -> str:
        return f"ip route del {self.network} dev {self.interface} proto {ROUTE_PROTOCOL}"


_T = TypeVar("_T", IPInterface, IPNetwork)

HostOp = SetLink | AddAddress | RemoveAddress | AddRoute | RemoveRoute


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
        found = replace(found, up=False, addresses=kept, routes=frozenset())
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
    ops += [AddRoute(name, route) for route in _ordered(routes - found.routes)]
    return ops


def _check(desired: HostState) -> None:
    if not is_marked(desired.alias):
        raise ValueError("a link of ours must carry our mark in its alias")
    has_ipv6 = any(address.version == 6 for address in desired.addresses)
    # Spec: below 1280 the kernel turns IPv6 off on the link (RFC 8200, section 5).
    least = 1280 if has_ipv6 else MIN_MTU
    if not least <= desired.mtu <= MAX_MTU:
        raise ValueError(f"mtu out of range ({least} to {MAX_MTU}): {desired.mtu}")


def _is_kernels_own(address: IPInterface) -> bool:
    return address.version == 6 and address.is_link_local


def _ordered(values: Iterable[_T]) -> list[_T]:
    return sorted(values, key=str)
