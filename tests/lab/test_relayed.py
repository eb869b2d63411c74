"""Relays in the mesh: pairs that no direct path joins, live tunnels that change paths, dying relays."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from nostrvpn.lab.core import Internet
from nostrvpn.lab.gathering import gather
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient
from nostrvpn.lab.topology import Host, Lab, Router, Server
from tests.lab.homes import Pinging, peer_of, ping, watched

INTERNET = Internet(delay=0.01)
RELAYS = ("vps-1", "vps-2")


class Relayed(Lab):
    """Two laptops behind NATs of one kind, and two members with public addresses that relay."""

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
        for name in ("laptop-a", "laptop-b"):
            self.routers[name] = self.router(f"nat-{name[-1]}", self._kind)
            self.machines[name] = self.host(name, self.routers[name])
            self.node(self.machines[name], self.server, paths={"hard_nat_search": False})

    def member(self, name: str) -> LabNode:
        """Return the node on a machine."""
        return next(node for node in self.nodes if node.name == name)

    def block_direct(self) -> None:
        """Let nothing pass between the two homes."""
        home = self.routers["laptop-b"].address
        self.routers["laptop-a"].block(f"ip daddr {home}")
        self.routers["laptop-b"].block(f"ip daddr {self.routers['laptop-a'].address}")

    def unblock_direct(self) -> None:
        """Lift it."""
        for router in self.routers.values():
            router.unblock()


@pytest.fixture(scope="module")
def symmetric() -> Iterator[Relayed]:
    with watched(Relayed(NatKind.SYMMETRIC)) as lab:
        gather(lab.member("vps-1"), [lab.member("vps-2"), *_laptops(lab)])
        yield lab


@pytest.fixture(scope="module")
def restricted() -> Iterator[Relayed]:
    with watched(Relayed(NatKind.PORT_RESTRICTED)) as lab:
        gather(lab.member("vps-1"), [lab.member("vps-2"), *_laptops(lab)])
        yield lab


def _laptops(lab: Relayed) -> tuple[LabNode, LabNode]:
    return lab.member("laptop-a"), lab.member("laptop-b")


def _carried(lab: Relayed) -> int:
    """Return the bytes that both relays forwarded so far."""
    return sum(lab.member(name).query("netcheck")["relay_service"]["bytes"] for name in RELAYS)


def test_two_symmetric_nats_are_relayed(symmetric: Relayed) -> None:
    a, b = _laptops(symmetric)
    for node, other in ((a, b), (b, a)):
        peer = node.wait_for_peer(other.npub, path="relayed")
        assert peer["via"] in RELAYS
        relay = symmetric.machines[peer["via"]]
        assert peer["endpoint"].startswith(f"{relay.address}:")
    before = _carried(symmetric)
    ping(a, b)
    assert _carried(symmetric) > before


def test_a_dying_relay_is_replaced(symmetric: Relayed) -> None:
    a, b = _laptops(symmetric)
    dying = a.wait_for_peer(b.npub, path="relayed")["via"]
    with Pinging(a, b) as pinging:
        pinging.wait_more()
        symmetric.machines[dying].namespace.ip("link set eth0 down")
        died = time.monotonic()
        pinging.wait_more(3)
        took = time.monotonic() - died
        assert peer_of(a, b)["via"] in set(RELAYS) - {dying}
    assert took < patient(6.0)


def test_a_blocked_path_falls_back_and_comes_back(restricted: Relayed) -> None:
    a, b = _laptops(restricted)
    a.wait_for_peer(b.npub, path="direct")
    with Pinging(a, b) as pinging:
        pinging.wait_more()
        direct = _carried(restricted)
        restricted.block_direct()
        blocked = time.monotonic()
        a.wait_for_peer(b.npub, path="relayed", timeout=15)
        pinging.wait_more(3)
        took = time.monotonic() - blocked
        relayed = _carried(restricted)
        assert relayed > direct
        restricted.unblock_direct()
        for node, other in ((a, b), (b, a)):
            node.wait_for_peer(other.npub, path="direct", timeout=90)
        pinging.wait_more()
    assert took < patient(9.0)
