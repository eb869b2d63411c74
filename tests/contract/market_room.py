"""A seller, a buyer and the world between them, each a namespace; real WireGuard, no daemon."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest

from nostrvpn.daemon.bought_way import BoughtWay
from nostrvpn.daemon.sold_way import SoldWay
from nostrvpn.endpoint import parse_endpoint
from nostrvpn.exits.policy import ExitPolicy
from nostrvpn.host.bought import Bought, bought_interface
from nostrvpn.host.sold import Sold, SoldLease, sold_interface
from nostrvpn.host.state import FWMARK
from nostrvpn.io.wireguard_kernel import KernelBackend
from nostrvpn.io.wireguard_userspace import UserspaceBackend
from nostrvpn.wireguard.device import SecretKey

PUBLIC = {4: "203.0.113.5", 6: "2001:db8:9::5"}
SELLER, BUYER = {4: "198.51.100.1", 6: "2001:db8:1::1"}, {4: "192.0.2.2", 6: "2001:db8:2::2"}
INSIDE = {4: "198.18.0.1", 6: "fd77:1::1"}
FIRST = {4: "198.18.0.2", 6: "fd77:1::2"}
AROUND = {4: "198.51.100.254", 6: "2001:db8:1::fe"}
PRIVATE = ("10.9.9.9", "192.168.77.7", "100.100.100.200", "169.254.169.254", "fd99::9")
ELSEWHERE = (*PRIVATE, *AROUND.values())
OVERLAY = frozenset({ip_network("10.64.0.0/16"), ip_network("fd64::/48")})
PORT, OPEN, CLOSED, CONTROL = 24000, 443, 25, 7117
BOTH = frozenset({4, 6})
LIMIT, PATIENCE = 10.0, 1.0
QUIET = 0.4
DATA = bytes(1000)
# Spec: with the headers of IPv4 and UDP.
PACKET = len(DATA) + 28
# Spec: asm-generic/socket.h.
SO_RCVBUFFORCE = 33
PSK = SecretKey(b"\x33" * 32)
SELLERS_KEY = SecretKey(b"\x11" * 32)


def key(number: int) -> SecretKey:
    """The secret key of a lease's buyer."""
    return SecretKey((number + 1 << 64).to_bytes(32, "little"))


def lease(number: int = 0, **more: Any) -> SoldLease:
    """A lease that serves without an end, but for what ``more`` says."""
    ipv4, ipv6 = IPv4Address(FIRST[4]) + number, IPv6Address(FIRST[6]) + number
    made = SoldLease(f"lease {number}", key(number).public_key, PSK, ipv4, ipv6, True, 10**9)
    return replace(made, **more)


