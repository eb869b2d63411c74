"""Direct, relayed, direct and relayed again on the kernel's own WireGuard, in one network.

Two laptops behind home routers, which in the end give another port for each destination; a member
with a public address that relays for them by nftables; and an internet that loses every UDP packet
above 1280 bytes in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address

import pytest

from nostrvpn.io.wireguard_kernel import KernelBackend
from nostrvpn.lab.core import Internet
from nostrvpn.lab.leftovers import leftovers
from nostrvpn.lab.nat import NatKind, render_ruleset
from nostrvpn.lab.node import LabNode, Status
from nostrvpn.lab.patience import patient
from nostrvpn.lab.topology import DEFAULT_UDP_TIMEOUT, Host, Lab, Router, Server
from nostrvpn.lab.transfer import transfer
from tests.kernel.near import NearNode, told
from tests.lab.homes import FAILURE, Pinging, peer_of

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(patient(60))]

DELAY = 0.01
NARROW = 1280
"""What passes of a UDP packet, in bytes of IP. WireGuard's largest is 1340: it goes in fragments."""

SIZE = 1 << 20


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
    """Bring all up; the laptops join the relay's network."""
    nodes = (lab.relay, lab.a, lab.b)
    for node in nodes:
        node.init()
    told("three identities")
    with ThreadPoolExecutor(2) as some:
        list(some.map(LabNode.start, nodes))
        list(some.map(LabNode.wait_for_relay, nodes))
    told("three daemons with a relay")
    for guest in (lab.a, lab.b):
        guest.query("join", lab.relay.query("invite", guest.npub)["link"])
    told("joined")


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


def test_direct_relayed_and_back(needs: Callable[[bool, str], None]) -> None:
    needs(not KernelBackend().unavailable(), "the kernel module wireguard")
    with Homes(internet=Internet(delay=DELAY)) as lab:
        told("the network stands")
        footprint = lab.footprint()
        meet(lab)
        both(lab, "direct")
        large_packets_cross(lab)
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
        failures = [
            line
            for node in lab.nodes
            for line in node.log.read_text().splitlines()
            if FAILURE.search(line)
        ]
        assert failures == []
        told("all down")
    assert leftovers(footprint) == []


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
        assert transfer(lab.a.namespace, lab.b.namespace, ip_address(address), size=SIZE).intact
    told("two transfers")


def is_measured(npub: str, status: Status) -> bool:
    """Say whether a status knows what the path to this peer carries."""
    sizes = [peer["mtu"] for peer in status["peers"] if peer["npub"] == npub]
    return all(size is not None and size <= NARROW for size in sizes)


def block(lab: Homes) -> None:
    """Let nothing pass between the two homes."""
    for router, other in zip(lab.routers, reversed(lab.routers), strict=True):
        router.block(f"ip daddr {other.address}")
