"""Containers of a host that uses an exit: they leave by it, by nothing else, and not into the mesh."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from nostrvpn.host.exit_routing import ExitRouting
from nostrvpn.host.inbound import Inbound
from nostrvpn.host.shield import ShieldKind
from nostrvpn.host.state import FWMARK
from nostrvpn.io.exit_routing import apply_exit_routing
from nostrvpn.io.nftables import apply_inbound
from nostrvpn.lab.patience import wait_until
from tests.contract.cable import (
    _TALK,
    INSIDE,
    LAN,
    LIMIT,
    MEMBER,
    OTHER,
    OVERLAY,
    OWN,
    PUBLIC,
    TUNNEL,
    Host,
    Wire,
    addresses,
    talk,
)

BOTH = frozenset({4, 6})
RESOLVER = "9.9.9.9"
# Spec: linux/in.h and linux/in6.h, IP_MTU_DISCOVER with IP_PMTUDISC_DO.
DONT_FRAGMENT = {4: (socket.IPPROTO_IP, 10, 2), 6: (socket.IPPROTO_IPV6, 23, 2)}
# The same: IP_MTU, IPV6_MTU.
PATH_MTU = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}
# RFC 4861: what neighbours say to each other is IPv6's ARP.
NEIGHBOURS = (133, 134, 135, 136)
# A program of root's that says in the kernel's place: the packet from (3, 4) to 2 was too large, says 1.
_SAYS = """
import socket, struct, sys
here, site, asks, port = *sys.argv[1:4], int(sys.argv[4])
v6 = ":" in here
family = socket.AF_INET6 if v6 else socket.AF_INET
asks, site = (socket.inet_pton(family, one) for one in (asks, site))
datagram = struct.pack("!HHHH", port, 443, 1408, 0)
if v6:
    quoted = struct.pack("!IHBB", 6 << 28, 1408, 17, 64) + asks + site + datagram
    said = struct.pack("!BBHI", 2, 0, 0, 1280) + quoted
else:
    quoted = struct.pack("!BBHHHBBH", 0x45, 0, 1428, 1, 0x4000, 64, 17, 0) + asks + site + datagram
    said = struct.pack("!BBHHH", 3, 4, 0, 0, 1280) + quoted
    total = sum(struct.unpack(f"!{len(said) // 2}H", said))
    total = (total & 0xFFFF) + (total >> 16)
    said = said[:2] + struct.pack("!H", 0xFFFF ^ (total & 0xFFFF) + (total >> 16)) + said[4:]
with socket.socket(family, socket.SOCK_RAW, 58 if v6 else 1) as sock:
    sock.bind((here, 0))
    try:
        sock.sendto(said, (socket.inet_ntop(family, asks), 0))
    except PermissionError:
        pass
"""
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


@pytest.mark.parametrize("version", [4, 6])
def test_with_the_kill_switch_off_containers_get_the_answers_of_the_exit_and_of_this_host(
    host: Containers, version: int
) -> None:
    host.use(ShieldKind.OPEN)
    within, router, _ = WITHIN[version]
    public, nodad = PUBLIC[version], ("nodad",) if version == 6 else ()
    host.exit.ip("addr", "add", public, "dev", "e", *nodad)
    host.exit.ip("route", "add", INSIDE[version], "dev", "e", "src", public)
    with udp(host.exit, public, 443) as site, udp(host.container, within, 0) as program:
        program.sendto(b"?", (public, 443))
        site.sendto(b"answer", site.recvfrom(100)[1])
        assert program.recv(100) == b"answer"
    # By its address in their network, and by the one it has in its own.
    for address in (router, OWN[version]):
        with tcp(host.netns, address) as server:
            server.listen()
            with tcp(host.container, within) as client:
                client.connect(server.getsockname()[:2])
                taken, _ = server.accept()
                taken.sendall(b"answer")
                assert client.recv(100) == b"answer"
                taken.close()
        host.container.run("ping", "-c1", "-W5", address)
    # What the host itself begins goes to the exit as before, to local networks too.
    host.left()
    host.netns.run(sys.executable, "-c", _TALK, "0", json.dumps(talk(within, LAN[version])))
    cable, tunnel = host.left()
    assert not cable
    assert {p.destination for p in tunnel} == {within, LAN[version]}


@pytest.mark.parametrize("kind", [ShieldKind.TUNNELLED, ShieldKind.OPEN])
@pytest.mark.parametrize("version", [4, 6])
def test_containers_are_told_that_a_packet_is_too_large_for_the_tunnel(
    host: Containers, version: int, kind: ShieldKind
) -> None:
    host.netns.ip("link", "set", TUNNEL, "mtu", "1280")
    host.use(kind)
    if kind is ShieldKind.TUNNELLED:
        # Behind a shield the host's routes to its own networks stay in use.
        routing = ExitRouting(True, OVERLAY, BOTH, allow_lan=True)
        host.netns.call(apply_exit_routing, routing, TUNNEL)
    with udp(host.container, WITHIN[version][0], 0) as program:
        program.setsockopt(*DONT_FRAGMENT[version])
        program.connect((PUBLIC[version], 443))

        def is_told() -> bool:
            with suppress(OSError):
                program.send(bytes(1400))
            return program.getsockopt(*PATH_MTU[version]) == 1280

        wait_until(is_told, "the container to be told", timeout=LIMIT)


@pytest.mark.parametrize("version", [4, 6])
def test_containers_are_told_nothing_else_and_by_nobody_else(
    host: Containers, version: int
) -> None:
    host.netns.ip("link", "set", TUNNEL, "mtu", "1280")
    host.use(ShieldKind.TUNNELLED)
    host.netns.call(apply_exit_routing, ExitRouting(True, OVERLAY, BOTH, allow_lan=True), TUNNEL)
    within, router, _ = WITHIN[version]
    heard = Wire(host.container, "eth0")
    with heard.socket, udp(host.container, within, 0) as program:
        # A port that is closed, and a packet too large of which a program says so, once each.
        program.sendto(b"x", (router, 9))
        program.sendto(b"x", (PUBLIC[version], 443))
        host.netns.run(
            sys.executable, "-c", _SAYS, router, PUBLIC[version], *map(str, program.getsockname())
        )
        program.setsockopt(*DONT_FRAGMENT[version])
        program.sendto(bytes(1400), (PUBLIC[version], 443))
        with udp(host.netns, router, 0) as last:
            last.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
            last.sendto(b"end", (within, 9))
        found = [p for p in heard.seen(lambda packet: packet.port == 9) if p.kind == "icmp"]
    told = {4: 3, 6: 2}[version]
    assert [(p.source, p.port) for p in found if p.port not in NEIGHBOURS] == [(router, told)]


def udp(netns: Any, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made: socket.socket = netns.call(socket.socket, family, socket.SOCK_DGRAM)
    made.settimeout(1.0)
    made.bind((address, port))
    return made


def tcp(netns: Any, address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made: socket.socket = netns.call(socket.socket, family, socket.SOCK_STREAM)
    made.settimeout(LIMIT)
    made.bind((address, 0))
    return made
