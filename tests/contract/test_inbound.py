"""What the packet filter lets out of the tunnel, with real packets. A cable stands for the tunnel."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest

from nostrvpn.endpoint import IPAddress
from nostrvpn.host.inbound import EVERYTHING, NOTHING, Access, Inbound, inbound_table
from nostrvpn.io.nftables import apply_inbound, own_tables
from nostrvpn.io.own_tables import delete_own_tables

OWN4, OWN6 = "10.64.0.1", "fd64::1"
PEER4, PEER6 = "10.64.0.2", "fd64::2"
STRANGER6 = "fd64::9"
ELSEWHERE = "192.168.9.1"
BEHIND = "192.168.9.2"
OPEN, CLOSED = 5300, 5301
SOME = Access(ping=True, tcp=((OPEN, OPEN),), udp=((OPEN, OPEN),))
OWN = frozenset(map(ip_address, (OWN4, OWN6)))
# Spec: RFC 8200 section 4.2: next header, length, and a PadN option of four bytes.
PADDED = bytes([0, 0, 1, 4, 0, 0, 0, 0])
LIMIT = 10.0


def inbound(access: Access = SOME, **more: Any) -> Inbound:
    sources: dict[IPAddress, Access] = {ip_address(PEER4): access, ip_address(PEER6): access}
    return Inbound(OWN, sources, **more)


class Hosts:
    """``near`` has the filter on ``nv0``; ``far`` is at the other end; ``behind`` is in near's LAN."""

    def __init__(self, make_netns: Callable[[], Any]) -> None:
        self.far, self.near, self.behind = (make_netns() for _ in range(3))
        self.far.ip(
            "link", "add", "e", "type", "veth", "peer", "name", "nv0", "netns", self.near.name
        )
        lan = ("type", "veth", "peer", "name", "lan", "netns", self.near.name)
        self.behind.ip("link", "add", "e", *lan)
        for host, link in ((self.far, "e"), (self.near, "nv0")):
            # As in a tunnel, nobody looks for neighbours: both ends have the same address.
            host.ip("link", "set", link, "address", "02:00:00:00:00:01", "arp", "off")
        for host, link, addresses in (
            (self.far, "e", (PEER4, PEER6, STRANGER6)),
            (self.near, "nv0", (OWN4, OWN6)),
            (self.near, "lan", (ELSEWHERE,)),
            (self.behind, "e", (BEHIND,)),
        ):
            for address in addresses:
                if ":" in address:
                    host.ip("addr", "add", f"{address}/64", "dev", link, "nodad")
                else:
                    host.ip("addr", "add", f"{address}/24", "dev", link)
            host.ip("link", "set", link, "up")
        self.near.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.far.ip("route", "add", "192.168.9.0/24", "via", OWN4)
        self.behind.ip("route", "add", "default", "via", ELSEWHERE)

    def allow(self, wanted: Inbound) -> bool:
        changed: bool = self.near.call(apply_inbound, wanted, "nv0")
        return changed


@pytest.fixture
def hosts(make_netns: Callable[[], Any]) -> Hosts:
    made = Hosts(make_netns)
    made.far.run("ping", "-c1", "-w10", OWN6)
    made.behind.run("ping", "-c1", "-w10", PEER4)
    return made


def udp(host: Any, address: str = "", port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made: socket.socket = host.call(socket.socket, family, socket.SOCK_DGRAM)
    made.settimeout(LIMIT)
    made.bind((address, port))
    return made


@contextmanager
def ears(hosts: Hosts, address: str) -> Iterator[dict[int, socket.socket]]:
    """Listen on near's two ports of one address."""
    with udp(hosts.near, address, OPEN) as opened, udp(hosts.near, address, CLOSED) as closed:
        yield {OPEN: opened, CLOSED: closed}


def arrives(sender: socket.socket, heard: dict[int, socket.socket], data: bytes = b"x") -> set[int]:
    """Send to both ports, then what shows that all has been looked at; return the ports reached."""
    address = heard[OPEN].getsockname()[0]
    for port in heard:
        sender.sendto(data, (address, port))
    # A cable keeps the order: when this arrives, the rest is decided.
    sender.sendto(b"end", (address, OPEN))
    found = set()
    while (got := heard[OPEN].recv(65536)) != b"end":
        assert got == data
        found.add(OPEN)
    heard[CLOSED].setblocking(False)
    try:
        while heard[CLOSED].recv(65536):
            found.add(CLOSED)
    except BlockingIOError:
        pass
    return found


@pytest.mark.parametrize(("own", "peer"), [(OWN4, PEER4), (OWN6, PEER6)])
def test_only_the_ports_that_are_allowed_are_reached(hosts: Hosts, own: str, peer: str) -> None:
    with ears(hosts, own) as heard, udp(hosts.far, peer) as sender:
        assert arrives(sender, heard) == {OPEN, CLOSED}
        hosts.allow(inbound())
        assert arrives(sender, heard) == {OPEN}
        hosts.allow(inbound(EVERYTHING))
        assert arrives(sender, heard) == {OPEN, CLOSED}


@pytest.mark.parametrize("option", [socket.IPV6_DSTOPTS, socket.IPV6_HOPOPTS])
def test_extension_headers_hide_no_port(hosts: Hosts, option: int) -> None:
    with ears(hosts, OWN6) as heard, udp(hosts.far, PEER6) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, option, PADDED)
        assert arrives(sender, heard) == {OPEN, CLOSED}
        hosts.allow(inbound())
        assert arrives(sender, heard) == {OPEN}