class Room:
    """``seller`` sells with ``way``; ``buyer`` has links to it; ``world`` is between them."""

    def __init__(self, make_netns: Callable[[], Any], interface: str) -> None:
        self.seller, self.buyer, self.world = (make_netns() for _ in range(3))
        for host, name, own in ((self.seller, "ws", SELLER), (self.buyer, "wb", BUYER)):
            self._cable(host, name, own)
        everywhere = (f"addr add {one} dev lo" for one in (*PUBLIC.values(), *PRIVATE))
        batch(self.world, *(f"{line} nodad" if ":" in line else line for line in everywhere))
        self.world.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.backend = UserspaceBackend() if KernelBackend().unavailable() else KernelBackend()
        self.interface = interface[:12]
        self.way = SoldWay(self.backend, self.interface)
        self.bought = BoughtWay(self.backend, self.interface)

    def _cable(self, host: Any, name: str, own: dict[int, str]) -> None:
        self.world.ip(
            "link", "add", name, "type", "veth", "peer", "name", "wan", "netns", host.name
        )
        here, there, routes = list[str](), list[str](), list[str]()
        for version, address in own.items():
            length, more = (24, "") if version == 4 else (64, " nodad")
            far = str(ip_interface(f"{address}/{length}").network[254])
            here.append(f"addr add {address}/{length} dev wan{more}")
            there.append(f"addr add {far}/{length} dev {name}{more}")
            routes.append(f"route add default via {far}")
        for netns, link in ((host, "wan"), (self.world, name)):
            off = (f"net.ipv6.conf.{one}.accept_dad=0" for one in (link, "lo"))
            netns.run("sysctl", "-qw", *off)
        batch(host, *here, "link set wan up", *routes)
        batch(self.world, *there, f"link set {name} up")

    def close(self) -> None:
        self.seller.call(self.way.end, "")
        self.buyer.call(self.bought.end, "")

    def sold(self, *leases: SoldLease, **more: Any) -> Sold:
        around = [ip_network("198.51.100.0/24"), ip_network("2001:db8:1::/64")]
        own = [ip_network(ip) for ip in SELLER.values()]
        addresses = frozenset({ip_interface(f"{INSIDE[4]}/16"), ip_interface(f"{INSIDE[6]}/64")})
        return replace(
            Sold(
                sold_interface(self.interface),
                PORT,
                SELLERS_KEY,
                addresses,
                1280,
                ExitPolicy("web").compile([*OVERLAY, *own], around),
                BOTH,
                leases,
                dns=True,
            ),
            **more,
        )

    def sell(self, *leases: SoldLease, **more: Any) -> None:
        self.seller.call(self.way.settle, self.sold(*leases, **more))
        assert self.way.error is None, self.way.error

    def lease_of(self, number: int = 0, place: int = 0, **more: Any) -> Bought:
        """What the buyer of a lease has, at one of its two links."""
        addresses = {ip_interface(f"{ip}/{ip.max_prefixlen}") for ip in lease(number).addresses}
        made = Bought(
            bought_interface(self.interface, place),
            key(number),
            SELLERS_KEY.public_key,
            PSK,
            parse_endpoint(f"{SELLER[4]}:{PORT}"),
            frozenset(addresses),
            1280,
            BOTH,
            frozenset(map(ip_address, INSIDE.values())),
        )
        return replace(made, **more)

    def buy(self, *bought: Bought) -> None:
        self.buyer.call(self.bought.settle, bought)
        assert self.bought.error is None, self.bought.error

    def connect(self, *addresses: str) -> str:
        """Sell the first lease and buy it; return its link when the world is reached through it.

        These addresses, too, are led into it: without a way there nothing leaves, not even by a device
        of one's choice.
        """
        bought = self.lease_of()
        self.sell(lease())
        self.buy(bought)
        for address in (PUBLIC[6], *addresses):
            words = f"-{ip_address(address).version}", "route"
            self.buyer.ip(*words, "add", address, "dev", bought.link)
        for version, public in PUBLIC.items():
            with (
                self.hearing(self.world, public) as ear,
                self.plug(self.buyer, socket.SOCK_DGRAM, version, bought.link) as sock,
            ):
                ends = time.monotonic() + LIMIT
                while True:
                    sock.sendto(b"x", (public, OPEN))
                    if drain(ear, 0.1):
                        break
                    assert time.monotonic() < ends, "the tunnel never stood"
        return bought.link

    # -- talking ------------------------------------------------------------------------------

    def plug(
        self, netns: Any, kind: int, version: int = 4, link: str = "", *, marked: bool = True
    ) -> socket.socket:
        """One that leaves by a link, with the agent's mark."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        made: socket.socket = netns.call(socket.socket, family, kind)
        made.settimeout(LIMIT)
        if link:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        if link and marked:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
        return made

    def send(self, link: str, count: int) -> int:
        """Send so many datagrams of the buyer to the world; return how many arrive."""
        with self.hearing(self.world, PUBLIC[4]) as ear:
            with self.plug(self.buyer, socket.SOCK_DGRAM, 4, link) as sock:
                found = 0
                for number in range(1, count + 1):
                    sock.sendto(DATA, (PUBLIC[4], OPEN))
                    # A tunnel in user space loses of what comes all at once.
                    found += drain(ear, 0.01) if number % 20 == 0 else 0
            return found + drain(ear)

    def reaches(self, address: str, port: int = OPEN, link: str = "", **more: Any) -> bool:
        """Whether a TCP connection of the buyer gets there."""
        version = ip_address(address).version
        with self.plug(self.buyer, socket.SOCK_STREAM, version, link, **more) as sock:
            sock.settimeout(PATIENCE)
            with suppress(OSError):
                sock.connect((address, port))
                return True
        return False

    def until_reached(self, address: str, port: int = OPEN, link: str = "") -> None:
        """The first packets wait for WireGuard's handshake."""
        ends = time.monotonic() + LIMIT
        while not self.reaches(address, port, link):
            assert time.monotonic() < ends, f"{address} was never reached"

    @contextmanager
    def listening(self, netns: Any, *ports: int) -> Iterator[list[socket.socket]]:
        """TCP, on all addresses."""
        ears = []
        for port in ports:
            ear = netns.call(socket.socket, socket.AF_INET6, socket.SOCK_STREAM)
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ear.bind(("::", port))
            ear.listen(64)
            ear.settimeout(LIMIT)
            ears.append(ear)
        try:
            yield ears
        finally:
            for ear in ears:
                ear.close()

    @contextmanager
    def hearing(self, netns: Any, address: str, port: int = OPEN) -> Iterator[socket.socket]:
        """A UDP socket there."""
        version = ip_address(address).version
        with self.plug(netns, socket.SOCK_DGRAM, version) as sock:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
            sock.bind((address, port))
            yield sock

    def looks(self, netns: Any) -> dict[str, str]:
        """All that selling or buying could change there."""
        found = {
            " ".join(words): str(netns.run(*words))
            for words in (
                *(("ip", v, "rule") for v in ("-4", "-6")),
                *(("ip", v, "route", "show", "table", "all") for v in ("-4", "-6")),
                ("ip", "-o", "addr"),
                ("nft", "-s", "list", "ruleset"),
            )
        }
        names = "forwarding|accept_ra$|rp_filter|src_valid_mark|ip_forward"
        found["sysctl"] = str(netns.run("sysctl", "-ar", names, check=False))
        return found


def batch(netns: Any, *lines: str) -> None:
    """Run lines of ``ip`` in a namespace, as one process: starting one takes longest."""
    words = ("ip", "-n", netns.name, "-batch", "-")
    subprocess.run(words, input="\n".join(lines), text=True, check=True, timeout=LIMIT)


@pytest.fixture(name="room")
def market_room(make_netns: Callable[[], Any], interface: str) -> Iterator[Room]:
    """A room in which nothing is sold yet."""
    made = Room(make_netns, interface)
    yield made
    made.close()


def drain(ear: socket.socket, quiet: float = QUIET) -> int:
    """Return how many datagrams come until none does any more."""
    count = 0
    ear.settimeout(quiet)
    with suppress(TimeoutError):
        while True:
            ear.recv(65535)
            count += 1
    return count
