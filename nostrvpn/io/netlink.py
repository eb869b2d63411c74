"""Links, addresses and routes of this network namespace, read and changed over rtnetlink.

Everything here blocks, and acts in the network namespace of the calling thread; the agent calls
it from one worker thread. pyroute2 is slow to import, so it is imported on first use.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from nostrvpn.errors import SystemRefused
from nostrvpn.host.diff import (
    AddAddress,
    AddRoute,
    HostOp,
    RemoveAddress,
    RemoveOuterLimit,
    RemoveRoute,
    SetLink,
    SetOuterLimit,
)
from nostrvpn.host.state import (
    ALIAS_MARK,
    ROUTE_PROTOCOL,
    HostState,
    IPInterface,
    IPNetwork,
    home_of,
    is_marked,
)
from nostrvpn.io.outer_limits import (
    observe_outer_limits,
    remove_all_outer_limits,
    remove_outer_limit,
    set_outer_limit,
)
from nostrvpn.io.routes import add_route, our_routes, parse_destination, remove_route
from nostrvpn.io.rtnetlink import accepting, family_of, rtnetlink

if TYPE_CHECKING:
    from nostrvpn.io.pyroute import IPRoute

__all__ = [
    "Link",
    "LocalInterface",
    "apply_host",
    "create_link",
    "delete_link",
    "find_link",
    "links",
    "local_addresses",
    "main_routes",
    "marked_interfaces",
    "observe_host",
    "remove_limits",
    "set_link",
    "set_link_group",
]

# Spec: linux/if.h, linux/if_addr.h, linux/rtnetlink.h.
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFA_F_NODAD = 0x02
_IFA_F_DADFAILED = 0x08
_IFA_F_DEPRECATED = 0x20
_IFA_F_TENTATIVE = 0x40
_IFA_F_NOPREFIXROUTE = 0x200
_RT_TABLE_MAIN = 254
_IP = (socket.AF_INET, socket.AF_INET6)

_GONE = (errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL, errno.ESRCH, errno.ENOENT)


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface: ``kind`` is "wireguard", "tun", "veth"..., or empty for hardware."""

    name: str
    index: int
    kind: str
    alias: str
    mtu: int
    up: bool
    group: int = 0

    @property
    def is_ours(self) -> bool:
        """Whether the link carries our mark."""
        return is_marked(self.alias)

    @property
    def home(self) -> str:
        """The state directory of the node whose network's link this is; "" if it is none."""
        return home_of(self.alias)


@dataclass(frozen=True, slots=True)
class LocalInterface:
    """An interface with the addresses that can be used as a source now (no tentative, no stale)."""

    name: str
    kind: str
    addresses: tuple[IPInterface, ...]
    mtu: int
    up: bool
    is_ours: bool


def links() -> tuple[Link, ...]:
    """Return all links of this network namespace."""
    with rtnetlink("listing links") as route:
        return tuple(_parse_link(message) for message in route.get_links())


def find_link(interface: str) -> Link | None:
    """Return the link of this name, or None."""
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        return None
    with rtnetlink(f"reading link {interface}") as route:
        return _link_at(route, index)


def marked_interfaces() -> tuple[Link, ...]:
    """Return all links in this network namespace that carry our mark."""
    return tuple(link for link in links() if link.is_ours)


def create_link(interface: str, kind: str, mtu: int, *, group: int = 0) -> None:
    """Create a link with our mark, in a link group; SystemRefused if the kernel will not."""
    with rtnetlink(f"creating {kind} link {interface}") as route:
        route.link("add", ifname=interface, kind=kind, mtu=mtu, group=group)
    try:
        # The kernel takes no alias while it creates a link. Whoever dies between these two calls
        # leaves a link without key and peers, which the next start adopts.
        set_link(interface, mtu=None, alias=ALIAS_MARK)
    except SystemRefused:
        delete_link(interface)
        raise


def set_link(interface: str, *, mtu: int | None, alias: str | None) -> None:
    """Set a link's MTU and alias; None leaves one as it is."""
    apply_host([SetLink(interface, mtu=mtu, alias=alias)])


def set_link_group(link: Link, group: int) -> None:
    """Move a link to a link group; one that is gone already is fine."""
    with rtnetlink(f"setting the group of {link.name}") as route, accepting(*_GONE):
        route.link("set", index=link.index, group=group)


def delete_link(interface: str) -> None:
    """Delete a link; one that is gone already is fine."""
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        return
    with rtnetlink(f"deleting link {interface}") as route, accepting(*_GONE):
        route.link("del", index=index)


def observe_host(interface: str) -> HostState | None:
    """Return the link's addresses and our routes over it, or None if there is no such link."""
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        return None
    with rtnetlink(f"reading the state of {interface}") as route:
        link = _link_at(route, index)
        if link is None:
            return None
        addresses = frozenset(
            _parse_address(message) for message in _addresses(route) if message["index"] == index
        )
        routes = our_routes(route, index)
        return HostState(
            interface=interface,
            mtu=link.mtu,
            addresses=addresses,
            routes=frozenset(routes),
            alias=link.alias,
            up=link.up,
            route_limits=frozenset(limit for limit in routes.values() if limit is not None),
            outer_limits=observe_outer_limits(route, interface),
        )


def remove_limits(interface: str | None = None) -> int:
    """Remove what fragments WireGuard's packets, for one interface or for all there ever were.

    Return how many routes and rules that was.
    """
    with rtnetlink("removing our routing rules") as route:
        return remove_all_outer_limits(route, interface)


