"""Relays in the mesh: pairs that no direct path joins, live tunnels that change paths, dying relays.

The relays' own counters say which way the data went, whatever the nodes claim.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from nostrvpn.lab.core import Internet
from nostrvpn.lab.gathering import gather
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient
from nostrvpn.lab.topology import Host, Lab, Router, Server
from nostrvpn.lab.transfer import transfer
from tests.lab.homes import Pinging, peer_of, ping, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(240))]

INTERNET = Internet(delay=0.01)
RELAYS = ("vps-1", "vps-2")
LAPTOPS = ("laptop-a", "laptop-b")
SIZE = 1_000_000
"""Bytes sent to see which way they go; all else (checks, handshakes) is less than a tenth of it."""
FLOW_INTERVAL = 0.02
"""Seconds between two packets of a call."""


class Relayed(Lab):
    """Two laptops behind NATs of one kind, a third such NAT, and two members that relay."""

    def __init__(self, kind: NatKind) -> None:
        super().__init__(INTERNET)
        self._kind = kind

    server: Server

    def build(self) -> None:
        self.server = self.server_host()
        self.routers: dict[str, Router] = {}
        self.machines: dict[str, Host] = {}
        for name in RELAYS:
            self.machines[name] = self.host(name)
            self.node(self.machines[name], self.server, relay={"offer": "members"})
        for name in LAPTOPS:
            self.routers[name] = self.router(f"nat-{name[-1]}", self._kind)
            self.machines[name] = self.host(name, self.routers[name])
            self.node(self.machines[name], self.server, paths={"hard_nat_search": False})
        self.elsewhere = self.router("nat-c", self._kind)

    def member(self, name: str) -> LabNode:
        """Return the node on a machine."""
        return next(node for node in self.nodes if node.name == name)

    @property
    def laptops(self) -> tuple[LabNode, LabNode]:
        """The nodes on the laptops."""
        return self.member("laptop-a"), self.member("laptop-b")

    def meet(self) -> None:
        """Make all of them members of one mesh."""
        gather(self.member("vps-1"), [self.member("vps-2"), *self.laptops])

    def block_direct(self) -> None:
        """Let nothing pass between the two homes."""
        home = self.routers["laptop-b"].address
        self.routers["laptop-a"].block(f"ip daddr {home}")
        self.routers["laptop-b"].block(f"ip daddr {self.routers['laptop-a'].address}")

    def unblock_direct(self) -> None:
        """Lift it."""
        for router in self.routers.values():
            router.unblock()

    def carried(self) -> int:
        """Return the bytes that the living relays forwarded so far."""
        relays = [self.member(name) for name in RELAYS]
        return sum(
            relay.query("netcheck")["relay_service"]["bytes"]
            for relay in relays
            if relay.process.alive
        )

    def carried_of_a_transfer(self) -> int:
        """Send ``SIZE`` bytes from one laptop to the other; return how many bytes relays carried."""
        before = self.carried()
        a, b = self.laptops
        target = ip_address(b.status()["addresses"][0])
        assert transfer(a.namespace, b.namespace, target, size=SIZE).intact
        return self.carried() - before

    def wait_for_path(self, path: str, *, timeout: float = 20.0) -> None:
        """Wait until both laptops say so."""
        a, b = self.laptops
        for node, other in ((a, b), (b, a)):
            node.wait_for_peer(other.npub, path=path, timeout=timeout)


@pytest.fixture(scope="module")
def symmetric() -> Iterator[Relayed]:
    with watched(Relayed(NatKind.SYMMETRIC)) as lab:
        lab.meet()
        yield lab


@pytest.fixture(scope="module")
def restricted() -> Iterator[Relayed]:
    """Two laptops that would be direct, but for a block from the start."""
    with watched(Relayed(NatKind.PORT_RESTRICTED)) as lab:
        lab.block_direct()
        lab.meet()
        yield lab


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")


def test_two_symmetric_nats_are_relayed(symmetric: Relayed) -> None:
    symmetric.wait_for_path("relayed")
    for node, other in (symmetric.laptops, reversed(symmetric.laptops)):
        peer = peer_of(node, other)
        assert peer["via"] in RELAYS
        assert peer["carrier"] == "udp"
        assert peer["endpoint"].startswith(f"{symmetric.machines[peer['via']].address}:")
    assert symmetric.carried_of_a_transfer() > SIZE


def test_a_laptop_behind_a_symmetric_nat_moves_behind_another(symmetric: Relayed) -> None:
    a, b = symmetric.laptops
    symmetric.wait_for_path("relayed")
    with Pinging(b, a) as pinging:
        pinging.wait_more()
        moved = symmetric.machines["laptop-a"]
        symmetric.move(moved, symmetric.routers["laptop-a"], symmetric.elsewhere)
        pinging.wait_more(10)
        gap = pinging.gap()
    tell(f"a relayed laptop moves: {gap:.2f} s without an echo")
    assert gap < patient(5.0)
    assert peer_of(b, a)["path"] == "relayed"
    symmetric.wait_for_path("relayed")
    assert symmetric.carried_of_a_transfer() > SIZE


def test_a_dying_relay_is_replaced(symmetric: Relayed) -> None:
    a, b = symmetric.laptops
    dying = a.wait_for_peer(b.npub, path="relayed")["via"]
    with Pinging(a, b) as pinging:
        pinging.wait_more()
        symmetric.machines[dying].namespace.ip("link set eth0 down")
        pinging.wait_more(10, timeout=15)
        gap = pinging.gap()
        assert peer_of(a, b)["via"] in set(RELAYS) - {dying}
    tell(f"a relay dies: {gap:.2f} s without an echo")
    assert gap < patient(6.0)


def test_the_only_relay_is_restarted(symmetric: Relayed) -> None:
    a, b = symmetric.laptops
    peer = a.wait_for_peer(b.npub, path="relayed")
    relay = symmetric.member(peer["via"])
    with Pinging(a, b) as pinging:
        pinging.wait_more()
        relay.stop()
        relay.start()
        began = time.monotonic()
        pinging.wait_more(10, timeout=40)
        took = time.monotonic() - began
    tell(
        f"the only relay is restarted: echoes {took:.2f} s after it was up, gap {pinging.gap():.2f} s"
    )
    # It forgot the port that it had lent; both bind the one that one of them asks for anew.
    symmetric.wait_for_path("relayed")
    assert peer_of(a, b)["via"] == relay.name
    assert took < patient(15.0)


def test_a_call_survives_the_way_to_the_direct_path_and_back(restricted: Relayed) -> None:
    a, b = restricted.laptops
    restricted.wait_for_path("relayed")
    assert restricted.carried_of_a_transfer() > SIZE
    with Pinging(a, b, interval=FLOW_INTERVAL) as call:
        call.wait_more()
        restricted.unblock_direct()
        restricted.wait_for_path("direct", timeout=60)
        call.wait_more(100)
        sent, lost = call.totals()
    tell(f"relayed to direct: {lost} of {sent} packets lost, gap {call.gap():.2f} s")
    # The seconds around the change, whatever the waiting before it dilutes.
    assert lost <= 0.03 * min(sent, 10 / FLOW_INTERVAL)
    assert restricted.carried_of_a_transfer() < SIZE / 10
    with Pinging(a, b, interval=FLOW_INTERVAL) as call:
        call.wait_more(50)
        restricted.block_direct()
        restricted.wait_for_path("relayed")
        call.wait_more(50)
        gap = call.gap()
    tell(f"direct to relayed: {gap:.2f} s without an echo")
    assert gap < patient(7.0)
    assert restricted.carried_of_a_transfer() > SIZE
    restricted.unblock_direct()
    restricted.wait_for_path("direct", timeout=60)
    ping(a, b)
