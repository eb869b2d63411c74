"""An exit that the market buys: which state holds, where packets are led, what status says."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from nostrvpn.exits.kill_switch import ExitState, KillSwitch
from nostrvpn.exits.settings import BOUGHT, ExitSettings
from nostrvpn.host.shield import ShieldKind
from nostrvpn.machine import Tick
from nostrvpn.node.events import Purchase, PurchaseChanged
from tests.unit.node.test_exits import Abroad

RESOLVER = ip_address("198.18.0.1")
CARRIES = Purchase("nv0b", frozenset({4, 6}), (RESOLVER,), carries=True, possible=True, label="ada")


@pytest.fixture
def mesh() -> Abroad:
    made = Abroad()
    made.node.exits.settings = ExitSettings(BOUGHT)
    made.step(made.me, Tick())
    return made


def tell(mesh: Abroad, purchase: Purchase | None) -> None:
    mesh.step(mesh.me, PurchaseChanged(purchase))


def state(mesh: Abroad) -> ExitState:
    return mesh.node.exits.state


def test_nothing_leaves_until_what_was_bought_carries(mesh: Abroad) -> None:
    assert state(mesh) is ExitState.CONNECTING
    desired = mesh.node.desired(0.0)
    assert desired.shield.kind is ShieldKind.BLOCKED
    assert (desired.exit_routing.active, desired.exit_routing.tunnelled) == (True, frozenset())
    tell(mesh, replace(CARRIES, carries=False))
    assert mesh.node.desired(0.0).shield.kind is ShieldKind.BLOCKED
    assert mesh.node.desired(0.0).exit_routing.link == ""
    tell(mesh, CARRIES)
    desired = mesh.node.desired(0.0)
    assert desired.shield.kind is ShieldKind.TUNNELLED
    assert desired.shield.link == desired.exit_routing.link == "nv0b"
    assert desired.shield.resolvers == {RESOLVER}
    assert desired.exit_routing.tunnelled == {4, 6}
    tell(mesh, replace(CARRIES, possible=False, carries=False))
    assert state(mesh) is ExitState.BLOCKED


def test_no_member_is_given_packets_or_asked_for_echoes(mesh: Abroad) -> None:
    tell(mesh, CARRIES)
    exits = mesh.node.exits
    assert (exits.used, exits.chain, exits.probes(mesh.node)) == (None, (), [])
    everything = {n for peer in mesh.node.desired(0.0).device.peers for n in peer.allowed_ips}
    assert not any(network.prefixlen == 0 for network in everything)
    assert mesh.node.desired(0.0).inbound is not None
    assert mesh.node.desired(0.0).inbound.outward == frozenset()  # type: ignore[union-attr]


def test_off_and_another_exit_end_it_like_any(mesh: Abroad) -> None:
    tell(mesh, CARRIES)
    mesh.use("fra")
    mesh.answers(mesh.fra)
    assert mesh.node.exits.link == ""
    assert mesh.node.exits.used == mesh.fra.secret.public_key
    mesh.node.exits.settings = ExitSettings(BOUGHT)
    mesh.off()
    assert state(mesh) is ExitState.OFF
    assert mesh.node.desired(0.0).shield.is_empty
    mesh.off(kill_switch="lockdown")
    assert state(mesh) is ExitState.LOCKDOWN


def test_with_the_kill_switch_off_only_routes_lead_there(mesh: Abroad) -> None:
    mesh.node.exits.settings = ExitSettings(BOUGHT, KillSwitch.OFF)
    tell(mesh, CARRIES)
    shield = mesh.node.desired(0.0).shield
    assert (shield.kind, shield.link) == (ShieldKind.OPEN, "nv0b")


def test_the_resolver_of_the_users_choice_goes_before_the_sellers(mesh: Abroad) -> None:
    tell(mesh, CARRIES)
    mesh.node.exits.settings = ExitSettings(BOUGHT, resolver="9.9.9.9")
    assert mesh.node.exits.resolvers(mesh.node) == (ip_address("9.9.9.9"),)


def test_status_says_what_it_is_in_every_state(mesh: Abroad) -> None:
    for purchase, words in (
        (None, "waiting for an exit that is paid for"),
        (CARRIES, "IPv4 and IPv6 through ada"),
        (replace(CARRIES, carries=False), "waiting for ada"),
        (Purchase(), "no exit can be bought"),
    ):
        tell(mesh, purchase)
        answer = mesh.call(mesh.me, "exit_status")
        assert words in answer["text"]
        assert answer["wanted"] == "bought"
        mesh.call(mesh.me, "status")


def test_the_decision_outlives_a_restart() -> None:
    stored = ExitSettings(BOUGHT, KillSwitch.LOCKDOWN).to_json()
    assert ExitSettings.from_json(stored).exit == BOUGHT


def test_links_in_use_are_told_from_those_that_are_tried(mesh: Abroad) -> None:
    from tests.unit.host.test_sold import bought

    mesh.node.bought = (bought("nv0b", "198.18.0.2/32"), bought("nv0c", "198.18.0.3/32"))
    tell(mesh, CARRIES)
    assert [one.used for one in mesh.node.desired(0.0).bought] == [True, False]
    tell(mesh, replace(CARRIES, carries=False))
    assert [one.used for one in mesh.node.desired(0.0).bought] == [False, False]
