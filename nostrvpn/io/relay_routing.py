"""The host's routing settings that a relay or a subnet router needs, turned on and put back.

IPv4 forwards by interface (``conf/IFACE/forwarding``), so only the uplinks are changed. IPv6 forwards
if ``conf/all/forwarding`` is on, which sets it on every interface; an interface that forwards ignores
router advertisements unless ``accept_ra`` is 2 (Documentation/networking/ip-sysctl.rst), and loses
the default route that it had from one. What was off before is remembered by whoever calls.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nostrvpn.endpoint import IPAddress
from nostrvpn.io.netlink import refused

__all__ = [
    "RoutingBefore",
    "interface_with",
    "is_routing",
    "restore_routing",
    "turn_on_routing",
    "uplinks",
]

_V4 = Path("/proc/sys/net/ipv4/conf")
_V6 = Path("/proc/sys/net/ipv6/conf")
_OFF, _ON, _ALTHOUGH_FORWARDING = "0", "1", "2"


@dataclass(frozen=True, slots=True)
class RoutingBefore:
    """Names of interfaces: ``routed4`` and ``routed6`` did not forward before we made them.

    ``advertised`` are those whose ``accept_ra`` was 1.
    """

    routed4: frozenset[str] = frozenset()
    routed6: frozenset[str] = frozenset()
    advertised: frozenset[str] = frozenset()


def turn_on_routing(
    interfaces: tuple[str, ...],
    remembered: RoutingBefore,
    remember: Callable[[RoutingBefore], None],
    versions: Collection[int] = (4, 6),
) -> RoutingBefore:
    """Make packets pass between ``interfaces``; ``remember`` what was, before anything is changed.

    ``remembered`` is what an earlier run had to remember, and did not put back; ``versions`` are
    those of IP. SystemRefused if the kernel will not.
    """
    at4, at6 = (interfaces if version in versions else () for version in (4, 6))
    routed4 = {name for name in at4 if _read(_V4 / name / "forwarding") == _OFF}
    turn_on_v6 = bool(at6) and _read(_V6 / "all" / "forwarding") == _OFF
    routed6 = set(interfaces) if turn_on_v6 else set()
    advertised = set()
    if turn_on_v6:
        with suppress(OSError):
            names = {path.name for path in _V6.iterdir()} - {"all", "default"}
            advertised = {name for name in names if _read(_V6 / name / "accept_ra") == _ON}
    before = RoutingBefore(
        remembered.routed4 | routed4,
        remembered.routed6 | routed6,
        remembered.advertised | advertised,
    )
    remember(before)
    for name in advertised:
        _write(_V6 / name / "accept_ra", _ALTHOUGH_FORWARDING)
    for name in routed4:
        _write(_V4 / name / "forwarding", _ON)
    if turn_on_v6:
        _write(_V6 / "all" / "forwarding", _ON)
    return before


def restore_routing(before: RoutingBefore) -> None:
    """Turn off what was off; interfaces that are gone are fine. SystemRefused otherwise."""
    for name in before.routed4:
        if _read(_V4 / name / "forwarding") is not None:
            _write(_V4 / name / "forwarding", _OFF)
    if before.routed6:
        _write(_V6 / "all" / "forwarding", _OFF)
    for name in before.advertised:
        if _read(_V6 / name / "accept_ra") == _ALTHOUGH_FORWARDING:
            _write(_V6 / name / "accept_ra", _ON)


def is_routing(interface: str, version: int) -> bool:
    """Say whether IPv``version`` packets that come in at ``interface`` are forwarded."""
    path = _V4 / interface if version == 4 else _V6 / "all"
    return _read(path / "forwarding") != _OFF


def interface_with(ip: IPAddress) -> str | None:
    """Return the interface that has the address ``ip``."""
    from nostrvpn.io.pyroute import IPRoute, NetlinkError

    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with suppress(NetlinkError, OSError), IPRoute() as netlink:
        for item in netlink.get_addr(family=family):
            if str(ip) in (item.get_attr("IFA_LOCAL"), item.get_attr("IFA_ADDRESS")):
                return socket.if_indextoname(item["index"])
    return None


def uplinks() -> tuple[str, ...]:
    """Return the interfaces that have a default route, of either family."""
    found = set()
    with suppress(OSError):
        for line in Path("/proc/net/route").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1] == fields[7] == "00000000":
                found.add(fields[0])
    with suppress(OSError):
        for line in Path("/proc/net/ipv6_route").read_text().splitlines():
            fields = line.split()
            if fields[1] == "00" and set(fields[0]) == {"0"} and fields[-1] != "lo":
                found.add(fields[-1])
    return tuple(sorted(found))


def _read(path: Path) -> str | None:
    """Return a setting, None where the kernel or the interface is without it."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _write(path: Path, value: str) -> None:
    if not path.exists():
        return
    try:
        path.write_text(value)
    except OSError as exc:
        raise refused(f"setting {path} to {value}", exc.errno or errno.EIO) from exc