@pytest.mark.parametrize(("own", "peer"), [(OWN4, PEER4), (OWN6, PEER6)])
def test_fragments_are_judged_as_the_packet_they_make(hosts: Hosts, own: str, peer: str) -> None:
    with ears(hosts, own) as heard, udp(hosts.far, peer) as sender:
        assert arrives(sender, heard, bytes(4000)) == {OPEN, CLOSED}
        hosts.allow(inbound())
        assert arrives(sender, heard, bytes(4000)) == {OPEN}


def test_who_is_no_member_reaches_nothing(hosts: Hosts) -> None:
    hosts.allow(inbound(EVERYTHING))
    with ears(hosts, OWN6) as heard, udp(hosts.far, PEER6) as member:
        with udp(hosts.far, STRANGER6) as stranger:
            for port in heard:
                stranger.sendto(b"stranger", (OWN6, port))
        assert arrives(member, heard, b"member") == {OPEN, CLOSED}
    assert hosts.far.run("ping", "-c1", "-w1", "-I", STRANGER6, OWN6, check=False).count(
        " 0 received"
    )


def test_other_addresses_of_the_host_are_not_reached(hosts: Hosts) -> None:
    with udp(hosts.near, ELSEWHERE, OPEN) as elsewhere, udp(hosts.far, PEER4) as sender:
        sender.sendto(b"before", (ELSEWHERE, OPEN))
        assert elsewhere.recv(100) == b"before"
        hosts.allow(inbound(EVERYTHING))
        sender.sendto(b"after", (ELSEWHERE, OPEN))
        with ears(hosts, OWN4) as heard:
            arrives(sender, heard)
        elsewhere.setblocking(False)
        with pytest.raises(BlockingIOError):
            elsewhere.recv(100)


def test_ping_is_let_in_where_it_is_allowed(hosts: Hosts) -> None:
    for access, received in ((SOME, 1), (NOTHING, 0), (Access(other=True), 0), (EVERYTHING, 1)):
        hosts.allow(inbound(access))
        for address, source in ((OWN4, PEER4), (OWN6, PEER6)):
            said = hosts.far.run("ping", "-c1", "-w1", "-I", source, address, check=False)
            assert f" {received} received" in said, (access, address)


def test_what_the_host_began_is_answered(hosts: Hosts) -> None:
    hosts.allow(inbound(NOTHING))
    hosts.near.run("ping", "-c1", "-w10", PEER6)
    with udp(hosts.far, PEER6, 7000) as far, udp(hosts.near, OWN6, 7000) as near:
        far.sendto(b"unasked", (OWN6, 7000))
        near.sendto(b"question", (PEER6, 7000))
        assert far.recv(100) == b"question"
        far.sendto(b"answer", (OWN6, 7000))
        assert near.recv(100) == b"answer"
    listener = hosts.far.call(socket.create_server, (PEER4, 7000))
    with listener, hosts.near.call(socket.create_connection, (PEER4, 7000), LIMIT) as client:
        accepted, _ = listener.accept()
        accepted.sendall(b"answer")
        accepted.close()
        assert client.recv(100) == b"answer"


def test_what_is_denied_cuts_a_flow_that_lives_and_no_other(hosts: Hosts) -> None:
    hosts.allow(inbound())
    servers = [
        host.call(socket.create_server, (ip, OPEN))
        for host, ip in ((hosts.near, OWN4), (hosts.far, PEER4))
    ]
    theirs = hosts.far.call(socket.create_connection, (OWN4, OPEN), LIMIT)
    ours = hosts.near.call(socket.create_connection, (PEER4, OPEN), LIMIT)
    at_near, at_far = (server.accept()[0] for server in servers)
    for sock in (*servers, theirs, ours, at_near, at_far):
        sock.settimeout(LIMIT)
    theirs.sendall(b"before")
    assert at_near.recv(100) == b"before"
    hosts.allow(inbound(NOTHING))
    theirs.sendall(b"after")
    at_far.sendall(b"still here")
    assert ours.recv(100) == b"still here"
    at_near.settimeout(1.0)  # five retransmissions
    with pytest.raises(TimeoutError):
        at_near.recv(100)
    hosts.allow(inbound())
    at_near.settimeout(LIMIT)
    assert at_near.recv(100) == b"after"
    for sock in (*servers, theirs, ours, at_near, at_far):
        sock.close()


