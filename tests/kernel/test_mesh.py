"""The main job on the kernel's own WireGuard: meet, carry data by every way, and leave nothing.

Two laptops behind home routers, which in the end give another port for each destination; a member
with a public address that relays for them by nftables, and is the exit of their exit; and an internet
that holds packets back, and loses every UDP packet above 1280 bytes in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address

import pytest

from nostrvpn.errors import SystemRefused
from nostrvpn.io.wireguard_kernel import KernelBackend
from nostrvpn.lab.core import Engine, Internet
from nostrvpn.lab.leftovers import leftovers
from nostrvpn.lab.nat import NatKind, render_ruleset
from nostrvpn.lab.node import STATUS_POLL, LabNode, Status
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.topology import DEFAULT_UDP_TIMEOUT, Host, Lab, Router, Server
from nostrvpn.lab.transfer import transfer
from tests.kernel.near import LIMIT, NearNode, changes, told
from tests.lab.abroad import answer_everybody
from tests.lab.homes import FAILURE, Pinging, machine, peer_of

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(patient(90))]

DELAY = 0.02
"""Seconds, one way, between any two networks of the lab; netem holds the packets back."""

ROUND_TRIP_MS = 2 * DELAY * 1000
NARROW = 1280
"""What passes of a UDP packet, in bytes of IP. WireGuard's largest is 1340: it goes in fragments."""

SIZE = 1 << 20
DOWN_TIMEOUT = 10.0
# Seconds without an answer to a SYN, after which there will be none.
REFUSED_S = 0.5


class Homes(Lab):
    """The network of this module; ``a`` and ``b`` are on the laptops, ``relay`` on the server."""

    node_type = NearNode
    server: Server

    def build(self) -> None:
        self.core.namespace.nft(
            "table inet narrow {\nchain c {\ntype filter hook prerouting priority -500;\n"
            f"meta l4proto udp meta length > {NARROW} counter drop\n}}\n}}\n"
        )
        self.server = self.server_host()
        self.vps = self.host("vps")
        self.site = self.host("site")
        answer_everybody(self, self.site)
        self.routers = [self.router(f"nat-{end}", NatKind.PORT_RESTRICTED) for end in "ab"]
        self.relay = self._node(self.vps, relay={"offer": "members"})
        paths = {"hard_nat_search": False}
        self.a, self.b = (
            self._node(self.host(f"laptop-{end}", router), paths=paths)
            for end, router in zip("ab", self.routers, strict=True)
        )

    def _node(self, host: Host, **settings: object) -> NearNode:
        node = self.node(host, self.server, wireguard={"backend": "kernel"}, **settings)
        assert isinstance(node, NearNode)
        return node

    def become(self, router: Router, kind: NatKind) -> None:
        """Give a router another NAT, and let it forget the mappings of the old one."""
        ruleset = render_ruleset(kind, mapping_timeout=DEFAULT_UDP_TIMEOUT)
        router.namespace.nft(f"flush ruleset\n{ruleset}")
        # The kernel forgets what it masqueraded behind an interface that goes down.
        router.namespace.ip(
            "link set wan down", "link set wan up", f"route add default via {router.wan.gateway}"
        )

    def forwarded(self) -> tuple[int, int]:
        """Return the bytes that the relay carried, and how many pairs its kernel took."""
        listed = self.vps.run(
            "nft", "list", "table", "inet", f"nostrvpn_{self.relay.interface}_relay"
        )
        counters = re.findall(r"counter packets \d+ bytes (\d+)", listed.partition("set rates")[0])
        return sum(map(int, counters)), len(counters) // 2


def meet(lab: Homes) -> None:
    """Bring all up; the others join the network of one laptop."""
    nodes = (lab.relay, lab.a, lab.b)
    for node in nodes:
        node.init()
    told("three identities")
    with ThreadPoolExecutor(2) as some:
        list(some.map(LabNode.start, nodes))
        list(some.map(LabNode.wait_for_relay, nodes))
    told("three daemons with a relay")
    for guest in (lab.b, lab.relay):
        guest.query("join", lab.a.query("invite", guest.npub)["link"])
    told("joined")
    both(lab, "direct")
    for node, other, router in ((lab.b, lab.a, lab.routers[0]), (lab.a, lab.b, lab.routers[1])):
        assert (
            peer_of(node, other)["endpoint"] == f"{router.address}:{other.status()['listen_port']}"
        )
        assert node.status()["backend"] == "kernel"
        assert node.link()["ifname"] == node.interface