def apply_host(ops: Iterable[HostOp]) -> None:
    """Apply operations in order; what is so already is fine, any other refusal is SystemRefused."""
    for op in ops:
        with rtnetlink(str(op)) as route:
            index = _index(op)
            if index is None:
                if isinstance(op, RemoveAddress | RemoveRoute | RemoveOuterLimit):
                    continue
                raise SystemRefused(f"{op}: there is no link {op.interface}")
            _apply(route, op, index)


def local_addresses() -> tuple[LocalInterface, ...]:
    """Return every interface but loopback, with the addresses that can be a source right now."""
    with rtnetlink("listing addresses") as route:
        messages = [link for link in route.get_links() if not link["flags"] & _IFF_LOOPBACK]
        addresses: dict[int, list[IPInterface]] = {}
        unusable = _IFA_F_TENTATIVE | _IFA_F_DADFAILED | _IFA_F_DEPRECATED
        for message in _addresses(route):
            if not _address_flags(message) & unusable:
                addresses.setdefault(message["index"], []).append(_parse_address(message))
    found = []
    for message in messages:
        link = _parse_link(message)
        usable = tuple(sorted(addresses.get(link.index, ()), key=str))
        found.append(LocalInterface(link.name, link.kind, usable, link.mtu, link.up, link.is_ours))
    return tuple(found)


def _index(op: HostOp) -> int | None:
    try:
        return socket.if_nametoindex(op.interface)
    except OSError:
        return None


def _apply(route: IPRoute, op: HostOp, index: int) -> None:
    match op:
        case SetLink():
            arguments: dict[str, Any] = {"mtu": op.mtu, "ifalias": op.alias}
            if op.up is not None:
                arguments["state"] = "up" if op.up else "down"
            arguments = {key: value for key, value in arguments.items() if value is not None}
            if arguments:
                route.link("set", index=index, **arguments)
        case AddAddress():
            if op.address.version == 6:
                _enable_ipv6(op.interface)
            with accepting(errno.EEXIST):
                # Our links have no neighbours, so there is nobody to detect a duplicate with.
                flags = _IFA_F_NOPREFIXROUTE | (_IFA_F_NODAD if op.address.version == 6 else 0)
                route.addr("add", index=index, IFA_FLAGS=flags, **_address(op.address))
        case RemoveAddress():
            with accepting(*_GONE):
                route.addr("del", index=index, **_address(op.address))
        case AddRoute():
            add_route(route, op, index)
        case RemoveRoute():
            with accepting(*_GONE):
                remove_route(route, op.network, index)
        case SetOuterLimit():
            set_outer_limit(route, op.interface, op.ip, op.mtu)
        case RemoveOuterLimit():
            remove_outer_limit(route, op.interface, op.ip)
        case _:
            assert_never(op)


def _enable_ipv6(interface: str) -> None:
    """Let our own interface have IPv6 addresses where the host switched them off for all."""
    setting = Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6")
    with suppress(OSError):  # no IPv6 at all, or /proc is read-only: the kernel will say so
        if setting.read_text(encoding="ascii").strip() != "0":
            setting.write_text("0", encoding="ascii")


def _address(address: IPInterface) -> dict[str, Any]:
    return {
        "family": family_of(address.version),
        "address": str(address.ip),
        "prefixlen": address.network.prefixlen,
    }


def _link_at(route: IPRoute, index: int) -> Link | None:
    from nostrvpn.io.pyroute import NetlinkError

    try:
        for message in route.get_links(index):
            return _parse_link(message)
    except NetlinkError as exc:
        if exc.code not in _GONE:
            raise
    return None


def _parse_link(message: Any) -> Link:
    kind = message.get(("linkinfo", "kind")) or ""
    if message["flags"] & _IFF_LOOPBACK:
        kind = "loopback"
    return Link(
        name=message.get("ifname"),
        index=message["index"],
        kind=kind,
        alias=message.get("ifalias") or "",
        mtu=message.get("mtu"),
        up=bool(message["flags"] & _IFF_UP),
        group=message.get("group") or 0,
    )


def _addresses(route: IPRoute) -> list[Any]:
    # A dump has those of every protocol: MCTP, phonet.
    return [message for message in route.get_addr() if message["family"] in _IP]


def _parse_address(message: Any) -> IPInterface:
    # On a point-to-point link "address" is the other end's and "local" ours; IPv6 has no "local".
    return ip_interface(f"{message.get('local') or message.get('address')}/{message['prefixlen']}")


def _address_flags(message: Any) -> int:
    # The header's field has 8 bits; the attribute, where present, has all 32.
    flags = message.get_attr("IFA_FLAGS")
    return int(message["flags"] if flags is None else flags)


def main_routes(interface: str) -> frozenset[IPNetwork]:
    """Return the destinations of the main table's routes, but for ours over ``interface``.

    Those of another network of this node count: of two that want the same addresses, the kernel lets
    only one have the route, and the other one sees it here.
    """
    with rtnetlink("listing routes") as route:
        own = {link.index for link in map(_parse_link, route.get_links()) if link.name == interface}
        return frozenset(
            parse_destination(message)
            for message in route.get_routes(table=_RT_TABLE_MAIN)
            if (message["proto"] != ROUTE_PROTOCOL or message.get("oif") not in own)
            and message["family"] in _IP
        )
