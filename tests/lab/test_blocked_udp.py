"""Networks that let no UDP out: by WebSocket through a member, by TCP through a TURN server."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from nostrvpn.lab.core import Internet
from nostrvpn.lab.gathering import gather
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.topology import Lab, Server
from nostrvpn.lab.transfer import transfer
from nostrvpn.lab.turn import PASSWORD, USERNAME, Coturn
from tests.lab.homes import Pinging, peer_of, ping, problems, watched

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
FLOW_SECONDS = 4.0
FLOW_INTERVAL = 0.02


def endpoint_in_use(node: LabNode, peer: LabNode) -> str:
    """Return where WireGuard itself sends what is for ``peer``: late packets may have moved it."""
    address = f"{peer.status()['addresses'][0]}/"
    lines = node.namespace.run("wg", "show", node.interface, "dump").stdout.splitlines()
    return next(line.split("\t")[2] for line in lines if address in line)


def endpoints_set(node: LabNode, peer: LabNode) -> int:
    """Return how often the node told WireGuard an endpoint of the peer so far."""
    key = peer.status()["wireguard_public_key"]
    return sum(
        line.count("endpoint ")
        for line in node.log.read_text(errors="replace").splitlines()
        if f"peer {key}" in line and "wg set" in line
    )


def flows_steadily(a: LabNode, b: LabNode) -> None:
    """Fail unless echoes come back, 50 a second, over the pair that both ends selected."""
    # Who does not start the handshake tells WireGuard the endpoint a moment after it has come.
    wait_until(lambda: endpoints_set(a, b) and endpoints_set(b, a), "both to have an endpoint")
    before = endpoints_set(a, b), endpoints_set(b, a)
    used: set[tuple[bool, bool]] = set()
    with Pinging(a, b, interval=FLOW_INTERVAL) as pinging:
        for _ in range(8):
            pinging.wait_more(int(FLOW_SECONDS / FLOW_INTERVAL) // 8)
            used.add(
                (
                    endpoint_in_use(a, b) == peer_of(a, b)["endpoint"],
                    endpoint_in_use(b, a) == peer_of(b, a)["endpoint"],
                )
            )
        sent, lost = pinging.totals()
    assert sent >= FLOW_SECONDS / FLOW_INTERVAL
    assert lost <= sent * 0.03
    assert used == {(True, True)}
    assert (endpoints_set(a, b), endpoints_set(b, a)) == before


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
    a.wait_for(lambda status: "udp_blocked" in problems(status), "UDP to be found blocked")
    assert a.query("netcheck")["udp"] is False
    assert "websocket" in a.cli("ping", "tcp-b", "--count", "3")


def test_why_says_that_the_peers_network_blocks_udp(member: WithMember) -> None:
    hard, blocked = member.laptops["hard"], member.laptops["tcp-a"]

    def is_said() -> bool:
        codes = [block["code"] for block in hard.query("why", blocked.npub)["blocks"]]
        return "peer_udp_blocked" in codes and "udp_blocked" not in codes

    wait_until(is_said, "the peer's word", timeout=30)
    assert "tcp-a says that no UDP answer reaches it" in hard.cli("why", "tcp-a")


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_turn_server_carries_by_tcp(turn: WithTurn, one: str, other: str) -> None:
    a, b = turn.laptops[one], turn.laptops[other]
    for node, peer in ((a, b), (b, a)):
        found = node.wait_for_peer(peer.npub, path="relayed", timeout=40)
        assert found["via"].startswith("turn ")
    flows_steadily(a, b)
    carries(a, b)
    assert peer_of(a, b)["path"] == "relayed"
    assert "via turn" in a.cli("ping", other, "--count", "3")