def both(lab: Homes, path: str, timeout: float = 30) -> None:
    """Wait until both laptops have such a path to each other."""
    for node, other in ((lab.a, lab.b), (lab.b, lab.a)):
        node.wait_for_peer(other.npub, path=path, timeout=timeout)
        endpoint = peer_of(node, other)["endpoint"]
        assert endpoint.startswith(f"{lab.vps.address}:") == (path == "relayed")
    told(path)


def endpoints(lab: Homes) -> list[str]:
    """Return what each laptop's WireGuard has as the endpoint of the other."""
    found = []
    for node, other in ((lab.a, lab.b), (lab.b, lab.a)):
        shown = node.namespace.run("wg", "show", node.interface, "endpoints").stdout
        expected = peer_of(node, other)["endpoint"]
        found += [expected] if expected in shown else [shown]
    return found


def test_all_ways_of_a_mesh_on_kernel_wireguard(needs: Callable[[bool, str], None]) -> None:
    needs(not KernelBackend().unavailable(), "the kernel module wireguard")
    with Homes(internet=Internet(delay=DELAY, engine=Engine.NETEM)) as lab:
        told("the network stands")
        footprint, before = lab.footprint(), machine(lab.b)
        meet(lab)
        large_packets_cross(lab)
        a_denied_member_only_pings(lab.a, lab.b)
        a_crashed_daemon_adopts_its_device(lab.a, lab.b)
        guests_of_a_chain_leave_by_its_end(lab)
        paths_change_under_a_flow(lab)
        lab.b.cli("down", f"--timeout={patient(DOWN_TIMEOUT)}")
        with ThreadPoolExecutor(2) as some:
            assert list(some.map(LabNode.stop, (lab.a, lab.relay))) == [0, 0]
        assert (lab.a.link(), lab.b.link(), lab.relay.link()) == ({}, {}, {})
        assert changes(before, machine(lab.b)) == {}
        failures = [
            line
            for node in lab.nodes
            for line in node.log.read_text().splitlines()
            if FAILURE.search(line)
        ]
        assert failures == []
        told("all down")
    assert leftovers(footprint) == []
    told("nothing left")


def paths_change_under_a_flow(lab: Homes) -> None:
    with Pinging(lab.a, lab.b) as pinging:
        pinging.wait_more()
        block(lab)
        both(lab, "relayed")
        # At once: what was direct a moment ago is tried again without waiting for a round.
        pinging.wait_more(2)
        for router in lab.routers:
            router.unblock()
        both(lab, "direct", timeout=60)
        # No late packet of the relayed path takes WireGuard back to it.
        pinging.wait_more(10)
        assert not any(one.startswith(f"{lab.vps.address}:") for one in endpoints(lab))
        for router in lab.routers:
            lab.become(router, NatKind.SYMMETRIC)
        both(lab, "relayed")
        is_carried_by_the_kernel(lab, pinging)


def is_carried_by_the_kernel(lab: Homes, pinging: Pinging) -> None:
    """The relay's table forwards the echoes: what its daemon forwards itself is not counted there."""
    pinging.wait_more()
    before, pairs = lab.forwarded()
    assert pairs >= 1
    pinging.wait_more()
    assert lab.forwarded()[0] > before
    assert all(one.startswith(f"{lab.vps.address}:") for one in endpoints(lab))


def large_packets_cross(lab: Homes) -> None:
    """The path loses what WireGuard makes of full packets; the nodes find out, and mend it."""
    for node, other in ((lab.a, lab.b), (lab.b, lab.a)):
        node.wait_for(partial(is_measured, other.npub), "a measured path", timeout=30)
    for address in lab.b.status()["addresses"]:
        assert ping(lab.a, address) >= ROUND_TRIP_MS
        assert transfer(lab.a.namespace, lab.b.namespace, ip_address(address), size=SIZE).intact
    told("pings and transfers")