@pytest.mark.parametrize("peer_began", [False, True])
def test_a_packet_too_big_is_heard(
    hosts: Hosts, make_netns: Callable[[], Any], peer_began: bool
) -> None:
    """A router in the mesh says that its next link is narrow; it is itself no member."""
    end = make_netns()
    end.ip("link", "add", "e", "type", "veth", "peer", "name", "narrow", "netns", hosts.far.name)
    for host, link, address in ((hosts.far, "narrow", "fd65::1/64"), (end, "e", "fd65::2/64")):
        host.ip("link", "set", "dev", link, "mtu", "1300", "up")
        host.ip("addr", "add", address, "dev", link, "nodad")
    hosts.far.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    hosts.near.ip("route", "add", "fd65::/64", "via", PEER6)
    end.ip("route", "add", "default", "via", "fd65::1")
    end.run("ping", "-c1", "-w10", OWN6)
    hosts.allow(Inbound(OWN, {ip_address("fd65::2"): SOME}))
    with udp(hosts.near, OWN6, OPEN) as near, udp(end, "fd65::2", CLOSED) as far:
        if peer_began:
            far.sendto(b"question", (OWN6, OPEN))
            assert near.recv(100) == b"question"
        deadline = time.monotonic() + LIMIT
        while "mtu 1300" not in hosts.near.ip("-6", "route", "get", "fd65::2"):
            near.sendto(bytes(1400), ("fd65::2", CLOSED))
            assert time.monotonic() < deadline
            time.sleep(0.05)


def reaches(hosts: Hosts, target: str, port: int, listener: socket.socket) -> bool:
    """Say whether far can open a TCP connection, waiting for one retransmission of its SYN."""
    try:
        client = hosts.far.call(socket.create_connection, (target, port), 1.5, (PEER4, 0))
    except TimeoutError:
        return False
    with client:
        accepted, _ = listener.accept()
        accepted.close()
    return True


def test_nothing_is_forwarded_but_to_the_networks_that_are_open(hosts: Hosts) -> None:
    lan = frozenset({ip_network("192.168.9.0/24")})
    with hosts.behind.call(socket.create_server, (BEHIND, 80)) as listener:
        assert reaches(hosts, BEHIND, 80, listener)
        hosts.allow(inbound(EVERYTHING))
        assert not reaches(hosts, BEHIND, 80, listener)
        hosts.allow(inbound(NOTHING, lan_sources=frozenset({IPv4Address(PEER4)}), lan_networks=lan))
        assert reaches(hosts, BEHIND, 80, listener)


def test_hosts_behind_begin_nothing_in_the_mesh(hosts: Hosts) -> None:
    hosts.allow(inbound(EVERYTHING))
    said = hosts.behind.run("ping", "-c1", "-w1", PEER4, check=False)
    assert " 0 received" in said


def test_a_published_port_is_judged_by_the_port_that_was_asked_for(hosts: Hosts) -> None:
    """As Docker publishes a container's port."""
    hosts.near.run(
        "nft",
        "add table ip docker;"
        "add chain ip docker pre { type nat hook prerouting priority dstnat; };"
        f"add rule ip docker pre tcp dport {{ {OPEN}, {CLOSED} }} dnat to {BEHIND}:80",
    )
    with hosts.behind.call(socket.create_server, (BEHIND, 80)) as listener:
        assert reaches(hosts, OWN4, CLOSED, listener)
        hosts.allow(inbound())
        assert reaches(hosts, OWN4, OPEN, listener)
        assert not reaches(hosts, OWN4, CLOSED, listener)


def test_the_table_is_made_once_and_mended(hosts: Hosts) -> None:
    wanted = inbound(lan_networks=frozenset({ip_network("10.0.0.0/8"), ip_network("fd00::/8")}))
    assert hosts.allow(wanted)
    assert not hosts.allow(wanted)
    assert hosts.near.call(own_tables) == (inbound_table("nv0"),)
    hosts.near.run("nft", "flush", "table", "inet", inbound_table("nv0"))
    assert hosts.allow(wanted)
    assert hosts.allow(inbound())
    hosts.near.call(apply_inbound, Inbound(), "nv1")
    assert hosts.near.call(delete_own_tables, "nv0") == (inbound_table("nv0"),)
    assert hosts.near.call(own_tables) == (inbound_table("nv1"),)


def test_a_large_network_costs_no_packet_more(netns: Any) -> None:
    """Rules do not grow with members, and ten thousand are set in a second or two."""
    kinds = [Access(tcp=((22, 22), (port, port))) for port in range(100, 110)]
    sources: dict[IPAddress, Access] = {}
    for number in range(10_000):
        sources[IPv4Address(0x0A400000 + number)] = kinds[number % 10]
        sources[ip_address(f"fd64::{number:x}")] = kinds[number % 10]
    began = time.monotonic()
    assert netns.call(apply_inbound, Inbound(OWN, sources), "nv0")
    took = time.monotonic() - began
    assert not netns.call(apply_inbound, Inbound(OWN, sources), "nv0")
    assert took < 10.0
    listed = netns.run("nft", "-t", "list", "table", "inet", inbound_table("nv0"))
    assert listed.count("comment") < 100
