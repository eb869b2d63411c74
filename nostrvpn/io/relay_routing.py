"""The host's routing settings that a relay, a subnet router or an exit needs, turned on and put back.

IPv4 forwards by interface (``conf/IFACE/forwarding``), so only the uplinks are changed. IPv6 forwards
if ``conf/all/forwarding`` is on, which sets it on every interface; an interface that forwards ignores
router advertisements unless ``accept_ra`` is 2 (Documentation/networking/ip-sysctl.rst), and loses
the default route that it had from one.

What was off before is remembered in the sets of an nftables table, written before anything is changed:
it needs no file, outlives a killed daemon, and whoever removes the table puts it back first.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import SystemRefused
from nostrvpn.host.firewall import table_name
from nostrvpn.io.nftables import delete_table, list_table, own_tables
from nostrvpn.io.rtnetlink import refused

__all__ = [
    "RoutingBefore",
    "RoutingMemory",
    "interface_with",
    "is_routing",
    "marks_sources",
    "relay_table_name",
    "turn_on_marked_sources",
    "turn_on_routing",
    "uplinks",
]

_V4 = Path("/proc/sys/net/ipv4/conf")
_V6 = Path("/proc/sys/net/ipv6/conf")
_SETS = ("routed4", "routed6", "advertised", "unmarked")
_OFF, _ON, _ALTHOUGH_FORWARDING = "0", "1", "2"


@dataclass(frozen=True, slots=True)
class RoutingBefore:
    """Names of interfaces: ``routed4`` and ``routed6`` did not forward before we made them.

    ``advertised`` are those whose ``accept_ra`` was 1, ``unmarked`` whose ``src_valid_mark`` was 0.
    """

    routed4: frozenset[str] = frozenset()
    routed6: frozenset[str] = frozenset()
    advertised: frozenset[str] = frozenset()
    unmarked: frozenset[str] = frozenset()

    def __or__(self, other: RoutingBefore) -> RoutingBefore:
        return RoutingBefore(
            self.routed4 | other.routed4,
            self.routed6 | other.routed6,
            self.advertised | other.advertised,
            self.unmarked | other.unmarked,
        )


class RoutingMemory:
    """What table ``inet name`` remembers of the host; kept here too, for when somebody flushes it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known = RoutingBefore()
        self._has_read = False

    @property
    def is_needed(self) -> bool:
        """Whether there is the table, or something to put back."""
        return self._known != RoutingBefore() or self._name in own_tables()

    def recall(self) -> RoutingBefore:
        """Return what was, by an earlier run too that did not put it back; SystemRefused by nft."""
        listed = [item["set"] for item in list_table(self._name) or () if "set" in item]
        sets = {
            one["name"]: frozenset(one.get("elem", ())) for one in listed if one["name"] in _SETS
        }
        self._has_read = True
        self._known |= RoutingBefore(*(sets.get(one, frozenset()) for one in _SETS))
        return self._known

    def learn(self) -> None:
        """Recall, unless that was done: what an earlier run left is known before somebody flushes it."""
        if not self._has_read:
            self.recall()

    def add(self, before: RoutingBefore) -> RoutingBefore:
        """Remember this too, here; return all that is remembered."""
        self._known = self.recall() | before
        return self._known

    def put_back(self) -> None:
        """Put the host's settings back, then remove the table, present or not.

        SystemRefused if one setting or the removal is refused: the others are put back, and what was
        is still remembered.
        """
        _restore(self.recall())
        delete_table(self._name)
        self._known = RoutingBefore()


def turn_on_routing(
    interfaces: Iterable[str],
    memory: RoutingMemory,
    remember: Callable[[RoutingBefore], None],
    versions: Collection[int] = (4, 6),
) -> None:
    """Make packets pass between ``interfaces``; ``remember`` writes into the table what was, before
    anything is changed.

    ``versions`` are those of IP. SystemRefused if the kernel will not.
    """
    interfaces = tuple(interfaces)
    at4, at6 = (interfaces if version in versions else () for version in (4, 6))
    routed4 = {name for name in at4 if _read(_V4 / name / "forwarding") == _OFF}
    turn_on_v6 = bool(at6) and _read(_V6 / "all" / "forwarding") == _OFF
    routed6 = set(interfaces) if turn_on_v6 else set()
    advertised = set()
    if turn_on_v6:
        with suppress(OSError):
            names = {path.name for path in _V6.iterdir()} - {"all", "default"}
            advertised = {name for name in names if _read(_V6 / name / "accept_ra") == _ON}
    found = RoutingBefore(frozenset(routed4), frozenset(routed6), frozenset(advertised))
    remember(memory.add(found))
    for name in advertised:
        _write(_V6 / name / "accept_ra", _ALTHOUGH_FORWARDING)
    for name in routed4:
        _write(_V4 / name / "forwarding", _ON)
    if turn_on_v6:
        _write(_V6 / "all" / "forwarding", _ON)


def _restore(before: RoutingBefore) -> None:
    """Turn off what was off; interfaces that are gone are fine. Raise the first of the refusals."""
    settings = [(_V4 / name / "forwarding", _OFF) for name in sorted(before.routed4)]
    settings += [(_V6 / "all" / "forwarding", _OFF)] if before.routed6 else []
    settings += [
        (path, _ON)
        for name in sorted(before.advertised)
        if _read(path := _V6 / name / "accept_ra") == _ALTHOUGH_FORWARDING
    ]
    settings += [(_V4 / name / "src_valid_mark", _OFF) for name in sorted(before.unmarked)]
    refusals = []
    for path, value in settings:
        try:
            _write(path, value)
        except SystemRefused as exc:
            refusals.append(exc)
    if refusals:
        raise refusals[0]


def turn_on_marked_sources(
    memory: RoutingMemory, remember: Callable[[RoutingBefore], None]
) -> None:
    """Let reverse-path filters look sources up by a packet's mark; ``remember`` as above.

    SystemRefused if the kernel will not, and some filter is strict.
    """
    # One place is enough: what holds is that of all interfaces or that of one.
    name = "all"
    remember(memory.add(RoutingBefore(unmarked=frozenset({name}))))
    try:
        _write(_V4 / name / "src_valid_mark", _ON)
    except SystemRefused:
        if any(_read(path / "rp_filter") == _ON for path in _V4.iterdir()):
            raise


def marks_sources() -> bool:
    """Say whether reverse-path filters look sources up by a packet's mark."""
    return _read(_V4 / "all" / "src_valid_mark") != _OFF


def relay_table_name(interface: str) -> str:
    """Return the name of the relay's table of the mesh whose interface this is."""
    return f"{table_name(interface)}_relay"


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
        for line in Path("/proc/thread-self/net/route").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1] == fields[7] == "00000000":
                found.add(fields[0])
    with suppress(OSError):
        for line in Path("/proc/thread-self/net/ipv6_route").read_text().splitlines():
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
    try:
        # Not created: the interface, or IPv6, may have gone.
        with path.open("r+") as file:
            file.write(value)
    except FileNotFoundError:
        pass
    except OSError as exc:
        if exc.errno in (errno.ENODEV, errno.ENXIO):
            return
        raise refused(f"setting {path} to {value}", exc.errno or errno.EIO) from exc