def ping(source: LabNode, address: str) -> float:
    """Return the fastest of three echoes through the tunnel, in ms."""
    argv = ("ping", "-n", "-c", "3", "-i", "0.2", "-w", "20", address)
    said = source.namespace.run(*argv, timeout=30).stdout
    return min(float(time) for time in re.findall(r"time=([0-9.]+) ms", said))


def a_denied_member_only_pings(a: NearNode, b: NearNode) -> None:
    """The packet filter judges what the kernel's own WireGuard brings."""
    address = ip_address(b.status()["addresses"][0])
    b.cli("deny", a.npub, "inbound:tcp")

    def is_refused() -> bool:
        try:
            transfer(a.namespace, b.namespace, address, size=1, patience=REFUSED_S)
        except SystemRefused:
            return True
        return False

    # The command is answered before the filter is set, and this machine is slow.
    wait_until(is_refused, "the packet filter")
    assert ping(a, str(address)) >= ROUND_TRIP_MS
    b.cli("allow", a.npub, "inbound:tcp")
    assert transfer(a.namespace, b.namespace, address, size=1).intact
    told("permissions")


def a_crashed_daemon_adopts_its_device(a: NearNode, b: NearNode) -> None:
    """Kill b's daemon: its tunnel stays, carries data, and is taken over by the next daemon."""
    key = a.status()["wireguard_public_key"]
    index, received = b.link()["ifindex"], b.received_bytes(key)
    address = b.status()["addresses"][0]
    b.kill()
    assert ping(a, address) >= ROUND_TRIP_MS
    b.start()
    # A device made anew would have another index, and count from zero.
    assert b.link()["ifindex"] == index
    assert b.received_bytes(key) > received > SIZE
    b.wait_for_peer(a.npub, path="direct", timeout=30)
    assert ping(b, a.status()["addresses"][0]) >= ROUND_TRIP_MS
    told("crash and restart")


def guests_of_a_chain_leave_by_its_end(lab: Homes) -> None:
    """One laptop leaves by the other, which leaves by the relay; or not at all, while that is away."""
    site, vps, nobody = lab.site, lab.vps, ""
    at_home = [node.seen_as(site) for node in (lab.b, lab.a)]
    offer_and_use(lab.relay, lab.b)
    lab.b.wait_seen(site, vps.address, vps.address6)
    offer_and_use(lab.b, lab.a)
    # The home of the exit in between has no IPv6: it offers none.
    lab.a.wait_seen(site, vps.address, nobody)
    to_it = f"dst host {site.address} or dst host {site.address6}"
    capture = lab.capture("laptop-b", "eth0", to_it)
    told("a chain")
    vps.namespace.nft(
        "table inet cut {\nchain c { type filter hook prerouting priority -500; policy drop; }\n}\n"
    )
    assert lab.a.seen_as(site) == {nobody}
    vps.namespace.nft("delete table inet cut\n")
    lab.a.wait_seen(site, vps.address, nobody)
    capture.stop()
    assert capture.packets() == []
    for node, before in zip((lab.b, lab.a), at_home, strict=True):
        node.ask("exit_off", kill_switch="off")
        node.wait_seen(site, *before)
    told("no chain")


def offer_and_use(exit_node: NearNode, guest: NearNode) -> None:
    exit_node.cli("exit", "offer", "--to", "members")

    def is_offered() -> bool:
        return exit_node.npub in [one["npub"] for one in guest.ask("exit_list")["exits"]]

    wait_until(is_offered, "the offer", timeout=LIMIT, poll=STATUS_POLL)
    more = {"allow_lan": False, "resolver": None, "kill_switch": "on"}
    guest.ask("exit_use", peer=exit_node.npub, dry_run=False, **more)


def is_measured(npub: str, status: Status) -> bool:
    """Say whether a status knows what the path to this peer carries."""
    sizes = [peer["mtu"] for peer in status["peers"] if peer["npub"] == npub]
    return all(size is not None and size <= NARROW for size in sizes)


def block(lab: Homes) -> None:
    """Let nothing pass between the two homes."""
    for router, other in zip(lab.routers, reversed(lab.routers), strict=True):
        router.block(f"ip daddr {other.address}")
