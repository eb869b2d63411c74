"""Containers of a host that uses an exit: they leave by it, by nothing else, and not into the mesh."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nostrvpn.host.exit_routing import ExitRouting
from nostrvpn.host.inbound import Inbound
from nostrvpn.host.shield import ShieldKind
from nostrvpn.io.exit_routing import apply_exit_routing
from nostrvpn.io.nftables import apply_inbound
from tests.contract.cable import (
    _TALK,
    INSIDE,
    LAN,
    MEMBER,
    OTHER,
    OVERLAY,
    PUBLIC,
    TUNNEL,
    Host,
    addresses,
    talk,
)

BOTH = frozenset({4, 6})
RESOLVER = "9.9.9.9"
WITHIN = {4: ("172.31.7.2", "172.31.7.1", 24), 6: ("fd31:7::2", "fd31:7::1", 64)}


class Containers(Host):
    """``Host`` with a bridge, and a namespace behind it."""

    def __init__(self, make_netns: Callable[[], Any]) -> None:
        super().__init__(make_netns)
        self.container = make_netns()
        own = self.netns
        own.ip("link", "add", "br0", "type", "bridge")
        self.container.ip(
            "link", "add", "eth0", "type", "veth", "peer", "name", "c0", "netns", own.name
        )
        own.ip("link", "set", "c0", "master", "br0")
        for link in ("br0", "c0"):
            own.ip("link", "set", link, "up")
        self.container.ip("link", "set", "eth0", "up")
        for address, router, length in WITHIN.values():
            nodad = ("nodad",) if ":" in address else ()
            own.ip("addr", "add", f"{router}/{length}", "dev", "br0", *nodad)
            self.container.ip("addr", "add", f"{address}/{length}", "dev", "eth0", *nodad)
            family = "-6" if ":" in address else "-4"
            self.container.ip(family, "route", "add", "default", "via", router)
        self.container.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
        self.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def use(self, kind: ShieldKind, *, versions: frozenset[int] = BOTH) -> None:
        """What the agent asks for in this state, of both tables."""
        carried = versions if kind is not ShieldKind.BLOCKED else frozenset()
        self.apply(kind, versions=carried)
        inbound = Inbound(outward=carried, overlay=OVERLAY)
        self.netns.call(apply_inbound, inbound, TUNNEL)

    def sends(self, packets: list[dict[str, Any]]) -> tuple[set[Any], set[Any]]:
        """Send from the container; return what left by the cable, and by the tunnel."""
        self.left()
        self.container.run(sys.executable, "-c", _TALK, "0", json.dumps(packets))
        return self.left()


@pytest.fixture
def host(make_netns: Callable[[], Any]) -> Iterator[Containers]:
    made = Containers(make_netns)
    try:
        cable, _ = made.sends(talk(*addresses(PUBLIC), ports=(443,)))
        assert {p.destination for p in cable} == set(PUBLIC.values())
        yield made
    finally:
        made.close()


EVERYTHING = talk(*addresses(PUBLIC, LAN, MEMBER))


def test_containers_leave_through_the_exit_with_our_address_and_never_into_the_mesh(
    host: Containers,
) -> None:
    host.use(ShieldKind.TUNNELLED)
    cable, tunnel = host.sends(EVERYTHING)
    assert not cable
    assert {p.destination for p in tunnel} == {*PUBLIC.values(), *LAN.values()}
    assert {p.source for p in tunnel} == set(INSIDE.values())
    # Names are asked of the chosen resolvers only.
    assert not {p for p in tunnel if p.kind in ("tcp", "udp") and p.port in (53, 853)}


@pytest.mark.parametrize("version", [4, 6])
def test_containers_leave_only_with_what_the_exit_carries(host: Containers, version: int) -> None:
    host.use(ShieldKind.TUNNELLED, versions=frozenset({version}))
    cable, tunnel = host.sends(EVERYTHING)
    assert not cable
    assert {p.destination for p in tunnel} == {PUBLIC[version], LAN[version]}


def test_containers_are_held_while_no_exit_carries(host: Containers) -> None:
    host.use(ShieldKind.BLOCKED)
    assert host.sends(EVERYTHING) == (set(), set())


def test_without_an_exit_nothing_that_containers_begin_goes_into_the_tunnel(
    host: Containers,
) -> None:
    host.netns.call(apply_inbound, Inbound(overlay=OVERLAY), TUNNEL)
    host.netns.ip("route", "add", f"{OTHER[4]}/32", "dev", TUNNEL)
    _, tunnel = host.sends(talk(OTHER[4], MEMBER[4], MEMBER[6]))
    assert not tunnel


def test_nobody_sends_in_a_members_name(host: Containers) -> None:
    host.use(ShieldKind.TUNNELLED)
    for version, length in ((4, 32), (6, 128)):
        nodad = ("nodad",) if version == 6 else ()
        host.container.ip("addr", "add", f"{MEMBER[version]}/{length}", "dev", "eth0", *nodad)
    forged = [
        packet
        for version in (4, 6)
        for packet in talk(PUBLIC[version], source=(MEMBER[version], 0))
    ]
    assert host.sends(forged) == (set(), set())


@pytest.mark.parametrize("version", [4, 6])
def test_answers_come_back_to_containers_and_nothing_else_does(
    host: Containers, version: int
) -> None:
    host.use(ShieldKind.TUNNELLED)
    # Behind a shield the host's routes to its own networks stay in use.
    routing = ExitRouting(True, OVERLAY, BOTH, allow_lan=True)
    host.netns.call(apply_exit_routing, routing, TUNNEL)
    family, length = ("-4", 32) if version == 4 else ("-6", 128)
    public, within = PUBLIC[version], WITHIN[version][0]
    nodad = ("nodad",) if version == 6 else ()
    host.exit.ip("addr", "add", f"{public}/{length}", "dev", "e", *nodad)
    host.exit.ip(family, "route", "add", "default", "dev", "e")

    with udp(host.exit, public, 443) as site, udp(host.container, within, 0) as program:

        def hears(sent: bytes, to: tuple[str, int]) -> bool:
            site.sendto(sent, to)
            try:
                return program.recv(100) == sent
            except TimeoutError:
                return False

        program.sendto(b"?", (public, 443))
        _, seen = site.recvfrom(100)
        assert seen[0] == INSIDE[version]
        assert hears(b"answer", seen[:2])
        # Not begun by the container, though the exit knows where it is.
        assert not hears(b"unasked", (within, program.getsockname()[1]))
        assert hears(b"another answer", seen[:2])
        host.use(ShieldKind.BLOCKED)
        host.netns.call(apply_exit_routing, routing, TUNNEL)
        assert not hears(b"late", seen[:2])


def udp(netns: Any, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made: socket.socket = netns.call(socket.socket, family, socket.SOCK_DGRAM)
    made.settimeout(1.0)
    made.bind((address, port))
    return made
