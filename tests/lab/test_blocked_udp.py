"""Networks that let no UDP out: by WebSocket through a member, by TCP through a TURN server."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from nostrvpn.lab.core import Internet
from nostrvpn.lab.gathering import gather
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient
from nostrvpn.lab.topology import Lab, Server
from nostrvpn.lab.transfer import transfer
from nostrvpn.lab.turn import PASSWORD, USERNAME, Coturn
from tests.lab.homes import peer_of, ping, problems, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

WEBSOCKET_PORT = 443
SIZE = 500_000
KINDS = {
    "tcp-a": NatKind.UDP_BLOCKED,
    "tcp-b": NatKind.UDP_BLOCKED,
    "hard": NatKind.SYMMETRIC,
}


class Behind(Lab):
    """A laptop behind each of the routers of ``KINDS``."""

    def __init__(self) -> None:
        super().__init__(Internet(delay=0.01))

    server: Server

    def build(self) -> None:
        self.server = self.server_host()
        self.outside()
        self.laptops: dict[str, LabNode] = {}
        for name, kind in KINDS.items():
            host = self.host(name, self.router(f"nat-{name}", kind))
            self.laptops[name] = self.node(host, self.server, **self.settings())

    def outside(self) -> None:
        """Add what carries."""

    def settings(self) -> dict[str, object]:
        """Return the configuration of the laptops."""
        return {"paths": {"hard_nat_search": False}}


class WithMember(Behind):
    """Beside them a member with a public address, which relays also by WebSocket."""

    def outside(self) -> None:
        host = self.host("vps")
        websocket = {
            "listen": f"[::]:{WEBSOCKET_PORT}",
            "url": f"ws://{host.address}:{WEBSOCKET_PORT}/nostrvpn",
        }
        self.relay = self.node(
            host, self.server, relay={"offer": "members", "websocket": websocket}
        )


class WithTurn(Behind):
    """Beside them a TURN server, reached by TCP, and no member that relays."""

    def outside(self) -> None:
        host = self.host("turn")
        self.coturn = Coturn(host.namespace, host.address, self.directory)
        self.stack.enter_context(self.coturn)

    def settings(self) -> dict[str, object]:
        turn = {"url": self.coturn.url("tcp"), "username": USERNAME, "password": PASSWORD}
        return {**super().settings(), "turn": [turn]}


@pytest.fixture(scope="module")
def member() -> Iterator[WithMember]:
    with watched(WithMember()) as lab:
        gather(lab.relay, lab.laptops.values())
        yield lab


@pytest.fixture(scope="module")
def turn() -> Iterator[WithTurn]:
    with watched(WithTurn()) as lab:
        first, *others = lab.laptops.values()
        gather(first, others)
        yield lab


def carries(a: LabNode, b: LabNode) -> None:
    """Fail unless echoes and a file get from one to the other, unharmed."""
    ping(a, b)
    target = ip_address(b.status()["addresses"][0])
    assert transfer(a.namespace, b.namespace, target, size=SIZE).intact


PAIRS = [("tcp-a", "tcp-b"), ("tcp-a", "hard")]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_websocket_to_a_member_carries(member: WithMember, one: str, other: str) -> None:
    a, b = member.laptops[one], member.laptops[other]
    for node, peer in ((a, b), (b, a)):
        found = node.wait_for_peer(peer.npub, path="relayed")
        assert found["via"] == "vps"
        assert found["carrier"] == ("udp" if node.name == "hard" else "websocket")
    before = member.relay.query("netcheck")["relay_service"]
    carries(a, b)
    after = member.relay.query("netcheck")["relay_service"]
    assert after["bytes"] - before["bytes"] > SIZE
    assert after["websockets"] >= 1


def test_that_udp_is_blocked_is_said(member: WithMember) -> None:
    a = member.laptops["tcp-a"]
    assert "udp_blocked" in problems(a.status())
    assert a.query("netcheck")["udp"] is False
    assert "websocket" in a.cli("ping", "tcp-b", "--count", "3")


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_turn_server_carries_by_tcp(turn: WithTurn, one: str, other: str) -> None:
    a, b = turn.laptops[one], turn.laptops[other]
    for node, peer in ((a, b), (b, a)):
        found = node.wait_for_peer(peer.npub, path="relayed", timeout=40)
        assert found["via"].startswith("turn ")
    carries(a, b)
    assert peer_of(a, b)["path"] == "relayed"
    assert "via turn" in a.cli("ping", other, "--count", "3")
