"""A host on a cable with a real reconciler, each of whose requests can be refused or be its last.

Meanwhile a program sends by every way it has: before each of the requests, and after.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.daemon.reconcile import Reconciler
from nostrvpn.endpoint import parse_endpoint
from nostrvpn.errors import SystemRefused
from nostrvpn.exits.policy import ExitPolicy
from nostrvpn.host.exit_filter import ExitFilter
from nostrvpn.host.exit_meter import ExitMeter
from nostrvpn.host.exit_routing import ExitRouting
from nostrvpn.host.firewall import Firewall, Guard
from nostrvpn.host.inbound import EVERYTHING, Inbound
from nostrvpn.host.shield import Bypass, Shield, ShieldKind
from nostrvpn.host.state import FWMARK, HostState
from nostrvpn.host.subnet_gateway import Gateway
from nostrvpn.io.cleanup import remove_marked
from nostrvpn.io.wireguard import Backend
from nostrvpn.io.wireguard_userspace import UserspaceBackend
from nostrvpn.node.desired import Desired
from nostrvpn.wireguard.device import Device, SecretKey
from tests.contract.cable import CABLE, OVERLAY, PUBLIC, TUNNEL, Host
from tests.contract.faults import KILLED, REFUSED, Faults, Killed

BOTH = frozenset({4, 6})
PORT = 23456
# Where the program sends to without a word of how, and by the cable.
ANY_WAY, BY_CABLE, LAST = 443, 444, 9001
MEMBER = frozenset(map(ip_address, ("10.64.0.2", "fd64::2")))
OWN = frozenset(map(ip_address, ("10.64.0.1", "fd64::1")))
GUARD = Guard(parse_endpoint("192.0.2.1:1000"), parse_endpoint("192.0.2.2:2000"))

AROUND = Bypass(networks=frozenset({ip_network("192.0.2.0/24")}), uids=frozenset({(4000, 4010)}))
ROUTED = ExitRouting(True, OVERLAY, BOTH, diverts=True)
TUNNELLED = Shield(ShieldKind.TUNNELLED, OVERLAY, BOTH, OWN, False, AROUND, PORT)


def wanted(
    interface: str, shield: Shield | None = None, routing: ExitRouting | None = None
) -> Desired:
    """A node in a network, and what it wants of an exit."""
    addresses = frozenset({ip_interface("10.64.0.1/32"), ip_interface("fd64::1/128")})
    return Desired(
        Device(SecretKey(b"\1" * 32), PORT, FWMARK, ()),
        HostState(interface, 1280, addresses, OVERLAY),
        Firewall(guards=frozenset({GUARD})),
        inbound=Inbound(OWN, dict.fromkeys(MEMBER, EVERYTHING)),
        shield=shield or Shield(),
        exit_routing=routing or ExitRouting(),
    )


def off(interface: str) -> Desired:
    return wanted(interface)


def tunnelled(interface: str) -> Desired:
    return wanted(interface, TUNNELLED, ROUTED)


def other_exit(interface: str) -> Desired:
    """One that carries less, with less around it."""
    shield = replace(TUNNELLED, versions=frozenset({4}), bypass=Bypass())
    return wanted(interface, shield, ExitRouting(True, OVERLAY, frozenset({4})))


def connecting(interface: str) -> Desired:
    shield = Shield(ShieldKind.BLOCKED, OVERLAY, allow_lan=True, bypass=AROUND, listen_port=PORT)
    return wanted(interface, shield, replace(ROUTED, versions=frozenset(), allow_lan=True))


def lockdown(interface: str) -> Desired:
    return wanted(interface, Shield(ShieldKind.BLOCKED, OVERLAY))


def unguarded(interface: str) -> Desired:
    """Used without a kill switch."""
    return wanted(interface, replace(TUNNELLED, kind=ShieldKind.OPEN), ROUTED)


def provider(interface: str, desired: Desired | None = None) -> Desired:
    """An exit for both versions, with a policy and limits."""
    guests = ExitFilter(MEMBER, ExitPolicy("web").compile(OVERLAY, ()), dns=True, through=True)
    return replace(
        desired or wanted(interface),
        inbound=Inbound(OWN, dict.fromkeys(MEMBER, EVERYTHING), exit=guests),
        gateway=Gateway(frozenset(), OVERLAY, True, BOTH, OWN, PORT),
        exit_meter=ExitMeter(MEMBER, rate=1_000_000, connections=20, budget=10**9, month="2030-01"),
    )


def everything(interface: str) -> Desired:
    """An exit that leaves by another one."""
    return provider(interface, tunnelled(interface))


def everything_but_a_block(interface: str) -> Desired:
    return provider(interface, unguarded(interface))


class Room:
    """A host on a cable, a reconciler on it, and a program that tries to send."""

    def __init__(
        self,
        make_netns: Callable[[], Any],
        interface: str,
        faults: Faults,
        backend: Backend | None = None,
    ) -> None:
        self.host = Host(make_netns)
        self.netns, self.interface, self.faults = self.host.netns, interface, faults
        self.netns.ip("link", "del", TUNNEL)
        self.host.sysctl(f"net.ipv6.conf.{CABLE}.accept_ra=1", f"net.ipv4.conf.{CABLE}.rp_filter=1")
        self.backend = backend or UserspaceBackend()
        self.reconciler = Reconciler(self.backend, interface, 1280)
        self._sockets = {
            (family, port): self._socket(family, port)
            for family in (socket.AF_INET, socket.AF_INET6)
            for port in (ANY_WAY, BY_CABLE)
        }
        self._marked = self._socket(socket.AF_INET, LAST)
        self._marked.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)

    def _socket(self, family: int, port: int) -> socket.socket:
        made: socket.socket = self.netns.call(socket.socket, family, socket.SOCK_DGRAM)
        if port == BY_CABLE:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, CABLE.encode())
        return made

    def close(self) -> None:
        self.cleanup()
        # Which also waits for a process that nobody waited for, as the agent was killed.
        self.netns.call(self.backend.delete, self.interface)
        self.reconciler.close()
        for one in (*self._sockets.values(), self._marked):
            one.close()
        self.host.close()

    def strays(self) -> set[int]:
        """Return the ports of the program's packets that leave by the cable now."""
        for (family, port), one in self._sockets.items():
            with suppress(OSError):
                one.sendto(b"x", (PUBLIC[4 if family == socket.AF_INET else 6], port))
        self._marked.sendto(b"end", (PUBLIC[4], LAST))
        found = self.host.cable.until(lambda packet: packet.port == LAST)
        return {p.port for p in found if p.destination in PUBLIC.values() and p.kind == "udp"}

    def settle(self, desired: Desired) -> None:
        self.netns.call(self.reconciler.reconcile_now, desired)

    def restart(self) -> None:
        """What was a process is another one, which knows nothing."""
        self.reconciler.close()
        self.reconciler = Reconciler(self.backend, self.interface, 1280)

    def look_again(self) -> None:
        self.reconciler.tables_changed()
        self.reconciler.host_changed()

    def stop(self) -> None:
        self.netns.call(asyncio.run, self.reconciler.delete())

    def down(self) -> None:
        self.reconciler.end_with(Shield())
        self.stop()

    def cleanup(self) -> None:
        self.netns.call(remove_marked, self.interface)

    def looks(self) -> dict[str, list[str]]:
        """All that a node could change."""
        return looks(self.netns)


def looks(netns: Any, *nft: str) -> dict[str, list[str]]:
    """All that a node could change, in no order; without what the kernel draws at random.

    ``nft``: more options of its listing.
    """
    return {
        what: sorted(line for line in found if "fe80::" not in line)
        for what, found in _looks(netns, nft)
    }


def _looks(netns: Any, nft: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    for version in ("-4", "-6"):
        for words in (("rule",), ("route", "show", "table", "all")):
            yield f"{version} {words[0]}", netns.ip(version, *words).splitlines()
    links = netns.ip("-o", "addr").splitlines()
    yield "addresses", [line.partition(":")[2] for line in links]
    yield "links", netns.call(lambda: [name for _, name in socket.if_nameindex()])
    ruleset = netns.run("nft", "-s", *nft, "list", "ruleset")
    # Elements of sets are listed in any order.
    tables = [f"table {text}" for text in re.split(r"^table ", ruleset, flags=re.M)[1:]]
    yield "nft", [" ".join(sorted(re.findall(r"[^\s,]+", table))) for table in tables]
    yield "sysctls", netns.call(_sysctls)


def _sysctls() -> list[str]:
    found = []
    for version in ("ipv4", "ipv6"):
        for name in ("all", "default", CABLE):
            for path in Path(f"/proc/sys/net/{version}/conf/{name}").iterdir():
                with suppress(OSError):
                    found.append(f"{path} {path.read_text().strip()}")
    return found


@pytest.fixture
def room(
    make_netns: Callable[[], Any], interface: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Room]:
    made = Room(make_netns, interface, Faults(monkeypatch))
    yield made
    made.close()


Wish = Callable[[str], Desired]


def reached(room: Room, wish: Wish) -> dict[str, list[str]]:
    """What the host looks like where nothing ever failed."""
    room.settle(wish(room.interface))
    return room.looks()


def injections(asked: list[str]) -> list[tuple[int, str]]:
    """Each request refused; and a SIGKILL after each that changes something, and before the first.

    Of many alike in a row, the first two and the last.
    """
    chosen = [
        number
        for number in range(len(asked))
        if number < 2 or len({*asked[number - 2 : number + 2]}) > 1 or number == len(asked) - 1
    ]
    kills = [
        number
        for number in chosen
        if number == 0 or not re.match(r"netlink get_|uapi get|nft -j", asked[number - 1])
    ]
    return [*((number, REFUSED) for number in chosen), *((number, KILLED) for number in kills)]


def suffer(room: Room, wish: Wish, number: int, kind: str) -> str | None:
    """Reconcile with a fault; return what is told of it."""
    try:
        room.faults.run(lambda: room.settle(wish(room.interface)), number, kind)
    except SystemRefused as exc:
        return str(exc)
    except Killed:
        room.restart()
        return "killed"
    told = room.reconciler.finished(None)
    errors = (told.firewall_error, told.inbound_error, told.gateway_error, told.meter_error)
    return told.shield_error or next((error for error in errors if error), None)


class Watch:
    """What may leave at most, at each moment: what was held back once is, from then on."""

    def __init__(self, room: Room, allowed: set[int]) -> None:
        self.room, self.allowed = room, allowed
        room.faults.before_each = self.look

    def look(self, what: str) -> None:
        found = self.room.strays()
        assert found <= self.allowed, f"before {what}: {found}"
        self.allowed = found
